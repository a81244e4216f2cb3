"""Run a net on a picture of any size within a bound of memory, in tiles whose seams are exact.

A pixel of an output depends on a window of the picture, its cone. Walked back from the output
through each layer's kernel, stride and padding, an interval of output pixels becomes the interval
of picture pixels that they depend on. A tile is such an interval, cut at the picture's edges and
begun at a multiple of the net's total stride. Of a tile only those output pixels are kept whose
cones end inside it, or at an edge of the picture itself: they are computed from the same numbers,
on the same grid, as in the whole picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caffe_port.building import Node
from caffe_port.coord_map import UndefinedMapException, coord_map, window
from caffe_port.errors import CaffeError
from caffe_port.module import NetModule
from caffe_port.net_spec import Function
from caffe_port.proto.caffe_pb2 import LayerParameter, LRNParameter

# Layers that keep places, as coord_map sees them, but look at all of the picture.
_LOOK_EVERYWHERE = ('MVN',)
# More tiles on an axis are not tried: each would compute little else than its margins.
_MOST_PARTS = 64
# Layers whose kernels want their blobs in an order of their own.
_COPYING = ('Convolution', 'Deconvolution', 'LRN')
_ALLOCATED = 1.25
_CGROUP = 'memory.max', 'memory.current'


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
        written = {name: value for node in module.nodes for name, value in _tops(node)}
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


def _tops(node: Node) -> Iterator[tuple[str, int]]:
    return zip(node.tops, node.writes)


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


# Computing, with nothing kept that no later layer reads.


def compute(
    module: NetModule,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    look: Callable[[Node, Sequence[Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    """Return the named outputs; a blob is freed when the last layer that reads it is done.

    `look` is shown each layer with its tops.
    """
    module.flush()
    last_read = _last_reads(module, outputs)
    values: dict[int, Tensor] = {}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for number, node in enumerate(module.nodes):
            if node.type == 'Input':
                tops: Sequence[Tensor] = [inputs[name] for name in node.tops]
            else:
                tops = node.run(*[values[value] for value in node.reads])
            if look:
                look(node, tops)
            values.update(zip(node.writes, tops))
            found.update(zip(node.tops, tops))
            for value in (*node.reads, *node.writes):
                if last_read.get(value, number) <= number:
                    values.pop(value, None)
            found = {name: found[name] for name in outputs if name in found}
            del tops
    return found


def _last_reads(module: NetModule, outputs: Sequence[str]) -> dict[int, int]:
    """Return the number of the last layer that reads each value; the outputs are kept for ever."""
    last = {value: number for number, node in enumerate(module.nodes) for value in node.reads}
    kept = {
        value: len(module.nodes)
        for node in module.nodes
        for name, value in _tops(node)
        if name in outputs
    }
    return last | kept


def estimate(module: NetModule, size: tuple[int, int], outputs: Sequence[str]) -> int:
    """Return about how many bytes `compute` takes for a picture of height and width `size`.

    At the largest moment: the blobs that are there, and again what the layer reads and writes
    where it copies that into the order of its kernel, in blocks of 16 channels. The allocator
    takes _ALLOCATED times as much (measured on the CPU: 0.8 to 1.3 times).
    """
    given = {name: (*module.shapes[name][:2], *size) for name in module.inputs}
    shapes = module.infer_shapes(given)
    last_read = _last_reads(module, outputs)
    there: dict[int, int] = {}
    most = 0
    for number, node in enumerate(module.nodes):
        there.update((value, _bytes_of(shapes[name])) for name, value in _tops(node))
        blobs = [*node.bottoms, *node.tops] if node.type in _COPYING else []
        copied = sum(_bytes_of(shapes[name], block=16) for name in blobs)
        most = max(most, sum(there.values()) + copied)
        for value in (*node.reads, *node.writes):
            if last_read.get(value, number) <= number:
                there.pop(value, None)
    return int(_ALLOCATED * most)


def _bytes_of(shape: Sequence[int], block: int = 1) -> int:
    """Return the bytes of a float32 blob whose channels are rounded up to a multiple of `block`."""
    channels = shape[1] if len(shape) > 1 else 1
    rest = math.prod(shape) // max(channels, 1)
    return 4 * rest * -(-channels // block) * block


# Tiles.


class Span(NamedTuple):
    """A part of an axis: the pixels to keep, and those of the picture to compute them from."""

    kept: slice
    read: slice


def cut(cones: Cones, axis: int, size: int, parts: int) -> list[Span]:
    """Cut an axis of `size` pixels into `parts` tiles."""
    ends = [size * part // parts for part in range(parts + 1)]
    tiles, stride = [], cones.strides[axis]
    for start, stop in zip(ends, ends[1:]):
        first, last = cones.read(axis, start, stop - 1)
        first = max(first, 0) // stride * stride
        tiles.append(Span(slice(start, stop), slice(first, min(last + 1, size))))
    return tiles


def plan(
    module: NetModule, size: tuple[int, int], outputs: Sequence[str], budget: int | None
) -> tuple[list[Span], list[Span]]:
    """Return the tiles of rows and of columns that take at most `budget` bytes at a time.

    Of those that do, the ones with the fewest pixels to compute.

    Raises CaffeError if none do.
    """
    whole = [[Span(slice(0, pixels), slice(0, pixels))] for pixels in size]
    needed = estimate(module, size, outputs)
    if budget is None or needed <= budget:
        return whole[0], whole[1]
    where = f'a picture of {size[0]} x {size[1]} takes about {format_memory(needed)}'
    try:
        cones = Cones(module, outputs)
    except UndefinedMapException as error:
        raise CaffeError(
            f'{where}, --max-memory is {format_memory(budget)}, and this net cannot be computed in '
            f'tiles: {error}'
        ) from error

    @cache
    def tiles(axis: int, parts: int) -> list[Span]:
        return cut(cones, axis, size[axis], parts)

    @cache
    def needs(high: int, wide: int) -> int:
        return estimate(module, (high, wide), outputs)

    best: tuple[int, list[Span], list[Span]] | None = None
    least = needed
    for down in range(1, min(_MOST_PARTS, size[0]) + 1):
        rows = tiles(0, down)
        for across in range(1, min(_MOST_PARTS, size[1]) + 1):
            columns = tiles(1, across)
            cost = sum(map(_length, rows)) * sum(map(_length, columns))
            if best and cost >= best[0]:
                break
            takes = needs(max(map(_length, rows)), max(map(_length, columns)))
            least = min(least, takes)
            if takes <= budget:
                best = cost, rows, columns
                break
    if best is None:
        raise CaffeError(
            f'{where}, and the smallest tiles {format_memory(least)} at a time; '
            f'--max-memory is {format_memory(budget)}'
        )
    return best[1], best[2]


def _length(tile: Span) -> int:
    return tile.read.stop - tile.read.start


def label(
    module: NetModule,
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    device: torch.device,
    budget: int | None = None,
) -> dict[str, np.ndarray]:
    """Return the best class of every pixel, H x W uint8, by each of the outputs.

    The inputs are 1 x C x H x W float32. Memory is bounded by `budget` bytes, without it not.

    Raises CaffeError if a score is NaN or infinite, naming the output and the first such layer.
    """
    size = next(iter(inputs.values())).shape[2:]
    found = {name: np.empty(size, np.uint8) for name in outputs}
    rows, columns = plan(module, size, outputs, budget)
    for row in rows:
        for column in columns:
            part = {
                name: torch.from_numpy(np.ascontiguousarray(array[:, :, row.read, column.read])).to(
                    device
                )
                for name, array in inputs.items()
            }
            for name, scores in compute(module, part, outputs).items():
                kept = scores[0, :, _within(row), _within(column)]
                best, classes = kept.max(0)
                if not best.isfinite().all():
                    raise CaffeError(_explain(module, part, name, int((~best.isfinite()).sum())))
                found[name][row.kept, column.kept] = classes.to(torch.uint8).cpu().numpy()
    return found


def _within(tile: Span) -> slice:
    """Return where in a tile's output the pixels to keep are."""
    return slice(tile.kept.start - tile.read.start, tile.kept.stop - tile.read.start)


