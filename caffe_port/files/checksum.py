"""Checksums of files and texts."""

from __future__ import annotations

import hashlib
import os

from caffe_port.errors import CaffeError

_BLOCK = 1 << 20


def digest_file(*paths: str | os.PathLike, algorithm: str = 'sha256') -> str:
    """Return the checksum of the contents of files, in order, in hexadecimal.

    Raises CaffeError, naming the file, if one cannot be read.
    """
    found, block = hashlib.new(algorithm), bytearray(_BLOCK)
    for path in paths:
        try:
            with open(path, 'rb', buffering=0) as file:
                while count := file.readinto(block):
                    found.update(memoryview(block)[:count])
        except OSError as error:
            raise CaffeError(f'{path}: not read: {error.strerror}') from error
    return found.hexdigest()


def digest_text(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def compute_checksum(path: str | os.PathLike, like: str) -> str:
    """Return the checksum of a file as `like` has it, 'sha1:...' or 'sha256:...'."""
    algorithm = like.partition(':')[0]
    return f'{algorithm}:{digest_file(path, algorithm=algorithm)}'
