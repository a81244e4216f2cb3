"""The layers of a stretch in training: convolutions with their ReLU, and poolings; channels last.

A ReLU writes over the convolution's top, from which its gradient can be told. The next layer
sets the diff of its bottom to zero where the ReLU did, while that is in the cache; so no ReLU takes
a pass over memory of its own, but for a last one (see Masked).

Each gradient of a convolution is computed in the way that is fastest for its shape, by
Winograd's method where there are many channels. The values are PyTorch's own everywhere: where
two of them are all but equal, their rounding decides which one a maximum lets the gradient
pass to. The gradients are linear in the top's diff, so that rounding stays rounding. They may be
differentiated again, or vmap may hand down many diffs at a time: then PyTorch computes them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from caffe_port.ops.base import Op
from caffe_port.param_blob import Factors, ParamBlob
from caffe_port.plan import products, strips, winograd
from caffe_port.plan.lines import method_of
from caffe_port.plan.switch import has_memory

# From so many channels on, Winograd's diffs of the bottom and of the weight pay.
LEAST_FOR_BOTTOM, LEAST_FOR_WEIGHT = 128, 64
# Values in a strip of a top: it stays in the cache until it is used again. PyTorch lays out the
# weights anew for each strip, so that many weights ask for larger ones.
_STRIP, _LARGE_STRIP, _MANY_WEIGHTS = 2**19, 2**22, 2**20
# A weight of so few inputs per output has its gradient as a product with unfolded images.
_FEW_INPUTS = 128


class Geometry(NamedTuple):
    """How a convolution slides, as F.conv2d takes it, and the ReLUs around it.

    relu: one follows, in place. masks: the bottom is the top of one, which leaves its gradient
    to this layer.
    """

    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    group: int
    relu: bool = False
    masks: bool = False

    @classmethod
    def of(cls, op: Op, **relus: bool) -> Geometry:
        return cls(op.stride, op.pad, op.dilation, op.group, **relus)

    def is_winograd(self, weight: Tensor, least: int) -> bool:
        """Return whether Winograd's method fits, for a weight with as many channels at least."""
        return (
            weight.shape[2:] == (winograd.TAPS,) * 2
            and self.stride == self.dilation == (1, 1)
            and self.group == 1
            and self.pad[0] == self.pad[1] < winograd.TAPS
            and min(weight.shape[:2]) >= least
        )


class Room(threading.local):
    """Memory that is used again and again: the system takes long to give out fresh pages."""

    def __init__(self) -> None:
        self._values = torch.empty(0, dtype=torch.float32)

    def take(self, shape: Sequence[int]) -> Tensor:
        """Return N x C x H x W values, channels last, or values of another shape; not set.

        They may overwrite what was taken before.
        """
        count = math.prod(shape)
        if len(self._values) < count:
            self._values = self._values.new_empty(0)  # free it first
            self._values = self._values.new_empty(count)
        values = self._values[:count]
        if len(shape) != 4:
            return values.view(*shape)
        return values.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


_transforms = Room()
_NO_GRADIENTS = None, None, None  # of geometry, room and blob


def _is_watched(diff: Tensor) -> bool:
    """Return whether gradients of a diff are recorded, or vmap has made it."""
    return torch.is_grad_enabled() or not has_memory(diff)


def _channels_last(diff: Tensor) -> Tensor:
    return diff.contiguous(memory_format=torch.channels_last) if has_memory(diff) else diff


def _clear(diff: Tensor, bottom: Tensor) -> Tensor:
    """Set a diff to zero, in place, where the ReLU that made `bottom` did."""
    return diff.mul_(bottom > 0)


