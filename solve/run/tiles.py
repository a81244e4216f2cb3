"""Run a net on a picture of any size within a bound of memory, in tiles without seams.

A tile is an interval of the picture's rows and one of its columns, cut at the picture's edges and
begun at a multiple of the net's total stride. Of its output only those pixels are kept whose
cones (see cones.py) end inside the tile, or at an edge of the picture: they are computed from the
same numbers, on the same grid, as in the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caffe_port import lowered
from caffe_port.building import Node
from caffe_port.coord_map import UndefinedMapException
from caffe_port.errors import CaffeError
from caffe_port.module import NetModule
from solve.run.cones import Cones
from solve.run.free_memory import format_memory
from solve.run.transfer import Download

# More tiles on an axis are not tried: each would compute little else than its margins.
_MOST_PARTS = 64
# Layers whose kernels want their blobs in an order of their own.
_COPYING = ('Convolution', 'Deconvolution', 'LRN')
_ALLOCATED = 1.25


# Computing, with nothing kept that no later layer reads.


def compute(
    module: NetModule,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    look: Callable[[Node, Sequence[Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    """Return the named outputs, by plan where there is one.

    Else layer by layer: a blob is freed when the last layer that reads it is done. `look` is
    shown each layer with its tops.
    """
    module.flush()
    if module.planner and not look:
        with torch.no_grad():
            planned = module.planner(inputs, outputs)
        if planned is not None:
            return planned
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
    return {name: lowered.raised(scores) for name, scores in found.items()}


def _last_reads(module: NetModule, outputs: Sequence[str]) -> dict[int, int]:
    """Return the number of the last layer that reads each value; the outputs are kept for ever."""
    last = {value: number for number, node in enumerate(module.nodes) for value in node.reads}
    kept = {
        value: len(module.nodes)
        for node in module.nodes
        for name, value in zip(node.tops, node.writes)
        if name in outputs
    }
    return last | kept


def estimate(module: NetModule, size: tuple[int, int], outputs: Sequence[str]) -> int:
    """Return about how many bytes `compute` takes for a picture of height and width `size`.

    The peak over all layers: the blobs in memory, and a second time what the layer reads and
    writes, if its kernel copies these into an order of its own, in blocks of 16 channels. The
    allocator takes _ALLOCATED times as much (measured on the CPU: 0.8 to 1.3 times).
    """
    given = {name: (*module.shapes[name][:2], *size) for name in module.inputs}
    shapes = module.infer_shapes(given)
    last_read = _last_reads(module, outputs)
    there: dict[int, int] = {}
    most = 0
    for number, node in enumerate(module.nodes):
        there.update(
            (value, _bytes_of(shapes[name])) for name, value in zip(node.tops, node.writes)
        )
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

    Of all such tilings, the one with the fewest pixels to compute.

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


class Tile(NamedTuple):
    """A part of a picture: its rows, its columns, and the net's inputs there."""

    rows: Span
    columns: Span
    inputs: dict[str, Tensor]


def tiles_of(
    module: NetModule, inputs: Mapping[str, Tensor], outputs: Sequence[str], budget: int | None
) -> Iterator[Tile]:
    """Yield the tiles of a picture; only one that fits into `budget` bytes is whole."""
    height, width = next(iter(inputs.values())).shape[2:]
    rows, columns = plan(module, (height, width), outputs, budget)
    for row in rows:
        for column in columns:
            part = {
                name: tensor[:, :, row.read, column.read].contiguous()
                for name, tensor in inputs.items()
            }
            yield Tile(row, column, part)


@dataclass
class Labels:
    """The best class of every pixel by output, on its way from the device that computes it."""

    found: Download
    outputs: Sequence[str]
    # At how many pixels scores are not finite, by a key for each output and tile; what to say then.
    checks: dict[str, Callable[[int], str]]

    def fetch(self) -> dict[str, np.ndarray]:
        """Wait for the labels and return them, H x W uint8.

        Raises CaffeError if a score is NaN or infinite, naming the output and the first such layer.
        """
        arrays = self.found.arrays()
        for key, explain in self.checks.items():
            if bad := int(arrays[key]):
                raise CaffeError(explain(bad))
        return {name: arrays[name] for name in self.outputs}


class Scored(NamedTuple):
    """Scores of an output, K x h x w, for some rows and columns of the picture.

    explain: says what is wrong, given at how many pixels scores are not finite.
    """

    output: str
    rows: slice
    columns: slice
    scores: Tensor
    explain: Callable[[int], str]


def collect(size: tuple[int, ...], parts: Iterable[Scored]) -> Labels:
    """Begin to find the best class of every pixel from scores; on a GPU this waits for nothing."""
    classes: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    checks: dict[str, Callable[[int], str]] = {}
    for output, rows, columns, scores, explain in parts:
        whole = classes.setdefault(output, scores.new_empty(size, dtype=torch.uint8))
        best, found = scores.max(0)
        whole[rows, columns] = found.to(torch.uint8)
        key = f'{output} {len(checks)}'
        counts[key], checks[key] = (~best.isfinite()).sum(), explain
    return Labels(Download({**classes, **counts}), [*classes], checks)


def label(
    module: NetModule,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    budget: int | None = None,
) -> Labels:
    """Begin to find the best class of every pixel, as `collect`.

    The inputs are 1 x C x H x W float32, on the net's device. `budget` bounds the memory; None
    means no bound.
    """

    def score() -> Iterator[Scored]:
        for tile in tiles_of(module, inputs, outputs, budget):
            for name, scores in compute(module, tile.inputs, outputs).items():
                kept = scores[0, :, _within(tile.rows), _within(tile.columns)]
                say = partial(explain, module, tile.inputs, name)
                yield Scored(name, tile.rows.kept, tile.columns.kept, kept, say)

    return collect(tuple(next(iter(inputs.values())).shape[2:]), score())


def _within(tile: Span) -> slice:
    """Return where in a tile's output the pixels to keep are."""
    return slice(tile.kept.start - tile.read.start, tile.kept.stop - tile.read.start)


def explain(module: NetModule, inputs: Mapping[str, Tensor], output: str, count: int) -> str:
    """Name the first layer whose tops are not finite."""
    bad = []

    def look(node: Node, tops: Sequence[Tensor]) -> None:
        if not all(top.isfinite().all() for top in tops):
            bad.append(f'{node.name} ({node.type})')

    compute(module, inputs, [output], look)
    first = f'; the first layer with such values is {bad[0]}' if bad else ''
    return f'output {output}: NaN or infinite scores at {count} pixels{first}'
