"""Read and write weight files of every kind as layers of blobs, and fit them to a net.

The suffix says the kind. Files of named tensors (.pth, .pt, .pth.tar and .ckpt, .safetensors,
.npz) call a blob `<layer>.<blob>`, as the state_dict of a net does: weight, bias; mean, variance
and scale_factor of a BatchNorm; blob0, blob1, ... of a Python layer; and in any other
layer, from the third blob on, the number of the blob. The last dot separates the two, so
layers may have dots. `module.`, `model.` or `net.` before every key is taken off.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel, hdf5, named, pth, wire
from caffe_port.files.named import Named, ReadBlob
from caffe_port.files.stored import Shape, StoredBlob, StoredLayer, without_padding
from caffe_port.proto.caffe_pb2 import NetParameter

LOG = logging.getLogger('caffe_port')

READERS: dict[str, Callable[[Any], Named]] = {
    '.pth': pth.read_torch,
    '.pt': pth.read_torch,
    '.pth.tar': pth.read_torch,
    '.ckpt': pth.read_torch,
    '.safetensors': named.read_safetensors,
    '.npz': named.read_npz,
}
WRITERS: dict[str, Callable[[Any, Sequence[tuple[str, StoredBlob]], ReadBlob], None]] = {
    '.pth': pth.write_torch,
    '.pt': pth.write_torch,
    '.pth.tar': pth.write_torch,
    '.ckpt': pth.write_torch,
    '.safetensors': named.write_safetensors,
    '.npz': named.write_npz,
}
SUFFIXES = ('.caffemodel', '.caffemodel.h5', '.h5', *READERS)
# Deflated or shared values may take more bytes than their file; forged ones without bound.
_MOST_TIMES, _LEAST_BOUND = 8, 1 << 26
_PLACES = {'weight': 0, 'bias': 1, 'mean': 0, 'variance': 1, 'scale_factor': 2}
# DataParallel's, and those that training frameworks and torch.compile use.
_WRAPPERS = 'module.', 'model.', 'net.', '_orig_mod.'
_NUMBERED = re.compile(r'(?:blob)?(0|[1-9]\d{0,5})', re.ASCII)
# How many axes today's Caffe gives the blobs of layers that are older than `shape`.
_AXES = {'Convolution': (4, 1), 'Deconvolution': (4, 1), 'InnerProduct': (2, 1), 'PReLU': (1,)}

Names = Mapping[str, Sequence[str]]


def kind_of(path: str | os.PathLike) -> str:
    """Return the suffix that says what a weight file is; raise CaffeError for any other."""
    for suffix in SUFFIXES:
        if os.fspath(path).endswith(suffix):
            return suffix
    raise CaffeError(f'{path}: expected a name that ends in {", ".join(SUFFIXES)}')


def count_bytes(layers: Iterable[StoredLayer]) -> int:
    """Return the bytes of all values as float32."""
    return sum(4 * blob.count for layer in layers for blob in layer.blobs)


def read(path: str | os.PathLike) -> list[StoredLayer]:
    """Index the layers of a weight file that have blobs; only a .caffemodel knows their types.

    Shapes that an old file pads to 4 axes lose the padding: Caffe takes a bias of
    1 x 1 x 1 x N from an old file, but refuses it in a new one.

    Raises CaffeError for any other file, for two layers of one name, and for values far
    beyond the size of the file.
    """
    kind = kind_of(path)
    if kind in READERS:
        layers = _layers(path, READERS[kind](path))
    else:
        layers = [_unpadded(layer) for layer in caffemodel.read(path) if layer.blobs]
    names: set[str] = set()
    for layer in layers:
        if '\0' in layer.name:
            raise CaffeError(f'{path}: layer name {layer.name!r} has a zero in it')
        if layer.name in names:
            raise CaffeError(f'{path}: two layers named "{layer.name}"')
        names.add(layer.name)
    bound = max(_MOST_TIMES * os.path.getsize(path), _LEAST_BOUND)
    if count_bytes(layers) > bound:
        raise CaffeError(
            f'{path}: expected at most {bound} bytes of values in a file of this '
            f'size, found {count_bytes(layers)}'
        )
    return layers


def read_layers(path: str | os.PathLike) -> list[StoredLayer]:
    """Index the layers of a weight file to copy from; a name with no known suffix is Caffe's.

    A .caffemodel gives all its layers, also those without blobs, with shapes unchanged.

    Raises as `read`.
    """
    named_tensors = os.fspath(path).endswith(tuple(READERS))
    return read(path) if named_tensors else caffemodel.read(path)


def read_net(path: str | os.PathLike) -> NetParameter | None:
    """Return the net that a weight file holds; None if it holds none."""
    if kind_of(path) in READERS or wire.WireFile(path).is_hdf5():
        return None
    return caffemodel.read_net(path)


def write(
    path: str | os.PathLike,
    layers: Sequence[StoredLayer],
    net: NetParameter | None = None,
    names: Names | None = None,
    read: ReadBlob = StoredBlob.array,
) -> None:
    """Write layers as a weight file of the kind that the suffix says.

    A .caffemodel holds every layer of `net`; without a net it holds the layers given,
    by name, type (if known) and blobs, which is what Caffe copies weights from.
    `names` are the net's own names for the blobs of its layers; `read` fetches a blob.
    An .npz is written blob by blob; the others are put together in memory.
    """
    kind = kind_of(path)
    if kind in WRITERS:
        WRITERS[kind](path, list(_named(layers, names or {})), read)
        return
    bare = NetParameter(layer=[dict(name=layer.name, type=layer.type or None) for layer in layers])
    arrays = {layer.name: [read(blob) for blob in layer.blobs] for layer in layers}
    if kind == '.caffemodel':
        caffemodel.write(path, net or bare, arrays)
    else:
        hdf5.write_hdf5(path, bare, arrays)


def name_blobs(layer: StoredLayer) -> list[str]:
    """Return what files of named tensors call the blobs of a layer of its type."""
    count = len(layer.blobs)
    if layer.type == 'Python':
        return [f'blob{i}' for i in range(count)]
    known = {'BatchNorm': ['mean', 'variance', 'scale_factor'], 'Bias': ['bias']}
    names = known.get(layer.type, ['weight', 'bias'])
    return names[:count] + [str(i) for i in range(len(names), count)]


def _named(layers: Sequence[StoredLayer], names: Names) -> Iterator[tuple[str, StoredBlob]]:
    for layer in layers:
        for name, blob in zip(names.get(layer.name) or name_blobs(layer), layer.blobs):
            yield f'{layer.name}.{name}', blob


def _layers(path: str | os.PathLike, tensors: Named) -> list[StoredLayer]:
    """Return the layers of a file of named tensors, in the order of their first blobs."""
    tensors = _without_prefix(path, tensors)
    grouped: dict[str, dict[int, str]] = {}
    for key in tensors:
        layer, dot, name = key.rpartition('.')
        place = _place(name)
        if not dot or place is None:
            raise CaffeError(
                f'{path}: {key}: expected <layer>.weight, <layer>.bias or '
                f"<layer>.<i>, as Caffe's blobs are called"
            )
        if place in grouped.setdefault(layer, {}):
            raise CaffeError(
                f'{path}: {layer}: expected one blob {place}, found {grouped[layer][place]}, {key}'
            )
        grouped[layer][place] = key
    found = []
    for layer, keys in grouped.items():
        # A Bias layer has a bias only; no other place may be empty.
        if sorted(keys) != list(range(len(keys))) and list(keys.values()) != [f'{layer}.bias']:
            raise CaffeError(
                f'{path}: {layer}: expected blobs 0 to {len(keys) - 1}, '
                f'found {", ".join(list(keys.values())[:5])}'
            )
        found.append(StoredLayer(layer, '', [tensors[keys[place]] for place in sorted(keys)]))
    return found


def _without_prefix(path: str | os.PathLike, tensors: Named) -> Named:
    """Remove the prefixes that wrappers of a module put before every key."""
    taken = ''
    for _ in _WRAPPERS:  # a key can be all prefixes: no more rounds than there are wrappers
        prefix = next((each for each in _WRAPPERS if _all_have(tensors, each)), '')
        tensors = {key.removeprefix(prefix): blob for key, blob in tensors.items()}
        taken += prefix
    if taken:
        LOG.info('%s: all keys begin with %s, which is taken off', path, taken)
    return tensors


def _all_have(tensors: Named, prefix: str) -> bool:
    # What is left must be a layer and a blob.
    return bool(tensors) and all(
        key.startswith(prefix) and '.' in key.removeprefix(prefix) for key in tensors
    )


def _place(name: str) -> int | None:
    """Return which blob of its layer a name means; None if it means none."""
    number = _NUMBERED.fullmatch(name)
    return int(number[1]) if number else _PLACES.get(name)


def _unpadded(layer: StoredLayer) -> StoredLayer:
    blobs = list(layer.blobs)
    for i, axes in enumerate(_AXES.get(layer.type, ())[: len(blobs)]):
        blobs[i] = replace(blobs[i], shape=without_padding(blobs[i].shape, axes))
    return StoredLayer(layer.name, layer.type, blobs)


# Weights fitted to a net.


class Shaped(Protocol):
    """Anything with a shape."""

    @property
    def shape(self) -> Shape: ...


class NetLayer(Protocol):
    """A layer as a Net has it: its type and its blobs."""

    @property
    def type(self) -> str: ...
    @property
    def blobs(self) -> Sequence[Shaped]: ...


@dataclass
class Fit:
    """The layers of a net that a file has, in the net's order and shapes; the rest as text.

    missing: layers that only the net has. mismatched: layers whose blobs differ.
    left_over: layers that only the file has. cast: fully connected layers that were made
    convolutional.
    """

    layers: list[StoredLayer] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    cast: list[str] = field(default_factory=list)

    def check(self, path: str | os.PathLike) -> None:
        """Raise CaffeError, naming file `path`, if it does not have all layers of the net."""
        wrong = self.missing + self.mismatched
        if wrong:
            counts = [
                f'{len(names)} layer{"s" * (len(names) > 1)} {how}'
                for names, how in ((self.missing, 'missing'), (self.mismatched, 'of other shapes'))
                if names
            ]
            raise CaffeError(
                f'{path}: does not fit the net: {", ".join(counts)}, first {wrong[0]}; is it the '
                'file of another net, or of other classes?'
            )


def fit(
    layers: Sequence[StoredLayer], net: Mapping[str, NetLayer], fully_conv: bool = False
) -> Fit:
    """Match a file's layers with those of a net (from find_owners) by name, blob for blob.

    Shapes may differ by the 1s with which old files pad them. With `fully_conv` the
    O x (I*H*W) weights of a fully connected layer may become O x I x H x W ones of a
    convolution: the counts agree and the values stay in C order.
    """
    result = Fit()
    given = {layer.name: layer for layer in layers}
    for name, own in net.items():
        if not own.blobs:
            continue
        shapes = [blob.shape for blob in own.blobs]
        layer = given.pop(name, None)
        if layer is None:
            result.missing.append(f'{name}: {_shapes(shapes)}')
            continue
        found = [blob.shape for blob in layer.blobs]
        plain = len(found) == len(shapes) and all(map(_same, found, shapes))
        cast = not plain and own.type == 'Convolution' and _castable(found, shapes)
        if cast and fully_conv:
            result.cast.append(f'{name}: {_shapes(found)} to {_shapes(shapes)}')
        elif not plain:
            hint = '; the counts agree: --fully-conv casts it' if cast else ''
            result.mismatched.append(
                f'{name}: expected {_shapes(shapes)}, found {_shapes(found)}{hint}'
            )
            continue
        blobs = [replace(blob, shape=shape) for blob, shape in zip(layer.blobs, shapes)]
        result.layers.append(StoredLayer(name, own.type, blobs))
    result.left_over += [
        f'{name}: {_shapes([blob.shape for blob in layer.blobs])}' for name, layer in given.items()
    ]
    return result


def _castable(found: Sequence[Shape], shapes: Sequence[Shape]) -> bool:
    """Return whether blobs of a fully connected layer have the counts of a convolution."""
    if len(found) != len(shapes):
        return False
    outputs, *window = shapes[0]
    dense = (outputs, math.prod(window))
    return _same(found[0], dense) and all(map(_same, found[1:], shapes[1:]))


def _same(found: Shape, shape: Shape) -> bool:
    return without_padding(found, len(shape)) == shape


def _shapes(shapes: Sequence[Shape]) -> str:
    return ', '.join(map(format_shape, shapes))
