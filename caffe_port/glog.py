"""Log lines in glog's form, so that tools for Caffe's logs read ours.

    I1125 08:40:07.123456  4711 solver.py:239] Iteration 20, loss = 0.5

The letter is the level (I, W, E, F), then month and day, time, thread, file and line.
"""

from __future__ import annotations

import logging
import os
import socket
import time

from caffe_port.errors import CaffeError

LOG = logging.getLogger('caffe_port')
_LEVELS = logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL
_LETTERS = {
    logging.DEBUG: 'I',
    logging.INFO: 'I',
    logging.WARNING: 'W',
    logging.ERROR: 'E',
    logging.CRITICAL: 'F',
}


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Log from a level of glog's on: 0 INFO, 1 WARNING, 2 ERROR, 3 FATAL.

    Deviates: without `stderr` pycaffe logs to files of glog's; here GlogFile makes files, and
    the log goes on to standard error. Raises CaffeError for another level.
    """
    if level not in range(len(_LEVELS)):
        raise CaffeError(f'init_log: level {level!r}, expected 0 to {len(_LEVELS) - 1}')
    LOG.setLevel(_LEVELS[level])


def log(message: str) -> None:
    """Log a message at level INFO."""
    LOG.info('%s', message)


class GlogFormatter(logging.Formatter):
    """Format records as glog does; a message of several lines stays one record."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime('%m%d %H:%M:%S', time.localtime(record.created))
        micros = int(record.created % 1 * 1e6)
        thread = (record.thread or 0) % 100000
        return (
            f'{_LETTERS.get(record.levelno, "I")}{when}.{micros:06d} {thread:5d} '
            f'{record.filename}:{record.lineno}] {super().format(record)}'
        )


def format_header() -> str:
    """Return the lines that a glog file begins with."""
    now = time.strftime('%Y/%m/%d %H:%M:%S')
    return (
        f'Log file created at: {now}\nRunning on machine: {socket.gethostname()}\n'
        'Log line format: [IWEF]mmdd hh:mm:ss.uuuuuu threadid file:line] msg\n'
    )


class GlogFile(logging.FileHandler):
    """A log file in glog's form; appends to that of an earlier run."""

    def __init__(self, path: str | os.PathLike):
        super().__init__(path, encoding='utf-8')
        self.setFormatter(GlogFormatter())
        if self.stream and not self.stream.tell():
            self.stream.write(format_header())
