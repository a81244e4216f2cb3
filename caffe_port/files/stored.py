"""What weight files hold: layers, whose blobs stay on the disk until they are read."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from types import ModuleType
from typing import IO

import numpy as np

from caffe_port.blob import Shape, check_shape
from caffe_port.errors import CaffeError, replacing
from caffe_port.proto.caffe_pb2 import LayerParameter, NetParameter

LayerArrays = Mapping[str, Sequence[np.ndarray]]


@dataclass(frozen=True)
class StoredBlob:
    """A blob in a file: its shape, and how to read it.

    `where` names it in errors; `dtype` is that of the file; `fill` reads the values into a
    flat float32 array; `diff` is the gradient stored with it, if any.
    """

    where: str
    shape: Shape
    dtype: np.dtype
    fill: Callable[[np.ndarray], None] = field(repr=False)
    diff: StoredBlob | None = None

    @classmethod
    def of_array(cls, where: str, array: np.ndarray) -> StoredBlob:
        """Return a blob that holds what `array` holds when it is read."""

        def fill(out: np.ndarray) -> None:
            out[:] = array.reshape(-1)

        return cls(where, array.shape, array.dtype, fill)

    @property
    def count(self) -> int:
        """Return the number of values."""
        return math.prod(self.shape)

    def array(self) -> np.ndarray:
        """Read the values into a new array, float32, C order."""
        out = np.empty(self.shape, np.float32)
        self.fill(out.reshape(-1))
        return out

    def read_into(self, out: np.ndarray) -> None:
        """Read the values, in C order, into a float32 array of the same count.

        Raises CaffeError if `out` has another dtype or count, is read-only or not
        contiguous, or if the file no longer has the values.
        """
        if out.dtype != np.float32 or not (out.flags.c_contiguous and out.flags.writeable):
            raise CaffeError(
                f'{self.where}: expected a writable, contiguous float32 array to '
                f'read into, found {out.dtype} with strides {out.strides}'
            )
        if out.size != self.count:
            raise CaffeError(
                f'{self.where}: expected an array of {self.count} values to read '
                f'into, found {out.size}'
            )
        self.fill(out.reshape(-1))


@dataclass(frozen=True)
class StoredLayer:
    """A layer of a weight file; `type` is empty where the file has none (HDF5)."""

    name: str
    type: str
    blobs: list[StoredBlob]


@dataclass(frozen=True)
class StoredState:
    """A solver's state; `history` has at least one blob for each learnable parameter."""

    iter: int
    learned_net: str
    current_step: int
    history: list[StoredBlob]


def without_padding(shape: Shape, axes: int) -> Shape:
    """Drop the 1s that old files put before a shape of `axes` axes to make it four."""
    front = 4 - axes
    padded = front > 0 and len(shape) == 4 and set(shape[:front]) == {1}
    return shape[front:] if padded else shape


def layers_to_write(
    path: str | os.PathLike, net: NetParameter, blobs: LayerArrays, diffs: LayerArrays | None
) -> Iterator[tuple[LayerParameter, list[tuple[np.ndarray, np.ndarray | None]]]]:
    """Yield each layer of `net` with its arrays, each paired with its diff or None.

    Raises CaffeError for blobs of a layer that `net` lacks, for what is no array of
    numbers, and for a diff whose shape is not its blob's.
    """
    unknown = set(blobs).union(diffs or ()) - {layer.name for layer in net.layer}
    if unknown or net.layers:
        what = f'no layer "{min(unknown)}"' if unknown else 'layers of an older format'
        raise CaffeError(f'{path}: not written: the net has {what}')
    for layer in net.layer:
        arrays = [np.asarray(array) for array in blobs.get(layer.name, ())]
        for i, array in enumerate(arrays):
            where = f'{path}: {layer.name}: blob {i}'
            if array.dtype.kind not in 'fiub':
                raise CaffeError(f'{where}: expected numbers, found {array.dtype}')
            check_shape(array.shape, where)
        given = [np.asarray(diff) for diff in (diffs or {}).get(layer.name, ())]
        shapes = [array.shape for array in arrays]
        if given and [diff.shape for diff in given] != shapes:
            raise CaffeError(
                f'{path}: {layer.name}: expected diffs of shapes {shapes}, '
                f'found {[diff.shape for diff in given]}'
            )
        yield layer, list(zip_longest(arrays, given))


def payload(array: np.ndarray) -> memoryview:
    """Return the bytes of an array as files hold them: float32, little-endian, C order."""
    return np.ascontiguousarray(array, '<f4').reshape(-1).view(np.uint8).data


@contextmanager
def open_to_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a file that is written whole or not at all; raise CaffeError for any failure."""
    with (
        translate_errors(path, 'not written'),
        replacing(path) as temporary,
        open(temporary, 'wb') as out,
    ):
        yield out


@contextmanager
def translate_errors(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Turn any exception of a library within the block into a CaffeError `path: what: ...`.

    On damaged files zipfile, numpy, h5py and the others raise nearly every exception.
    """
    try:
        yield
    except CaffeError:
        raise
    except Exception as error:
        raise CaffeError(f'{path}: {what}: {_one_line(error)}') from error


def import_library(name: str, path: str | os.PathLike, extra: str) -> ModuleType:
    """Import an optional library; raise CaffeError, with what to install, without it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition('.')[0]
        raise CaffeError(
            f'{path}: needs {package}, which is not installed: pip install {package}, '
            f"or this package with its extra '{extra}'"
        ) from error


def _one_line(error: Exception) -> str:
    words = getattr(error, 'strerror', None) or ' '.join(str(error).split())
    return words[:300] or type(error).__name__
