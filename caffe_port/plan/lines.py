"""The lines of a plan: layers, each computed where others need it.

A line knows which part of its top depends on the image, given those parts of its bottoms
(`reached`), what it reads for an area of its top (`reads`), and how it computes that area
from these windows. A window may extend beyond its blob: it has zeros there, so a line never
pads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.blob import Shape
from caffe_port.building import Node
from caffe_port.ops.base import Op
from caffe_port.plan import products, strips, upsampling, winograd
from caffe_port.plan.areas import Area, Window, common, intersection, shift, slices, union, whole
from caffe_port.plan.kept import Kept

# Layers that compute each pixel from the same pixel of each bottom, wherever it is.
_POINTWISE = frozenset(
    'AbsVal BNLL Clip ELU Eltwise Exp Log Power PReLU ReLU Sigmoid Swish TanH Threshold'.split()
)
# With fewer channels, Winograd's convolution does not pay.
LEAST_CHANNELS = 64
# Values in a strip of a top: it stays in the cache until its ReLU, or is written to its place.
_STRIP, _FEW_WEIGHTS = 2**19, 2**17


def is_nothing(node: Node) -> bool:
    """Return whether the layer hands its bottom on as it is."""
    return node.type == 'Dropout' and not node.op.training


def is_pointwise(node: Node, shapes: list[Shape]) -> bool:
    """Return whether each pixel of the top depends only on the same pixel of the bottoms."""
    if len(set(shapes)) != 1:
        return False
    if node.type == 'LRN':
        return not node.op.within
    if node.type == 'Scale':
        return len(shapes) == 1 and node.op.axis == 1 and node.op.weight.dim() <= 1
    return node.type in _POINTWISE


def method_of(op: Op, pixels: int) -> str:
    """Return the fastest method of a convolution, for this many pixels of its top."""
    plain = op.group == 1 and set(op.dilation) == {1}
    if plain and products.pays(op.weight, pixels):
        return 'product'
    slides = plain and op.kernel == (winograd.TAPS,) * 2 and op.stride == (1, 1)
    if slides and min(op.weight.shape[:2]) >= LEAST_CHANNELS:
        return 'winograd'
    return 'direct'


class Line:
    """A layer that needs its bottoms whole and makes its tops whole."""

    method = 'whole'
    framed = False  # makes a frame of frames
    is_whole = True
    area = Area(range(0), range(0))  # what is computed, unless all is
    is_partial = False  # the image does not reach all of the top

    def __init__(self, node: Node, reads: list[int], shapes: list[Shape], tops: list[Shape]):
        self.node, self.bottoms, self.tops = node, reads, list(node.writes)
        self.shapes, self.top_shapes = shapes, tops
        self.names = [node.name]

    def reached(self, bottoms: list[Area]) -> Area:
        """Return the part of the top that depends on the image, given those of the bottoms."""
        return whole(self.top_shapes[0])

    def constant(self, bottoms: list[Area]) -> Area:
        """Return rows and columns of the top that are equal where those of the bottoms are."""
        raise NotImplementedError

    def settle(self, area: Area) -> None:
        """Set what is computed."""
        self.area = area

    def reads(self, area: Area) -> list[Area]:
        """Return the part of each bottom that is read for an area of the top."""
        raise NotImplementedError

    def watch(self, kept: Kept) -> None:
        """Watch the parameters that something is derived from."""

    def examine(self, kept: Kept) -> None:
        """Choose the method that the weights allow, as they are now."""

    def is_placed(self, area: Area) -> bool:
        """Return whether `compute` must be given the memory of the top."""
        return False

    def compute(
        self, area: Area, windows: list[Tensor], out: Tensor | None, kept: Kept
    ) -> tuple[Tensor, ...]:
        """Return the tops, or the area of the top; where `out` is given, in that memory."""
        return self.node.run(*windows)

    def before(self) -> int:
        """Return the multiply-adds of the layer by itself."""
        return 0

    def after(self) -> int:
        """Return the multiply-adds of the line."""
        return self.before()

    def _watch_all(self, kept: Kept) -> None:
        for name, parameter in zip(self.node.op.blob_names, self.node.op.blobs()):
            kept.watch(f'{self.node.name}.{name}', parameter)


def _put(top: Tensor, out: Tensor | None) -> tuple[Tensor, ...]:
    return (top if out is None else out.copy_(top),)


class Pointwise(Line):
    """A layer that computes each pixel from the same pixel of its bottoms."""

    method, framed, is_whole = 'pointwise', True, False

    def reached(self, bottoms: list[Area]) -> Area:
        area, *others = bottoms
        for other in others:
            area = union(area, other)
        return area

    def constant(self, bottoms: list[Area]) -> Area:
        area = whole(self.top_shapes[0])
        for other in bottoms:
            area = intersection(area, other)
        return area

    def reads(self, area: Area) -> list[Area]:
        return [area] * len(self.bottoms)

    def watch(self, kept: Kept) -> None:
        self._watch_all(kept)

    def compute(self, area, windows, out, kept) -> tuple[Tensor, ...]:
        return _put(self.node.run(*windows)[0], out)


class _Sliding(Line):
    """A layer that slides a window over its bottom."""

    framed, is_whole = True, False
    windows: tuple[Window, Window]

    def reached(self, bottoms: list[Area]) -> Area:
        axes = zip(self.windows, bottoms[0], self.top_shapes[0][2:])
        return Area(*(window.reached_by(span, size) for window, span, size in axes))

    def constant(self, bottoms: list[Area]) -> Area:
        axes = zip(self.windows, bottoms[0], self.top_shapes[0][2:])
        return Area(*(window.within(span, size) for window, span, size in axes))


def filter_windows(op: Op) -> tuple[Window, Window]:
    """Return how a Convolution, or upside down a Deconvolution, slides on each axis."""
    rows, columns = (
        Window(d * (k - 1) + 1, s, p)
        for k, s, p, d in zip(op.kernel, op.stride, op.pad, op.dilation)
    )
    return rows, columns


def pooling_windows(op: Op) -> tuple[Window, Window]:
    """Return how a Pooling slides on each axis."""
    rows, columns = map(Window, *op.windows)
    return rows, columns


def is_sliding_pooling(op: Op) -> bool:
    """Return whether a Pooling takes maxima over windows without gaps between or padding."""
    if not op.is_max or op.is_global or op.windows.pad != (0, 0):
        return False
    return all(stride <= k for k, stride in zip(op.windows.kernel, op.windows.stride))


class Convolution(_Sliding):
    """A convolution, with the ReLU that follows it."""

    def __init__(self, node: Node, *args):
        super().__init__(node, *args)
        self.relu, self.windows = False, filter_windows(node.op)

    def method_for(self, area: Area) -> str:
        return method_of(self.node.op, self.top_shapes[0][0] * area.pixels)

    def settle(self, area: Area) -> None:
        self.area, self.method = area, self.method_for(area)

    def reads(self, area: Area) -> list[Area]:
        read = [w.read_for(span) for w, span in zip(self.windows, area)]
        if self.method_for(area) == 'winograd':  # whole tiles
            read = [
                range(one.start, one.start + winograd.reach(len(span))) if span else one
                for one, span in zip(read, area)
            ]
        return [Area(*read)]

    def watch(self, kept: Kept) -> None:
        if self.method != 'product' or self.is_partial:
            self._watch_all(kept)

    def is_placed(self, area: Area) -> bool:
        return self.method_for(area) != 'product'

    def compute(self, area, windows, out, kept) -> tuple[Tensor, ...]:
        (window,), op, method = windows, self.node.op, self.method_for(area)
        if method == 'product':
            top = products.convolve(window, op.weight, op.bias, op.stride, (0, 0), self.relu)
            return _put(top, out)
        if method == 'winograd':
            transform = kept.of(f'{self.node.name}.weight', 'filters', winograd.filters)
            for image, top in zip(window, out):
                winograd.convolve(image, transform, op.bias, 0, top, self.relu)
        else:
            for i in range(len(out)):
                self._convolve(window[i : i + 1], out[i : i + 1])
        return (out,)

    def _convolve(self, window: Tensor, out: Tensor) -> None:
        """Write one image's area strip by strip, so that the ReLU finds a strip in the cache."""
        op, (rows, _) = self.node.op, self.windows
        weight, height = op.weight, out.shape[2]
        few = weight.numel() <= _FEW_WEIGHTS  # PyTorch lays out the weights anew for each strip
        step = strips.step(height, max(4, _STRIP // out[0, :, 0].numel())) if few else height

        def compute(first: int) -> None:
            strip = range(first, min(first + step, height))
            read = window[:, :, rows.stride * first :]
            read = read[:, :, : rows.stride * (len(strip) - 1) + rows.extent]
            top = F.conv2d(read, weight, op.bias, op.stride, 0, op.dilation, op.group)
            to = out[:, :, first : strip.stop]
            if self.relu:
                torch.clamp_min(top, 0, out=to)
            else:
                to.copy_(top)

        strips.run(compute, range(0, height, step))

    def before(self) -> int:
        return _multiply_adds(self.node.op, self.top_shapes[0][0], self.top_shapes[0][2:])

    def after(self) -> int:
        batch, outputs = self.top_shapes[0][:2]
        height, width = map(len, self.area)
        if self.method == 'winograd':
            return batch * winograd.multiply_adds(height, width, self.node.op.inputs, outputs)
        return _multiply_adds(self.node.op, batch, (height, width))


def _multiply_adds(op: Op, batch: int, size: tuple[int, ...]) -> int:
    return batch * op.weight.numel() * size[0] * size[1]


class Pooling(_Sliding):
    """Maxima over windows that begin in the bottom."""

    method = 'pooling'

    def __init__(self, node: Node, *args):
        super().__init__(node, *args)
        self.windows = pooling_windows(node.op)

    def reads(self, area: Area) -> list[Area]:
        # Caffe cuts windows off at the bottom's edge.
        inside = whole(self.shapes[0])
        return [Area(*(common(w.read_for(s), i) for w, s, i in zip(self.windows, area, inside)))]

    def compute(self, area, windows, out, kept) -> tuple[Tensor, ...]:
        (window,), (kernel, stride, _) = windows, self.node.op.windows
        if out is None:
            shape = *window.shape[:2], len(area.rows), len(area.columns)
            out = torch.empty(
                shape, dtype=window.dtype, device=window.device, memory_format=torch.channels_last
            )
        height = out.shape[2]
        step = min(strips.share(height), max(4, _STRIP // out[0, :, 0].numel()))

        def compute(first: int) -> None:
            count = min(step, height - first)
            start = stride[0] * first
            read = window[:, :, start : start + stride[0] * (count - 1) + kernel[0]]
            top = F.max_pool2d(read, kernel, stride, ceil_mode=True)
            out[:, :, first : first + count].copy_(top)

        strips.run(compute, range(0, height, step), short=True)
        return (out,)


class Deconvolution(Line):
    """A deconvolution; only the part that a Crop keeps is computed."""

    method, is_whole = 'deconvolution', False
    _kernel: upsampling.Kernel | None = None
    _matrices: tuple[Tensor, Tensor]

    def __init__(self, node: Node, *args):
        super().__init__(node, *args)
        self.windows = filter_windows(node.op)

    def reads(self, area: Area) -> list[Area]:
        axes = zip(self.windows, area, self.shapes[0][2:])
        return [Area(*(window.reached_by(span, size) for window, span, size in axes))]

    def watch(self, kept: Kept) -> None:
        self._watch_all(kept)

    def compute(self, area, windows, out, kept) -> tuple[Tensor, ...]:
        (window,), op = windows, self.node.op
        if self._is_separable(area, kept):
            return _put(upsampling.upsample(window, *self._matrices, op.bias), out)
        top = F.conv_transpose2d(window, op.weight, op.bias, op.stride, 0, 0, op.group, op.dilation)
        # The window's first pixel begins at stride * its number - pad.
        (read,) = self.reads(area)
        starts = (w.stride * span.start - w.pad for w, span in zip(self.windows, read))
        made = Area(*(range(s, s + size) for s, size in zip(starts, top.shape[2:])))
        return _put(top[slices(area, made)], out)

    def _is_separable(self, area: Area, kept: Kept) -> bool:
        """Return whether the weights are one fixed kernel now, and derive its matrices."""
        op, name = self.node.op, f'{self.node.name}.weight'
        kernel = kept.of(name, 'kernel', lambda weight: upsampling.separate(weight, op.group))
        fits = kernel is not None and set(op.dilation) == {1}
        self.method = 'separable' if fits else 'deconvolution'
        if fits and kernel is not self._kernel:
            self._kernel = kernel
            self._matrices = upsampling.matrices(kernel, self.windows, area, *self.reads(area))
        return fits

    def examine(self, kept: Kept) -> None:
        self._is_separable(self.area, kept)

    def before(self) -> int:
        return _multiply_adds(self.node.op, self.shapes[0][0], self.shapes[0][2:])

    def after(self) -> int:
        shape, (read,) = self.top_shapes[0], self.reads(self.area)
        if self.method == 'separable':
            return shape[0] * upsampling.multiply_adds(self.area, read, shape[1])
        return _multiply_adds(self.node.op, shape[0], (len(read.rows), len(read.columns)))


class Crop(Line):
    """A crop of rows and columns: of the second bottom only the size is read."""

    method, framed, is_whole = 'crop', True, False

    def __init__(self, node: Node, reads: list[int], *args):
        super().__init__(node, reads[:1], *args)
        self.offset = [0] * (node.op.axis - 2) + list(node.op.offset)

    def reached(self, bottoms: list[Area]) -> Area:
        back = shift(bottoms[0], [-offset for offset in self.offset])
        return intersection(back, whole(self.top_shapes[0]))

    constant = reached

    def reads(self, area: Area) -> list[Area]:
        return [shift(area, self.offset)]

    def compute(self, area, windows, out, kept) -> tuple[Tensor, ...]:
        return _put(windows[0], out)


def line_of(node: Node, reads: list[int], shapes: list[Shape], tops: list[Shape]) -> Line:
    """Return the line that computes a layer from bottoms of these shapes."""
    images = len(tops) == 1 and all(len(shape) == 4 for shape in (*shapes, *tops))
    kind = _kind_of(node, shapes) if images else Line
    return kind(node, reads, shapes, tops)


def _kind_of(node: Node, shapes: list[Shape]) -> type[Line]:
    op = node.op
    if is_pointwise(node, shapes):
        return Pointwise
    if node.type == 'Crop' and op.axis >= 2:
        return Crop
    if node.type == 'Convolution' and op.axis == 1:
        return Convolution
    if node.type == 'Deconvolution' and op.axis == 1:
        apart = any(window.stride > window.extent for window in filter_windows(op))
        return Line if apart else Deconvolution  # between windows that do not meet lies the bias
    if node.type == 'Pooling' and is_sliding_pooling(op):
        return Pooling
    return Line
