"""Read labels from .mat files and recode them to the classes that a net learns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError
from solve.datasets.images import VOID, check_exists, check_labels


def read_mat(path: str | os.PathLike, variable: str, field: str | None = None) -> np.ndarray:
    """Read an H x W array of real numbers: a variable of a .mat file, or a field of a struct.

    The type is the one stored, which may be narrower than the one MATLAB shows.

    Raises CaffeError if the file is missing, broken or of version 7.3 (HDF5), or holds
    something else.
    """
    import scipy.io  # a tenth of a second that pictures without .mat files need not take

    path = check_exists(path)
    where = f'{path}: .mat file'
    try:
        found = scipy.io.loadmat(path, appendmat=False)
    except NotImplementedError as error:
        raise CaffeError(f'{where} of version 7.3 (HDF5), 7 expected: save it with -v7') from error
    except Exception as error:  # scipy may raise anything on a broken file
        raise CaffeError(f'{where} not read: {error}') from error
    if variable not in found:
        names = [name for name in found if not name.startswith('__')]
        raise CaffeError(f'{where} has no variable {variable}, only {", ".join(names) or "none"}')
    array = found[variable]
    if field is not None:
        if array.size != 1 or field not in (array.dtype.names or ()):
            raise CaffeError(
                f'{where}: {variable} must be a struct with a field {field}, is {_kind(array)}'
            )
        variable, array = f'{variable}.{field}', array[field].item()
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'biuf' or array.ndim != 2:
        raise CaffeError(
            f'{where}: {variable} must be an H x W array of real numbers, is {_kind(array)}'
        )
    return array


def _kind(array: Any) -> str:
    return f'a {type(array).__name__} of {format_shape(array.shape)} {array.dtype}'


def recode(labels: np.ndarray, table: Mapping[int, int], path: Path, expected: str) -> np.ndarray:
    """Replace each number of `labels`, H x W, by what `table` maps it to: uint8.

    Raises CaffeError, naming `path` and the first number that is not in `table`;
    `expected` says which are.
    """
    stored = np.array(sorted(table))
    classes = np.array([table[number] for number in stored.tolist()], np.uint8)
    at = np.minimum(np.searchsorted(stored, labels), len(stored) - 1)
    check_labels(labels, stored[at] == labels, path, expected)
    return classes[at]


def void_first(classes: int) -> dict[int, int]:
    """Return the table for labels stored from 1 with 0 for void: one less, and 0 becomes 255.

    The release subtracts 1 from uint8 numbers, which wraps 0 around to 255.
    """
    return {0: VOID, **{number: number - 1 for number in range(1, classes + 1)}}
