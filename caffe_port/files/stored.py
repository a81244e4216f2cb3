"""What weight files hold: layers' blobs that stay on the disk until they are asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from caffe_port.blob import checked_shape
from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import LayerParameter, NetParameter

MAX_AXES = 32

Arrays = Mapping[str, Sequence[np.ndarray]]


class Place(tuple):
    """Where a blob is, from the file on: joined when an error shows it, not for every blob."""

    __slots__ = ()

    def __str__(self) -> str:
        return ': '.join(self)


@dataclass(frozen=True)
class StoredBlob:
    """A blob in a file: its shape, and the means to read it.

    `where` says for errors what it is; `dtype` is that of the file; `diff` is the
    gradient stored with it, if any.
    """

    where: str | Place
    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Callable[[np.ndarray], None] = field(repr=False)
    diff: StoredBlob | None = None

    @property
    def count(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def data(self) -> np.ndarray:
        """The values, under the name that blobs of nets have for them; read anew each time."""
        return self.array()

    def array(self) -> np.ndarray:
        """The values in a new array, float32, C order."""
        out = np.empty(self.shape, np.float32)
        self.fill(out.reshape(-1))
        return out

    def read_into(self, out: np.ndarray) -> None:
        """Read the values, in C order, into a float32 array of the same count.

        Raises CaffeError if `out` is of another dtype or count, not contiguous or
        read-only, or the file no longer has the values.
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
class LayerBlobs:
    """A layer of a weight file; `type` is empty where the file has none (HDF5)."""

    name: str
    type: str
    blobs: list[StoredBlob]


@dataclass(frozen=True)
class State:
    """A solver's state; `history` has one blob for each learnable parameter or more."""

    iter: int
    learned_net: str
    current_step: int
    history: list[StoredBlob]


def declared_shape(dims: Sequence[int], where: str | Place) -> tuple[int, ...]:
    """The shape a file declares; raises CaffeError where no blob can have it."""
    # With 1 for 0, so that an empty blob's other dims are bounded too.
    checked_shape([dim or 1 for dim in dims], where)
    return tuple(dims)


def layers_to_write(
    path: str | os.PathLike, net: NetParameter, blobs: Arrays, diffs: Arrays | None
) -> Iterator[tuple[LayerParameter, list[tuple[np.ndarray, np.ndarray | None]]]]:
    """Each layer of `net` with its arrays, and their diffs or None.

    Raises CaffeError for blobs of a layer that `net` lacks, and for a diff of another
    shape than its blob.
    """
    strangers = set(blobs).union(diffs or ()) - {layer.name for layer in net.layer}
    if strangers or net.layers:
        what = f'no layer "{min(strangers)}"' if strangers else 'layers of an older format'
        raise CaffeError(f'{path}: not written: the net has {what}')
    for layer in net.layer:
        arrays = [
            _writable(array, f'{path}: {layer.name}: blob {i}')
            for i, array in enumerate(blobs.get(layer.name, ()))
        ]
        given = [np.asarray(diff) for diff in (diffs or {}).get(layer.name, ())]
        shapes = [array.shape for array in arrays]
        if given and [diff.shape for diff in given] != shapes:
            raise CaffeError(
                f'{path}: {layer.name}: expected diffs of shapes {shapes}, '
                f'found {[diff.shape for diff in given]}'
            )
        yield layer, list(zip(arrays, given or [None] * len(arrays)))


def _writable(array: np.ndarray, where: str) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in 'fiub':
        raise CaffeError(f'{where}: expected numbers, found {array.dtype}')
    checked_shape(array.shape, where)
    return array
