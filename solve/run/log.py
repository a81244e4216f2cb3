"""The log of a run, log.jsonl: a line of JSON for each display and each scoring."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffeError

LOG = logging.getLogger('caffe_port')
NAME = 'log.jsonl'


def append(folder: Path, iteration: int, **values: float) -> None:
    """Add a line to the log in `folder`. Where the disk refuses it, say so and go on."""
    line = {'iteration': iteration, 'time': time.time(), **values}
    try:
        with open(folder / NAME, 'a+b') as file:
            file.seek(max(file.tell() - 1, 0))
            torn = file.read(1) not in (b'', b'\n')  # a full disk has cut the last line short
            file.write(b'\n' * torn + json.dumps(line).encode() + b'\n')
    except OSError as error:
        LOG.error('%s: not written: %s', NAME, error.strerror)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the log in `folder`, or of the log file of that name.

    Lines that a full disk has cut short are left out.

    Raises CaffeError if there is none, or no line is whole.
    """
    path = folder if folder.is_file() else folder / NAME
    try:
        lines = [_parse(text) for text in path.read_text(errors='replace').splitlines()]
    except FileNotFoundError as error:
        raise CaffeError(f'{path}: no such file; is {folder} the folder of a run?') from error
    if lines and not any(lines):
        raise CaffeError(f"{path}: not a run's log: no line of JSON with an iteration")
    return [line for line in lines if line]


def _parse(text: str) -> dict[str, Any]:
    """Return what a line says, or nothing if it is torn."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) and 'iteration' in line else {}


def is_finite(value: object) -> bool:
    """Return whether a value of a line is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def find(folder: Path) -> list[Path]:
    """Return the logs in the folder of a run, or of the runs of a chain."""
    return [*folder.glob(NAME), *folder.glob(f'*/{NAME}')]
