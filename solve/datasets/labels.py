"""Turning the numbers a data set stores into the classes that a net learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from caffe_port.errors import CaffeError
from solve.datasets.images import VOID

_BLOCK = 2**18


def recoded(labels: np.ndarray, table: Mapping[int, int], path: Path, expected: str) -> np.ndarray:
    """Replace every number of `labels`, any real H x W, by what `table` has for it: uint8.

    Raises CaffeError, naming `path` and the first number that is not in `table`;
    `expected` says which are.
    """
    stored = np.array(sorted(table))
    classes = np.array([table[number] for number in stored.tolist()], np.uint8)
    flat = labels.ravel()
    found = np.empty(flat.size, np.uint8)
    # In blocks, since the search takes eight bytes for every label.
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        at = np.minimum(np.searchsorted(stored, block), len(stored) - 1)
        odd = np.flatnonzero(stored[at] != block)
        if odd.size:
            y, x = divmod(start + int(odd[0]), labels.shape[1])
            raise CaffeError(
                f'{path}: image {path.stem} has label {labels[y, x]} at row {y}, '
                f'column {x}; {expected} expected'
            )
        found[start : start + _BLOCK] = classes[at]
    return found.reshape(labels.shape)


def void_first(classes: int) -> dict[int, int]:
    """The table of labels stored from 1 with 0 for void: one less, and 0 becomes 255.

    The release takes one from uint8 numbers, whose 0 thereby comes round to 255.
    """
    return {0: VOID, **{number: number - 1 for number in range(1, classes + 1)}}
