"""Weights held against a net: what fits, what is missing, what is left over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from caffe_port.blob import shape_text
from caffe_port.files.stored import LayerBlobs, StoredBlob
from caffe_port.net import Net

Shape = tuple[int, ...]


@dataclass
class Fit:
    """The layers of a net that a file has, in the net's order and shapes; and the rest, in words.

    missing: layers of the net that the file has not. mismatched: layers that differ in
    their blobs. left_over: layers of the file that the net has not. cast: fully
    connected layers that were made convolutional.
    """

    layers: list[LayerBlobs] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    cast: list[str] = field(default_factory=list)


def fit(layers: Sequence[LayerBlobs], net: Net, fully_conv: bool = False) -> Fit:
    """Match layers with those of `net` by name, blob for blob.

    Shapes may differ by 1s in front, as old files have them. With `fully_conv` the
    O x (I*H*W) weights of a fully connected layer may become O x I x H x W ones of a
    convolution: the count agrees and the values stay in C order.
    """
    result = Fit()
    given = {layer.name: layer for layer in layers}
    for name, blobs in net.params.items():
        type_, shapes = net.layer_dict[name].type, [blob.shape for blob in blobs]
        layer = given.pop(name, None)
        if layer is None:
            result.missing.append(f'{name}: {_shapes(shapes)}')
            continue
        found = [blob.shape for blob in layer.blobs]
        plain = len(found) == len(shapes) and all(map(_same, found, shapes))
        cast = not plain and type_ == 'Convolution' and _castable(found, shapes)
        if cast and fully_conv:
            result.cast.append(f'{name}: {_shapes(found)} to {_shapes(shapes)}')
        elif not plain:
            hint = '; the counts agree: --fully-conv casts it' if cast else ''
            result.mismatched.append(
                f'{name}: expected {_shapes(shapes)}, found {_shapes(found)}{hint}'
            )
            continue
        result.layers.append(LayerBlobs(name, type_, _reshaped(layer.blobs, shapes)))
    result.left_over += [
        f'{name}: {_shapes([blob.shape for blob in layer.blobs])}' for name, layer in given.items()
    ]
    return result


def _castable(found: Sequence[Shape], shapes: Sequence[Shape]) -> bool:
    """Whether blobs are those of a fully connected layer that does what a convolution does."""
    if len(found) != len(shapes):
        return False
    weight, (outputs, *window) = _without_padding(found[0]), shapes[0]
    return weight == (outputs, math.prod(window)) and all(map(_same, found[1:], shapes[1:]))


def _same(found: Shape, shape: Shape) -> bool:
    return _without_padding(found) == _without_padding(shape)


def _without_padding(shape: Shape) -> Shape:
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


def _reshaped(blobs: Sequence[StoredBlob], shapes: Sequence[Shape]) -> list[StoredBlob]:
    return [
        blob if blob.shape == shape else replace(blob, shape=shape)
        for blob, shape in zip(blobs, shapes)
    ]


def _shapes(shapes: Sequence[Shape]) -> str:
    return ', '.join(map(shape_text, shapes))
