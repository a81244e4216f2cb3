"""Let a command outlive its terminal: drop output that cannot be written."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO

LOG = logging.getLogger('caffe_port')

# Why a stream was not written, by its name, until the log says so; None once it has.
_lost: dict[str, str | None] = {}


class Lasting(io.TextIOBase):
    """A stream to a file descriptor that drops what cannot be written.

    The log names the stream and the reason once. A later write tries again, as a disk may
    have space again.
    """

    def __init__(self, stream: TextIO, name: str):
        self._stream, self._name, self._text = stream, name, ''

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._text += text
        if '\n' in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        data, self._text = self._text.encode(self.encoding, 'backslashreplace'), ''
        try:
            while data:
                data = data[os.write(self.fileno(), data) :]
        except OSError as error:
            _lost.setdefault(self._name, error.strerror)
            tell_lost()


def tell_lost() -> None:
    """Log which streams cannot be written, once each, if there is a log."""
    for name, reason in _lost.items():
        if reason and LOG.handlers:
            _lost[name] = None
            LOG.warning('%s is not written: %s; the run goes on', name, reason)


@contextmanager
def drop_unwritable() -> Iterator[None]:
    """Drop what standard output and error do not take, instead of raising, while this lasts."""
    _lost.clear()
    with (
        redirect_stdout(_make_lasting(sys.stdout, 'standard output')) as out,
        redirect_stderr(_make_lasting(sys.stderr, 'standard error')) as error,
    ):
        try:
            yield
        finally:
            out.flush()
            error.flush()


def _make_lasting(stream: TextIO | None, name: str) -> TextIO | Lasting:
    if stream is None:  # closed before the command began
        return open(os.devnull, 'w')
    with suppress(OSError):
        stream.flush()
    try:
        stream.fileno()
    except OSError:  # not a file but a buffer of a test
        return stream
    return Lasting(stream, name)