def _explain(module: NetModule, inputs: Mapping[str, Tensor], output: str, count: int) -> str:
    """Name the first layer whose tops are not finite."""
    bad = []

    def look(node: Node, tops: Sequence[Tensor]) -> None:
        if not all(top.isfinite().all() for top in tops):
            bad.append(f'{node.name} ({node.type})')

    compute(module, inputs, [output], look)
    first = f'; the first layer with such values is {bad[0]}' if bad else ''
    return f'output {output}: NaN or infinite scores at {count} pixels{first}'


def format_memory(count: float) -> str:
    """Return a number of bytes in the unit that suits it: 1.5 GiB."""
    for unit in ('bytes', 'KiB', 'MiB'):
        if count < 1024:
            return f'{count:.3g} {unit}'
        count /= 1024
    return f'{count:.3g} GiB'


def parse_bytes(text: str) -> int:
    """Return how many bytes a text such as 2G, 1.5GiB, 800M or 4096 means.

    Raises ValueError for any other text.
    """
    found = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?', text.strip().lower())
    if not found or not float(found[1]):
        raise ValueError(f'{text!r} is not an amount of memory such as 2G')
    return int(float(found[1]) * 1024 ** ' kmgt'.index(found[2] or ' '))


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory is free on a device; None where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    free = []
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path('/proc/meminfo').read_text().splitlines()
        known = next(line for line in lines if line.startswith('MemAvailable'))
        free.append(1024 * int(known.split()[1]))
    with suppress(OSError, ValueError):  # a container's own limit
        limit, used = (Path('/sys/fs/cgroup', name).read_text() for name in _CGROUP)
        free.append(int(limit) - int(used))
    return max(min(free), 0) if free else None
