"""The exception for all that a user can mend, and files that are written whole or not at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The files that are being written, with the temporary ones that will replace them.
_temporaries: dict[Path, Path] = {}


def printable(text: str) -> str:
    """Put text of a file on one line, and escape what would control a terminal."""
    return ''.join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class CaffeError(ValueError):
    """A file, prototxt, net or array is not what it must be.

    The message is one line that names the file or the layer, what was expected and what
    came. Names in it may come from a stranger's file, so it is made printable.
    """

    def __init__(self, message: object = ''):
        super().__init__(printable(str(message)))


class WriteError(CaffeError):
    """The disk refused a file; the file that was at its path is unchanged."""


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file so that it is there whole or not at all.

    Yields a temporary name beside `path`; on leaving, the file is flushed to the disk and
    renamed to `path`. If the body raises, the temporary file is removed and `path` stays as it
    was. A function that the body calls may write the same file by `replacing`; it
    is renamed when the body is done.

    Raises WriteError if the folder is missing or the disk refuses the write.
    """
    path = Path(path)
    if path in _temporaries:
        yield _temporaries[path]
        return
    if not path.name or '\0' in str(path):
        raise WriteError(f'{str(path)!r}: not written: not the name of a file')
    temporary = _temporaries[path] = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        yield temporary
        with open(temporary, 'rb+') as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f'{path}: not written: {error.strerror or error}') from error
    finally:
        del _temporaries[path]
        # The unlink fails too where the write failed; keep the first error.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: str | os.PathLike) -> Path:
    """Make a folder and those above it, unless they are there.

    Raises WriteError if it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f'{path}: cannot be made: {error.strerror}') from error
    except ValueError as error:
        raise WriteError(f'{str(path)!r}: cannot be made: {error}') from error
    return Path(path)


@contextmanager
def ignore_closed_pipe() -> Iterator[None]:
    """End the block without an error where the reader of standard output has left."""
    try:
        yield
    except BrokenPipeError:
        # Python would raise once more as it flushes standard output at its exit.
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
