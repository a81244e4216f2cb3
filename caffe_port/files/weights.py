"""Weight files of every kind as layers with their blobs in Caffe's order.

Kinds go by suffix. Files of named tensors (.pth, .pt, .safetensors, .npz) call a blob
`<layer>.<blob>`, as the state_dict of a net does: weight, bias; mean, variance and
scale_factor of a BatchNorm; blob0, blob1, ... of a Python layer; and from the third blob
of any other layer on its number. The last dot parts the two, so layers may have dots.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel, hdf5, named, wire
from caffe_port.files.stored import LayerBlobs, StoredBlob
from caffe_port.proto.caffe_pb2 import NetParameter

READERS = {
    '.pth': named.read_torch,
    '.pt': named.read_torch,
    '.safetensors': named.read_safetensors,
    '.npz': named.read_npz,
}
WRITERS = {
    '.pth': named.write_torch,
    '.pt': named.write_torch,
    '.safetensors': named.write_safetensors,
    '.npz': named.write_npz,
}
SUFFIXES = ('.caffemodel', '.caffemodel.h5', *READERS)
# Compressed or shared values may be more than their file, forged ones without bound.
_MIN_BOUND = 1 << 26
_RANKS = {'weight': 0, 'bias': 1, 'mean': 0, 'variance': 1, 'scale_factor': 2}
_NUMBERED = re.compile(r'(?:blob)?(0|[1-9]\d{0,5})', re.ASCII)
# How many axes today's Caffe gives the blobs of layers that are older than `shape`.
_AXES = {'Convolution': (4, 1), 'Deconvolution': (4, 1), 'InnerProduct': (2, 1), 'PReLU': (1,)}

Names = Mapping[str, Sequence[str]]


def kind_of(path: str | os.PathLike) -> str:
    """The suffix that says what a weight file is; CaffeError for any other."""
    for suffix in SUFFIXES:
        if os.fspath(path).endswith(suffix):
            return suffix
    raise CaffeError(f'{path}: expected a name that ends in {", ".join(SUFFIXES)}')


def nbytes(layers: Iterable[LayerBlobs]) -> int:
    """The bytes of all values as float32."""
    return sum(4 * blob.count for layer in layers for blob in layer.blobs)


def read(path: str | os.PathLike) -> list[LayerBlobs]:
    """The layers of a weight file that have blobs; types are known from a .caffemodel only.

    Shapes that an old file pads to 4 axes lose the padding: Caffe takes a bias of
    1 x 1 x 1 x N from an old file, but refuses it in a new one.

    Raises CaffeError for what is no such file, a layer that comes twice, and values
    far beyond the size of the file.
    """
    kind = kind_of(path)
    if kind in READERS:
        layers = _layers(path, READERS[kind](path))
    else:
        layers = [_unpadded(layer) for layer in caffemodel.read(path) if layer.blobs]
    names: set[str] = set()
    for layer in layers:
        if layer.name in names or '\0' in layer.name:
            raise CaffeError(
                f'{path}: two layers named "{layer.name}"'
                if layer.name in names
                else f'{path}: layer name {layer.name!r} has a zero in it'
            )
        names.add(layer.name)
    bound = max(hdf5.MAX_INFLATION * os.path.getsize(path), _MIN_BOUND)
    if nbytes(layers) > bound:
        raise CaffeError(
            f'{path}: expected at most {bound} bytes of values in a file of this '
            f'size, found {nbytes(layers)}'
        )
    return layers


def read_net(path: str | os.PathLike) -> NetParameter | None:
    """The net that a weight file holds, None where it holds none."""
    if kind_of(path) in READERS or wire.Source(path).is_hdf5():
        return None
    return caffemodel.read_net(path)


def write(
    path: str | os.PathLike,
    layers: Sequence[LayerBlobs],
    net: NetParameter | None = None,
    names: Names | None = None,
    read: named.Read = named.values_of,
) -> None:
    """Write layers as a weight file of the kind that the suffix says.

    A .caffemodel holds every layer of `net`; without one it holds the layers given,
    by name, type (if known) and blobs, which is what Caffe copies weights from.
    `names` are a net's own names for the blobs of its layers; `read` fetches a blob.
    A .caffemodel, a .caffemodel.h5 and a .pth are put together in memory; the others are
    written blob by blob.
    """
    kind = kind_of(path)
    if kind in WRITERS:
        WRITERS[kind](path, list(_named(layers, names or {})), read)
        return
    with named.refused(path, 'not written'):
        bare = NetParameter(
            layer=[dict(name=layer.name, type=layer.type or None) for layer in layers]
        )
        if kind == '.caffemodel':
            caffemodel.write(path, net or bare, _Arrays(layers, read))
        else:
            caffemodel.write_hdf5(path, bare, _Arrays(layers, read))


def blob_names(layer: LayerBlobs) -> list[str]:
    """What files of named tensors call the blobs of a layer, going by its type."""
    count = len(layer.blobs)
    if layer.type == 'Python':
        return [f'blob{i}' for i in range(count)]
    known = {'BatchNorm': ['mean', 'variance', 'scale_factor'], 'Bias': ['bias']}
    names = known.get(layer.type, ['weight', 'bias'])
    return names[:count] + [str(i) for i in range(len(names), count)]


class _Arrays(Mapping):
    """Each layer's arrays, read when asked for."""

    def __init__(self, layers: Sequence[LayerBlobs], read: named.Read):
        self._layers, self._read = {layer.name: layer for layer in layers}, read

    def __getitem__(self, name: str) -> list[np.ndarray]:
        return [self._read(blob) for blob in self._layers[name].blobs]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def _named(layers: Sequence[LayerBlobs], names: Names) -> Iterator[tuple[str, StoredBlob]]:
    for layer in layers:
        for name, blob in zip(names.get(layer.name) or blob_names(layer), layer.blobs):
            yield f'{layer.name}.{name}', blob


def _layers(path: str | os.PathLike, named: named.Named) -> list[LayerBlobs]:
    """The layers of a file of named tensors, in the order of their first blobs."""
    grouped: dict[str, dict[str, StoredBlob]] = {}
    for key, blob in named.items():
        layer, _, name = key.rpartition('.')
        if '.' not in key or _rank(name) is None:
            raise CaffeError(
                f'{path}: {key}: expected <layer>.weight, <layer>.bias or '
                f"<layer>.<i>, which Caffe's blobs are called"
            )
        grouped.setdefault(layer, {})[name] = blob
    return [
        LayerBlobs(layer, '', _in_order(path, layer, blobs)) for layer, blobs in grouped.items()
    ]


def _in_order(
    path: str | os.PathLike, layer: str, blobs: dict[str, StoredBlob]
) -> list[StoredBlob]:
    names = sorted(blobs, key=_rank)
    for i, name in enumerate(names):
        # A Bias layer has a bias only; nothing else may be skipped.
        if _rank(name) != i and names != ['bias']:
            raise CaffeError(f'{path}: {layer}: expected one blob {i}, found {", ".join(names)}')
    return [blobs[name] for name in names]


def _rank(name: str) -> int | None:
    number = _NUMBERED.fullmatch(name)
    return int(number[1]) if number else _RANKS.get(name)


def _unpadded(layer: LayerBlobs) -> LayerBlobs:
    blobs = list(layer.blobs)
    for i, axes in enumerate(_AXES.get(layer.type, ())[: len(blobs)]):
        shape = blobs[i].shape
        if len(shape) == 4 and set(shape[: 4 - axes]) <= {1}:
            blobs[i] = replace(blobs[i], shape=shape[4 - axes :])
    return LayerBlobs(layer.name, layer.type, blobs)
