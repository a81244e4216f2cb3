"""Stretches of a net in training: layers in a row that nobody looks between.

A stretch is computed as one differentiable function, in channels last, with the bands of its
padding cut (see bands). What its blobs hold can be made whole at any time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from caffe_port.blob import Shape
from caffe_port.building import Node
from caffe_port.errors import CaffeError
from caffe_port.ops.base import Op
from caffe_port.plan import bands, steps
from caffe_port.plan.areas import Window
from caffe_port.plan.bands import Axis, Bands, Cut
from caffe_port.plan.lines import filter_windows, is_sliding_pooling, pooling_windows
from caffe_port.plan.steps import Room
from caffe_port.plan.switch import covers, is_recomputing, is_untouched

# While nets recompute, a layer of so many weights is a stretch of its own: their diff is then not
# in memory together with the blobs of others.
MANY_WEIGHTS = 2**24
# A stretch of fewer multiply-adds in all, or for a value of its blobs, runs layer by layer: what
# narrow layers save in arithmetic they lose in strips.
LEAST, LEAST_PER_VALUE = 2**29, 280


class Step(NamedTuple):
    """A layer of a stretch, with the ReLU that follows it in place, if any."""

    node: Node
    relu: Node | None
    windows: tuple[Window, Window]

    @property
    def is_convolution(self) -> bool:
        return self.node.type == 'Convolution'


@dataclass
class Made:
    """A blob of a stretch, as it was computed, and the bands that are left out of it."""

    name: str
    values: Tensor
    bands: Bands

    def whole(self) -> Tensor:
        """Return the blob, contiguous, in memory of its own."""
        return bands.expand(self.values, self.bands).contiguous()


class _Layout(NamedTuple):
    """How much of each step's top is cut, and what is put back behind it."""

    pads: tuple[int, ...]  # of the first layer: left, right, above, below
    tops: list[Bands]
    inserts: list[Bands]
    shapes: list[Shape]  # of the whole blobs
    work: int  # multiply-adds, layer by layer