def _convolve_in_strips(
    bottom: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, put: Callable
) -> None:
    """Call put(strip, rows) for strips of conv2d's top, given as slices of its rows."""
    extent = g.dilation[0] * (weight.shape[2] - 1) + 1
    height = bottom.shape[2]
    rows = (height + 2 * g.pad[0] - extent) // g.stride[0] + 1
    many = weight.numel() >= _MANY_WEIGHTS
    strip_size = _LARGE_STRIP if many else _STRIP
    most = max(8, strip_size // (weight.shape[0] * max(bottom.shape[3] // g.stride[1], 1)))
    step = most if many else strips.step(rows, most)  # each strip has a copy of the weights

    def compute(first: int) -> None:
        last = min(first + step, rows)
        start = g.stride[0] * first - g.pad[0]
        stop = g.stride[0] * (last - 1) - g.pad[0] + extent
        low = min(max(start, 0), height)
        read = bottom[:, :, low : max(min(stop, height), low)]
        above = min(max(-start, 0), stop - start)
        below = stop - start - above - read.shape[2]
        if above or below:
            read = F.pad(read, (0, 0, above, below))
        strip = F.conv2d(read, weight, bias, g.stride, (0, g.pad[1]), g.dilation, g.group)
        put(strip, slice(first, last))

    strips.run(compute, range(0, rows, step))


def _top(bottom: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, room: Room) -> Tensor:
    """Return the convolution and its ReLU, channels last."""
    size = [
        (pixels + 2 * p - (d * (k - 1) + 1)) // s + 1
        for pixels, k, s, p, d in zip(
            bottom.shape[2:], weight.shape[2:], g.stride, g.pad, g.dilation
        )
    ]
    out = room.take((bottom.shape[0], weight.shape[0], *size))

    def put(strip: Tensor, rows: slice) -> None:
        if g.relu:
            torch.clamp_min(strip, 0, out=out[:, :, rows])
        else:
            out[:, :, rows] = strip

    _convolve_in_strips(bottom, weight, bias, g, put)
    return out


def _bottom_diff(bottom: Tensor, weight: Tensor, diff: Tensor, g: Geometry) -> Tensor:
    """Return the diff of the bottom, masked where that is this layer's to do."""
    if _is_watched(diff):
        found = conv2d_input(tuple(bottom.shape), weight, diff, *g[:4])
        return found * (bottom > 0) if g.masks else found
    out = torch.empty_like(bottom, memory_format=torch.channels_last)
    if g.is_winograd(weight, LEAST_FOR_BOTTOM):
        turned = winograd.turned_filters(weight, _transform_of(weight))
        for i, (image, to) in enumerate(zip(diff, out)):
            mask = bottom[i] if g.masks else None
            winograd.convolve(image, turned, None, winograd.TAPS - 1 - g.pad[0], to, mask=mask)
        return out
    pad = [k - 1 - p for k, p in zip(weight.shape[2:], g.pad)]
    if g.stride == g.dilation == (1, 1) and g.group == 1 and min(pad) >= 0:

        def put(strip: Tensor, rows: slice) -> None:
            if g.masks:
                torch.mul(strip, bottom[:, :, rows] > 0, out=out[:, :, rows])
            else:
                out[:, :, rows] = strip

        turned = weight.flip(2, 3).transpose(0, 1).contiguous()
        _convolve_in_strips(diff, turned, None, Geometry((1, 1), (pad[0], pad[1]), (1, 1), 1), put)
        return out
    found = conv2d_input(tuple(bottom.shape), weight, diff, *g[:4])
    return _clear(found, bottom) if g.masks else found


def _transform_of(weight: Tensor) -> Tensor:
    """Return memory for the transform of a weight, O x I x 3 x 3."""
    return _transforms.take((winograd.IN * winograd.IN, *weight.shape[:2]))


def _weight_diff(
    bottom: Tensor, weight: Tensor, diff: Tensor, g: Geometry, out: Tensor | None
) -> Tensor:
    if _is_watched(diff):
        # A diff of the second order reaches the ReLU that made the bottom through this mask.
        seen = bottom * (bottom > 0) if g.masks else bottom
        return conv2d_weight(seen, tuple(weight.shape), diff, *g[:4])
    if g.is_winograd(weight, LEAST_FOR_WEIGHT):
        out = torch.empty_like(weight) if out is None else out
        total = _transform_of(weight)
        for i, (image, of_image) in enumerate(zip(bottom, diff)):
            found = winograd.correlate(image, of_image, g.pad[0], total)
            out.add_(found) if i else out.copy_(found)
        return out
    if g.group == 1 and weight[0].numel() <= _FEW_INPUTS:
        return _weight_diff_of_few_inputs(bottom, weight, diff, g)
    return conv2d_weight(bottom.contiguous(), tuple(weight.shape), diff.contiguous(), *g[:4])


def _weight_diff_of_few_inputs(bottom: Tensor, weight: Tensor, diff: Tensor, g: Geometry) -> Tensor:
    kernel, stride = tuple(weight.shape[2:]), g.stride[0]
    extent = g.dilation[0] * (kernel[0] - 1) + 1
    total = torch.zeros(weight.shape[0], weight[0].numel(), dtype=diff.dtype, device=diff.device)
    padded = F.pad(bottom, (g.pad[1], g.pad[1], g.pad[0], g.pad[0])).contiguous()
    step = max(1, _STRIP // (weight.shape[0] * diff.shape[3]))
    for first in range(0, diff.shape[2], step):
        rows = diff[:, :, first : first + step]
        start = stride * first
        read = padded[:, :, start : start + stride * (rows.shape[2] - 1) + extent]
        columns = F.unfold(read, kernel, g.dilation, 0, g.stride)
        for strip, column in zip(rows, columns):
            flat = strip.permute(1, 2, 0).reshape(-1, strip.shape[0])
            total.addmm_(flat.t(), column.t())
    return total.view(weight.shape)


class Convolution(torch.autograd.Function):
    """A convolution, and the ReLU that follows it in place if its geometry says so.

    The diff of a top of a ReLU must come with zeros where that has set the top to zero.
    """

    @staticmethod
    def forward(
        bottom: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        g: Geometry,
        room: Room,
        blob: ParamBlob,
    ) -> Tensor:
        return _top(bottom, weight, bias, g, room)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        bottom, weight, _, ctx.geometry, _, ctx.blob = inputs
        ctx.save_for_backward(bottom, weight)

    @staticmethod
    def backward(ctx, diff: Tensor) -> tuple[Tensor | None, ...]:
        (bottom, weight), g = ctx.saved_tensors, ctx.geometry
        diff = _channels_last(diff)
        to_bottom, to_weight, to_bias = ctx.needs_input_grad[:3]
        return (
            _bottom_diff(bottom, weight, diff, g) if to_bottom else None,
            _weight_diff(bottom, weight, diff, g, ctx.blob.take_spare()) if to_weight else None,
            diff.sum((0, 2, 3)) if to_bias else None,
            *_NO_GRADIENTS,
        )


class Product(torch.autograd.Function):
    """The same as one matrix product, for more weights than pixels; see products.

    The unfolded bottom is made again in backward: it is many times the bottom's size.
    """

    @staticmethod
    def forward(
        bottom: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        g: Geometry,
        room: Room,
        blob: ParamBlob,
    ) -> Tensor:
        columns = products.columns(bottom, weight, g.stride, g.pad)
        top = products.multiply(columns, weight, bias, g.relu)
        size = products.size_of(bottom, weight, g.stride, g.pad)
        return top.view(-1, bottom.shape[0], *size).transpose(0, 1).contiguous()

    setup_context = Convolution.setup_context

    @staticmethod
    def backward(ctx, diff: Tensor) -> tuple[Tensor | None, ...]:
        (bottom, weight), g = ctx.saved_tensors, ctx.geometry
        if _is_watched(diff):
            return (
                _bottom_diff(bottom, weight, diff, g),
                _weight_diff(bottom, weight, diff, g, None),
                diff.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None,
                *_NO_GRADIENTS,
            )
        matrix = diff.transpose(0, 1).reshape(diff.shape[1], -1)
        to_bottom, to_weight, to_bias = ctx.needs_input_grad[:3]
        of_bottom = of_weight = None
        if to_bottom:
            of_bottom = products.fold(
                weight.flatten(1).t() @ matrix, bottom, weight, g.stride, g.pad
            )
            if g.masks:
                _clear(of_bottom, bottom)
        if to_weight:
            columns = products.columns(bottom, weight, g.stride, g.pad)
            if ctx.blob.take_factors(Factors(matrix, columns)):
                return of_bottom, None, matrix.sum(1) if to_bias else None, *_NO_GRADIENTS
            of_weight = ctx.blob.take_spare()
            if of_weight is None or not of_weight.is_contiguous():
                of_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
            torch.mm(matrix, columns.t(), out=of_weight.view(len(matrix), -1))
        return of_bottom, of_weight, matrix.sum(1) if to_bias else None, *_NO_GRADIENTS


class MaxPooling(torch.autograd.Function):
    """max_pool2d, windows cut off at the far edges; it keeps no indices, but finds them again.

    ceil: round the number of windows up.
    """

    @staticmethod
    def forward(bottom: Tensor, kernel: tuple, stride: tuple, ceil: bool, masks: bool) -> Tensor:
        return F.max_pool2d(bottom, kernel, stride, ceil_mode=ceil)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        bottom, *ctx.settings = inputs
        ctx.save_for_backward(bottom)

    @staticmethod
    def backward(ctx, diff: Tensor) -> tuple[Tensor | None, ...]:
        (bottom,), (kernel, stride, ceil, masks) = ctx.saved_tensors, ctx.settings
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = bottom.detach().requires_grad_()
            top = F.max_pool2d(leaf, kernel, stride, ceil_mode=ceil)
        diff = _channels_last(diff)
        if masks:
            diff = diff * (top.detach() > 0)
        (found,) = torch.autograd.grad(top, leaf, diff, create_graph=again)
        return found, None, None, None, None


class Masked(torch.autograd.Function):
    """A stretch's top, contiguous; its diff becomes zero where a ReLU has set the top to zero.

    The mask is in the memory of the blob, where users may write to it, as it is layer by layer.
    """

    @staticmethod
    def forward(top: Tensor) -> Tensor:
        return top.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, diff: Tensor) -> Tensor:
        (top,) = ctx.saved_tensors
        return diff * (top > 0)


def convolve(bottom: Tensor, op: Op, g: Geometry, room: Room) -> Tensor:
    """Return the top of a Convolution layer, and of its ReLU, by the fastest method.

    The top may be in the memory of `room`, the gradient of the weight in that of a cleared one.
    """
    height, width = products.size_of(bottom, op.weight, g.stride, g.pad)
    fits = method_of(op, bottom.shape[0] * height * width) == 'product'
    function = Product if fits else Convolution
    return function.apply(bottom, op.weight, op.bias, g, room, op.param_blobs[0])
