"""Find which pixels of a picture an output of a net depends on.

A pixel of an output depends on a window of the picture, its cone. Walked back from the output
through each layer's kernel, stride and padding, an interval of output pixels becomes the interval
of picture pixels that they depend on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from caffe_port.building import Node
from caffe_port.coord_map import UndefinedMapException, coord_map, window
from caffe_port.module import NetModule
from caffe_port.net_spec import Function
from caffe_port.proto.caffe_pb2 import LayerParameter, LRNParameter

# Layers that keep places, as coord_map sees them, but look at all of the picture.
_LOOK_EVERYWHERE = ('MVN',)


class _Declared(Function):
    """A layer of a NetParameter, as coord_map reads the layers of a NetSpec."""

    def __init__(self, layer: LayerParameter) -> None:
        self._layer = layer
        super().__init__(layer.type, (), {'name': layer.name})

    def settings(self) -> LayerParameter:
        return self._layer


class _Window(NamedTuple):
    """What a layer's pixel y reads of its bottom, on one axis.

    Pixels stride * y - pad to stride * y - pad + extent - 1; of a Deconvolution, the same with
    bottom and top exchanged.
    """

    stride: int
    extent: int
    pad: int
    exchanged: bool
    scale: Fraction  # of the layer's coordinate map

    def read(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and last pixel that the pixels from `first` to `last` read."""
        stride, extent, pad = self.stride, self.extent, self.pad
        if self.exchanged:
            return -((extent - 1 - pad - first) // stride), (last + pad) // stride
        return stride * first - pad, stride * last - pad + extent - 1


class Cones:
    """The dependence of a net's outputs on the pixels of its inputs.

    Raises UndefinedMapException, naming the layer, where an output depends on the whole picture or
    has another scale than the picture.
    """

    def __init__(self, module: NetModule, outputs: Sequence[str]) -> None:
        self._nodes: list[tuple[Node, list[tuple[_Window, _Window]]]] = []
        written = {
            name: value for node in module.nodes for name, value in zip(node.tops, node.writes)
        }
        self._wanted = [written[name] for name in outputs]
        scales: dict[int, tuple[Fraction, Fraction]] = {}
        needed = _needed(module, self._wanted)
        for node in module.nodes:
            if not needed & set(node.writes):
                continue
            if node.type == 'Input':
                scales.update(dict.fromkeys(node.writes, (Fraction(1), Fraction(1))))
                continue
            windows = _windows(node)
            mapped = list(zip(_mapped(node), windows * len(node.reads)))
            own = {
                tuple(before * on_axis.scale for before, on_axis in zip(scales[value], pair))
                for value, pair in mapped
            }
            if len(own) != 1:
                raise UndefinedMapException(f'{node.name} ({node.type}): bottoms of unequal scales')
            high, wide = own.pop()
            scales.update(dict.fromkeys(node.writes, (high, wide)))
            self._nodes.append((node, [pair for _, pair in mapped]))
        for name, value in zip(outputs, self._wanted):
            if scales[value] != (1, 1):
                raise UndefinedMapException(f'output {name}: not of the scale of the picture')
        self._inputs = {
            value for node in module.nodes if node.type == 'Input' for value in node.writes
        }
        # A shift of the picture by this many pixels moves every blob by whole pixels.
        self.strides = [
            math.lcm(*(scale[axis].denominator for scale in scales.values())) for axis in (0, 1)
        ]

    def read(self, axis: int, first: int, last: int) -> tuple[int, int]:
        """Return the first and last row (axis 0) or column (1) of the picture that the output's
        rows or columns from `first` to `last` depend on, as if the picture had no edges.
        """
        wanted = dict.fromkeys(self._wanted, (first, last))
        found = first, last
        for node, windows in reversed(self._nodes):
            reached = [wanted[value] for value in node.writes if value in wanted]
            if not reached:
                continue
            low, high = _hull(reached)
            for value, pair in zip(_mapped(node), windows):
                interval = pair[axis].read(low, high)
                wanted[value] = _hull([wanted.get(value, interval), interval])
                found = _hull([found, wanted[value]]) if value in self._inputs else found
        return found


def _hull(intervals: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return min(first for first, _ in intervals), max(last for _, last in intervals)


def _mapped(node: Node) -> list[int]:
    """Return the bottoms whose pixels the top is made of; Crop's second gives a size only."""
    return node.reads[:1] if node.type == 'Crop' else node.reads


def _needed(module: NetModule, wanted: Sequence[int]) -> set[int]:
    """Return the values that the values `wanted` are computed from, and themselves."""
    needed = set(wanted)
    for node in reversed(module.nodes):
        if needed & set(node.writes):
            needed.update(_mapped(node))
    return needed


def _windows(node: Node) -> list[tuple[_Window, _Window]]:
    """Return the layer's window on both axes, in a list of one."""
    layer = node.op.param
    declared = _Declared(layer)
    whole = (
        node.type in _LOOK_EVERYWHERE
        or (node.type == 'Softmax' and layer.softmax_param.axis not in (1, -3))
        or (
            node.type == 'BatchNorm'
            and layer.batch_norm_param.HasField('use_global_stats')
            and not layer.batch_norm_param.use_global_stats
        )
        or (node.type in ('Scale', 'Bias') and len(node.bottoms) > 1)
    )
    if whole:
        raise UndefinedMapException(f'{declared}: a pixel depends on the whole picture')
    mapped = coord_map(declared)
    if node.type in ('Convolution', 'Deconvolution', 'Pooling', 'Im2col'):
        _, stride, extent, pad = window(declared)
        on_axes = [
            [int(part[min(axis, len(part) - 1)]) for axis in (0, 1)]
            for part in (stride, extent, pad)
        ]
    elif node.type == 'LRN' and layer.lrn_param.norm_region == LRNParameter.WITHIN_CHANNEL:
        size = layer.lrn_param.local_size
        on_axes = [[1, 1], [size, size], [size // 2, size // 2]]
    else:
        on_axes = [[1, 1], [1, 1], [_offset(node, axis) for axis in (0, 1)]]
    scales = [mapped.scale[min(axis, len(mapped.scale) - 1)] for axis in (0, 1)]
    high, wide = (
        _Window(stride, extent, pad, node.type == 'Deconvolution', scale)
        for stride, extent, pad, scale in zip(*on_axes, scales)
    )
    return [(high, wide)]


def _offset(node: Node, axis: int) -> int:
    """Return minus the offset of a Crop on an axis, 0 for other layers."""
    if node.type != 'Crop':
        return 0
    index = axis + 2 - node.op.axis
    return -node.op.offset[index] if index >= 0 else 0