class Stretch:
    """Layers `numbers` of a net, as one function of their bottom: a tape.Part."""

    def __init__(self, numbers: Sequence[int], nodes: Sequence[Node]):
        self.numbers, self.nodes = numbers, nodes
        self.steps = _steps(nodes)
        first, last = nodes[0], nodes[-1]
        self.bottom, self.top = first.bottoms[0], last.tops[0]
        self.bottoms, self.tops, self.reads, self.writes = (
            [self.bottom],
            [self.top],
            first.reads,
            last.writes,
        )
        self.propagate, self.need_backward = first.propagate, last.need_backward
        # Those whose values nobody sees unless they are asked for, and which backward reaches.
        self.inner = [step.node.tops[0] for step in self.steps[:-1]]
        self.inner_with_diffs = [
            name for name, step in zip(self.inner, self.steps[1:]) if step.node.propagate[0]
        ]
        self._layouts: dict[Shape, _Layout] = {}

    def blobs(self) -> list[torch.nn.Parameter]:
        """Return the parameters of all layers, once each."""
        return list({id(p): p for node in self.nodes for p in node.op.blobs()}.values())

    def is_untouched(self) -> bool:
        return all(is_untouched(node.op) for node in self.nodes)

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Put the first layer's name and type into errors of the block."""
        with self.nodes[0].named_in_errors():
            yield

    def may_take(self, bottom: Tensor) -> bool:
        """Return whether a bottom fits the layers, by themselves, and is worth a plan."""
        if not covers((bottom, *self.blobs())) or not self.is_untouched():
            return False
        if bottom.dim() != 4 or bottom.shape[1] != self.nodes[0].op.inputs:
            return False
        try:
            layout = self._layout(tuple(bottom.shape))
        except CaffeError:
            return False  # a layer refuses its bottom: run by itself it says why
        values = sum(math.prod(shape) for shape in layout.shapes)
        return layout.work >= max(LEAST, LEAST_PER_VALUE * values)

    def inner_shapes(self, bottom: Shape) -> dict[str, Shape]:
        """Return the shapes of the blobs inside, by name, for a bottom of this shape."""
        return dict(zip(self.inner, self._layout(bottom).shapes))

    def rooms(self) -> list[Room]:
        """Return memory for the blobs inside, for `compute`."""
        return [Room() for _ in self.inner]

    def compute(
        self, bottom: Tensor, made: list[Made] | None = None, rooms: Sequence[Room] | None = None
    ) -> Tensor:
        """Return the top, contiguous; append what the blobs inside hold to `made`.

        With rooms, these are overwritten by the next call with the same ones. While nets
        recompute (see switch), nothing is kept for gradients and nothing appended.
        """
        if is_recomputing() and torch.is_grad_enabled():
            return self._compute_sparingly(bottom)
        rooms = self.rooms() if rooms is None else rooms
        layout, x = self._start(bottom)
        for i, step in enumerate(self.steps):
            x = self._run(i, x, layout, rooms[i] if i < len(rooms) else Room())
            if made is not None and i < len(self.inner):
                made.append(Made(step.node.tops[0], x.detach(), layout.tops[i]))
            x = _insert(x, layout.inserts[i])
        return self._finish(x)

    def _compute_sparingly(self, bottom: Tensor) -> Tensor:
        """Do as `compute`, but keep no blobs for the gradients: backward computes them again.

        Kept are the bottom and the tops of layers with a stride, which are small. Backward raises
        CaffeError if what it computes again is something else: the weights have changed.
        """
        layout, x = self._start(bottom)
        sums: dict[int, int] = {}

        def run(first: int, last: int, x: Tensor) -> Tensor:
            for i in range(first, last):
                x = _insert(self._run(i, x, layout, Room()), layout.inserts[i])
            found = int(x.detach().view(torch.int32).sum(dtype=torch.int32))
            if found != sums.setdefault(last, found):
                raise CaffeError(
                    f'{self.steps[first].node.name} to {self.steps[last - 1].node.name}: the '
                    'weights have changed since forward, and backward computes blobs again: '
                    'change them after backward, or call set_recompute(False)'
                )
            return x

        first = 0
        for last, step in enumerate(self.steps, 1):
            if last == len(self.steps) or any(window.stride > 1 for window in step.windows):
                with set_checkpoint_early_stop(False):  # run to its end, to compare
                    x = checkpoint(
                        run, first, last, x, use_reentrant=False, preserve_rng_state=False
                    )
                first = last
        return self._finish(x)

    def _start(self, bottom: Tensor) -> tuple[_Layout, Tensor]:
        """Return the layout for a bottom, and the bottom with what is left of its padding."""
        layout = self._layout(tuple(bottom.shape))
        x = bottom.contiguous(memory_format=torch.channels_last)
        return layout, F.pad(x, layout.pads) if any(layout.pads) else x

    def _run(self, i: int, x: Tensor, layout: _Layout, room: Room) -> Tensor:
        step = self.steps[i]
        pad = (0, 0) if i == 0 else step.node.op.pad if step.is_convolution else None
        masks = i > 0 and self.steps[i - 1].relu is not None
        if pad is None:
            kernel, stride, _ = step.node.op.windows
            return steps.MaxPooling.apply(x, kernel, stride, step.node.op.ceil, masks)
        geometry = steps.Geometry.of(step.node.op, relu=step.relu is not None, masks=masks)
        geometry = geometry._replace(pad=pad)
        with step.node.named_in_errors():
            return steps.convolve(x, step.node.op, geometry, room)

    def _finish(self, x: Tensor) -> Tensor:
        return steps.Masked.apply(x) if self.steps[-1].relu is not None else x.contiguous()

    def _layout(self, shape: Shape) -> _Layout:
        layout = self._layouts.get(shape)  # which another thread may forget
        if layout is None:
            layout = self._new_layout(shape)
            if len(self._layouts) > 64:
                self._layouts = {}
            self._layouts[shape] = layout
        return layout

    def _new_layout(self, shape: Shape) -> _Layout:
        bottom = shape
        axes: tuple[list[Axis], list[Axis]] = [], []
        shapes: list[Shape] = []
        work = 0
        now = [Axis.of_image(size) for size in bottom[2:]]
        for step in self.steps:
            with step.node.named_in_errors():
                (shape,) = step.node.op.top_shapes(shape)
            shapes.append(shape)
            if step.is_convolution:
                work += shape[0] * step.node.op.weight.numel() * shape[2] * shape[3]
            now = [a.after(w, size) for a, w, size in zip(now, step.windows, shape[2:])]
            for found, axis in zip(axes, now):
                found.append(axis)
        cuts = [bands.cuts(axis) for axis in axes]
        first = self.steps[0].node.op.pad
        pads: list[int] = []
        for pad, cut in zip(reversed(first), reversed(cuts)):
            pads += [pad - cut[0].before, pad - cut[0].behind]  # columns first, as F.pad takes them
        tops: list[Bands] = []
        inserts: list[Bands] = []
        for i in range(len(self.steps)):
            tops.append(tuple(axis[i].bands(cut[i]) for axis, cut in zip(axes, cuts)))
            following = [cut[i + 1] if i + 1 < len(cut) else Cut(0, 0) for cut in cuts]
            inserts.append(
                tuple(axis[i].inserts(cut[i], to) for axis, cut, to in zip(axes, cuts, following))
            )
        return _Layout(tuple(pads), tops, inserts, shapes, work)


