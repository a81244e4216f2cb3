"""A whole net computed for inputs of given shapes, each line only where others read it.

Two passes decide what is computed. Forward: which part of each blob depends on the image.
Backward: which part others read. A line computes what is in both; the rest of what is read
is the frame (see frames), or zeros outside the blob.

Blobs share one arena, whose places are used again once they are no longer read. Each place is as
large as what is read, so a padding is part of it and no layer copies its bottom to pad it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from caffe_port.blob import Shape
from caffe_port.building import Node
from caffe_port.errors import CaffeError
from caffe_port.module import NetModule
from caffe_port.plan import lines, strips
from caffe_port.plan.areas import Area, around, intersection, slices, union, whole
from caffe_port.plan.frames import Frame
from caffe_port.plan.kept import Kept

# A blob that the image reaches almost whole is computed whole.
_FRAME_PAYS = 0.8


def apart(tensor: Tensor, taken: set[int]) -> Tensor:
    """Return `tensor`, or a copy where its memory is among `taken`; add its memory to these."""
    if tensor.untyped_storage().data_ptr() in taken:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    taken.add(tensor.untyped_storage().data_ptr())
    return tensor


class Layout:
    """The lines for source blobs of given shapes, when blobs of `wanted` names are asked for."""

    def __init__(self, module: NetModule, sources: Mapping[str, Shape], wanted: Iterable[str]):
        self.sources: dict[str, int] = {}
        self.lines: list[lines.Line] = []
        self.shapes: dict[int, Shape] = {}
        self._same: dict[int, int] = {}  # values that a line hands on as they are
        last = {name: value for node in module.nodes for name, value in zip(node.tops, node.writes)}
        readers = [value for node in module.nodes for value in node.reads]
        for node in module.nodes:
            if node.bottoms:
                self._append(node, readers, {last[name] for name in wanted})
            else:
                self.sources.update(zip(node.tops, node.writes))
                self.shapes.update((v, sources[name]) for name, v in zip(node.tops, node.writes))
        self.values = {name: self._canonical(value) for name, value in last.items()}
        self.wanted = {name: self.values[name] for name in wanted}
        self._decide_areas()
        self.work = sum(line.before() for line in self.lines)
        self._decide_places()
        self._frames: dict[int, Frame] = {}
        self._frames_of = -1  # how often the weights had changed when these were made

    # Lines and shapes.

    def _append(self, node: Node, readers: list[int], wanted: set[int]) -> None:
        reads = [self._canonical(value) for value in node.reads]
        before = [self.shapes[value] for value in reads]
        if lines.is_nothing(node):
            self._hand_on(node, reads[0])
            return
        maker = next((line for line in self.lines if reads[0] in line.tops), None)
        if (
            isinstance(maker, lines.Convolution)
            and node.type == 'ReLU'
            and not node.op.slope
            and not maker.relu
            and readers.count(node.reads[0]) == 1
            and node.reads[0] not in wanted
        ):
            maker.relu = True
            self._hand_on(node, reads[0])
            return
        pointwise = lines.is_pointwise(node, before)
        with node.named_in_errors():
            tops = before[:1] if pointwise else node.op.top_shapes(*before)
            if any(0 in top for top in tops):
                raise CaffeError('a top is empty')
        self.shapes.update(zip(node.writes, tops))
        self.lines.append(lines.line_of(node, reads, before, tops))

    def _hand_on(self, node: Node, value: int) -> None:
        self._same[node.writes[0]] = value
        for line in self.lines:
            if value in line.tops:
                line.names.append(node.name)

    def _canonical(self, value: int) -> int:
        return self._same.get(value, value)

    # Computed areas.

    def _decide_areas(self) -> None:
        reached = {v: whole(self.shapes[v]) for v in self.sources.values() if self._is_image(v)}
        for line in self.lines:
            bottoms = [reached[value] for value in line.bottoms if value in reached]
            reached.update(
                (value, line.reached(bottoms)) for value in line.tops if self._is_image(value)
            )
        self.held: dict[int, Area] = {}  # what is read of each blob
        needed = set(self.wanted.values())
        for value in needed:
            if self._is_image(value):
                self.held[value] = whole(self.shapes[value])
        kept = []
        for line in reversed(self.lines):
            if not needed & set(line.tops):
                continue
            kept.append(line)
            if not line.is_whole:
                (top,) = line.tops
                line.is_partial = reached[top] != whole(self.shapes[top])
                line.settle(self._worth_computing(top, reached[top]))
            for value, area in zip(line.bottoms, self._reads(line)):
                needed.add(value)
                if area is not None:
                    self.held[value] = union(self.held.get(value, area), area)
        self.lines = kept[::-1]
        self._made = {line.tops[0]: line.area for line in self.lines if not line.is_whole}
        for value in self.held.keys() - self._made.keys():  # made whole, so held whole
            self._made[value] = whole(self.shapes[value])
            self.held[value] = union(self.held[value], self._made[value])

    def _reads(self, line: lines.Line) -> list[Area | None]:
        """Return what a line reads of each bottom; None for a blob that is not an image."""
        if not line.is_whole:
            return [*line.reads(line.area)]
        shapes = [self.shapes[value] for value in line.bottoms]
        return [whole(shape) if len(shape) == 4 else None for shape in shapes]

    def _worth_computing(self, value: int, reached: Area) -> Area:
        """Return the part of a blob to compute: what is read, where the image reaches it."""
        blob = whole(self.shapes[value])
        read = intersection(self.held[value], blob)
        area = intersection(read, reached)
        if not area.pixels:
            return Area(*(range(span.start, span.start) for span in read))
        return area if reached.pixels < _FRAME_PAYS * blob.pixels else read

    def shape_of(self, name: str) -> Shape:
        """Return the shape of a blob, whether it is computed or not."""
        return self.shapes[self.values[name]]

    def _is_image(self, value: int) -> bool:
        return len(self.shapes[value]) == 4

    def _is_framed(self, value: int) -> bool:
        """Return whether more of the blob is read than is computed."""
        read = intersection(self.held[value], whole(self.shapes[value]))
        return intersection(read, self._made[value]) != read

    # Places in memory.

    def _decide_places(self) -> None:
        """Give each blob that needs one a place in the arena, and free it after its last reader."""
        self._place: dict[int, int] = {}
        self._frees: list[list[int]] = [[] for _ in self.lines]
        last = {value: i for i, line in enumerate(self.lines) for value in line.bottoms}
        for value in self.wanted.values():
            last[value] = len(self.lines)
        taken: dict[int, tuple[int, int]] = {}
        self.size = 0
        makers: list[tuple[int, Iterable[int], bool]] = [(-1, self.sources.values(), True)]
        makers += [
            (i, line.tops, line.is_whole or not line.is_placed(line.area))
            for i, line in enumerate(self.lines)
        ]
        for i, values, own in makers:
            if i >= 0 and type(self.lines[i]) is lines.Crop:
                own = self.lines[i].bottoms[0] not in self._place  # else a view into the arena
            for value in values:
                if value in self.held and not (own and self.held[value] == self._made[value]):
                    start = self._first_gap(taken, self._length(value))
                    taken[value] = start, start + self._length(value)
                    self._place[value] = start
                    self.size = max(self.size, taken[value][1])
            if i >= 0:
                gone = [
                    value for value in {*self.lines[i].bottoms, *values} if last.get(value, i) == i
                ]
                self._frees[i] = gone
                for value in gone:
                    taken.pop(value, None)

    def _length(self, value: int) -> int:
        return math.prod(self.shapes[value][:2]) * self.held[value].pixels

    @staticmethod
    def _first_gap(taken: Mapping[int, tuple[int, int]], length: int) -> int:
        start = 0
        for low, high in sorted(taken.values()):
            if low - start >= length:
                break
            start = max(start, high)
        return start

    # The run.

    def watch(self, kept: Kept) -> None:
        """Watch the parameters that something is derived from."""
        for line in self.lines:
            line.watch(kept)

    def run(self, sources: Mapping[str, Tensor], arena: Tensor, kept: Kept) -> dict[str, Tensor]:
        """Compute the wanted blobs, and return them by name, whole and in memory of their own.

        arena: at least `size` floats, which nothing else uses meanwhile.
        """
        self.watch(kept)
        kept.refresh()
        if self._frames_of != kept.changes:
            self._frames, self._frames_of = {}, kept.changes
        values: dict[int, Tensor] = {}
        for name, value in self.sources.items():
            if value in self._place:
                place = self._memory(value, arena, values, kept)
                strips.copy(sources[name], place)
            else:
                values[value] = sources[name]
        for i, line in enumerate(self.lines):
            if line.is_whole:
                tops = line.compute(line.area, self._windows(line, values), None, kept)
                for value, top in zip(line.tops, tops):
                    if value in self._place:
                        self._memory(value, arena, values, kept).copy_(top)
                    else:
                        values[value] = top
            else:
                (value,) = line.tops
                placed = value in self._place
                out = self._memory(value, arena, values, kept) if placed else None
                if line.area.pixels:
                    (top,) = line.compute(line.area, self._windows(line, values), out, kept)
                    values.setdefault(value, top)
            for gone in self._frees[i]:
                values.pop(gone, None)
        taken = {tensor.untyped_storage().data_ptr() for tensor in sources.values()}
        return {
            name: apart(self._shown(values, value), taken) for name, value in self.wanted.items()
        }

    def _memory(self, value: int, arena: Tensor, values: dict[int, Tensor], kept: Kept) -> Tensor:
        """Take a blob's place in the arena, fill what surrounds its area, and return that."""
        held, made, start = self.held[value], self._made[value], self._place[value]
        batch, channels = self.shapes[value][:2]
        place = arena[start : start + self._length(value)]
        place = place.view(batch, len(held.rows), len(held.columns), channels).permute(0, 3, 1, 2)
        frame = self._frame(value, kept) if self._is_framed(value) else None

        def fill(part: Area) -> None:
            if frame is None:
                place[slices(part, held)] = 0
            else:
                frame.write(part, place[slices(part, held)])

        strips.run(fill, list(around(held, made)), short=True)
        values[value] = place
        return place[slices(made, held)]

    def _windows(self, line: lines.Line, values: Mapping[int, Tensor]) -> list[Tensor]:
        windows = []
        for value, area in zip(line.bottoms, self._reads(line)):
            window = values[value]
            if area is not None and area != self.held[value]:
                window = window[slices(area, self.held[value])]
            if line.is_whole and value in self._place:
                # A layer of any kind may hand on a view: it must not be one into the arena.
                window = window.clone(memory_format=torch.contiguous_format)
            windows.append(window)
        return windows

    def _whole(self, values: Mapping[int, Tensor], value: int) -> Tensor:
        tensor = values[value]
        if value in self._place:
            tensor = tensor[slices(whole(self.shapes[value]), self.held[value])]
        return tensor

    def _shown(self, values: Mapping[int, Tensor], value: int) -> Tensor:
        tensor = self._whole(values, value)
        if value in self._place or not tensor.is_contiguous():
            return tensor.clone(memory_format=torch.contiguous_format)
        return tensor

    def _frame(self, value: int, kept: Kept) -> Frame:
        """Return the frame of a blob, computed from the frames of the blobs that its line reads."""
        if value in self._frames:
            return self._frames[value]
        maker = next((line for line in self.lines if value in line.tops), None)
        if maker is None or not maker.framed or not maker.is_partial:
            # Where the image does not reach, nothing depends on what it holds. Nor does anything
            # outside the image's reach on a blob that the image reaches whole.
            frame = Frame.of_zeros(self.shapes[value][1])
        else:
            bottoms = [self._frame(each, kept) for each in maker.bottoms]
            constant = maker.constant([bottom.constant for bottom in bottoms])
            frame = Frame(self.shapes[value][1], self.shapes[value][2:], constant)
            for area, out in frame.corners():
                windows = [b.crop(read) for b, read in zip(bottoms, maker.reads(area))]
                maker.compute(area, windows, out, kept)
        self._frames[value] = frame
        return frame