def _insert(x: Tensor, inserts: Bands) -> Tensor:
    return bands.Expand.apply(x, inserts) if any(inserts) else x


def _steps(nodes: Iterable[Node]) -> list[Step]:
    found: list[Step] = []
    for node in nodes:
        if node.type == 'ReLU':
            found[-1] = found[-1]._replace(relu=node)
        else:
            windows = filter_windows if node.type == 'Convolution' else pooling_windows
            found.append(Step(node, None, windows(node.op)))
    return found


def _fits(node: Node, before: Node | None) -> bool:
    """Return whether a layer may be part of a stretch, behind another or at its head."""
    op: Op = node.op
    if len(node.bottoms) != 1 or len(node.tops) != 1 or any(node.loss_weights):
        return False
    if len(op.param.propagate_down) or not type(op).__module__.startswith('caffe_port.ops.'):
        return False
    if node.type == 'Convolution':
        # PyTorch 2.13 crashes on some 1 x 1 kernels that pad or jump, with channels last.
        plain = op.pad == (0, 0) and op.stride == op.dilation == (1, 1)
        fits = plain or min(op.kernel) > 1
        return fits and op.axis == 1 and op.spatial == 2 and node.tops != node.bottoms
    if before is None:
        return False
    if node.type == 'ReLU':
        return not op.slope and node.tops == node.bottoms and before.type == 'Convolution'
    return node.type == 'Pooling' and is_sliding_pooling(op) and node.tops != node.bottoms


def _is_large(node: Node) -> bool:
    """Return whether a layer has to be a stretch of its own."""
    return is_recomputing() and any(p.numel() >= MANY_WEIGHTS for p in node.op.blobs())


def find(nodes: Sequence[Node], apart: Collection[str] = ()) -> list[Stretch]:
    """Return the stretches of a net, as long as they can be.

    Blobs of the names `apart`, those that nobody reads, and those that two layers read are whole:
    a stretch ends with them.
    """
    readers: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        for value in node.reads:
            readers.setdefault(value, []).append(i)
    found, taken = [], set()
    for i, node in enumerate(nodes):
        if i in taken or not _fits(node, None):
            continue
        numbers = [i]
        while True:
            last = nodes[numbers[-1]]
            following = readers.get(last.writes[0], [])
            if len(following) != 1 or not _fits(nodes[following[0]], last):
                break
            inside = nodes[following[0]].tops == last.tops
            if not inside and (last.tops[0] in apart or _is_large(nodes[following[0]])):
                break
            if not inside and any(_is_large(nodes[number]) for number in numbers):
                break
            numbers += following
        taken.update(numbers)
        found.append(Stretch(numbers, [nodes[n] for n in numbers]))
    return found
