"""Layers that look at neighbourhoods: Convolution, Deconvolution, Im2col, Pooling, SPP, LRN,
Crop."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.ops.base import Op, Shape, axis_of, height_width, per_axis
from caffe_port.proto.caffe_pb2 import LRNParameter, PoolingParameter, SPPParameter

LOWEST = torch.finfo(torch.float32).min
# The largest pad or stride that is laid out in memory; nets in use have less than 10.
MAX_PAD = 1024


class _Sliding(Op):
    """Base of layers whose kernel slides over the axes after the channels."""

    def _read_geometry(self, shape: Shape) -> None:
        p = self.param.convolution_param
        self.axis = axis_of(p.axis, len(shape))
        axes = len(shape) - self.axis - 1
        self.require(1 <= axes <= 3, f'{axes} spatial axes in bottom {shape}, 1 to 3 are supported')
        self.spatial = axes
        self.kernel = self._numbers('kernel', 'kernel_size', None)
        self.stride = self._numbers('stride', 'stride', 1)
        self.pad = self._numbers('pad', 'pad', 0)
        self.dilation = per_axis(p.dilation, axes, 1, 'dilation')
        for what, numbers in (
            ('kernel', self.kernel),
            ('stride', self.stride),
            ('dilation', self.dilation),
        ):
            self.require(min(numbers) > 0, f'{what} {numbers} must be positive')

    def _numbers(self, name: str, field: str, default: int | None) -> tuple[int, ...]:
        p = self.param.convolution_param
        if p.HasField(f'{name}_h') or p.HasField(f'{name}_w'):
            self.require(
                self.spatial == 2,
                f'{name}_h and {name}_w need 2 spatial axes, there are {self.spatial}',
            )
            return height_width(p, name, default, lambda: getattr(p, field))
        return per_axis(getattr(p, field), self.spatial, default, field)


class _Filters(_Sliding):
    """Base of Convolution and Deconvolution: weight, bias and batch."""

    bottoms = tops = (1, math.inf)

    def setup(self, *shapes: Shape) -> None:
        p, first = self.param.convolution_param, shapes[0]
        self._read_geometry(first)
        self.group = p.group
        outputs, inputs = p.num_output, first[self.axis]
        self.require(outputs > 0, 'num_output must be positive')
        self.require(
            self.group > 0 and inputs % self.group == 0 and outputs % self.group == 0,
            f'{inputs} channels to {outputs} outputs do not divide into {self.group} groups',
        )
        for shape in shapes:
            self.require(shape == first, f'bottoms differ: {first} and {shape}')
        self.inputs = inputs
        self.add_blob('weight', self._weight_shape(inputs, outputs) + self.kernel, p.weight_filler)
        if p.bias_term:
            self.add_blob('bias', (outputs,), p.bias_filler)
        else:
            self.bias = None

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._with_batch(bottom) for bottom in bottoms)

    def _with_batch(self, bottom: Tensor) -> Tensor:
        """Filter a bottom, all of whose axes before the channels are the batch."""
        self.require(
            bottom.dim() > self.axis and bottom.shape[self.axis] == self.inputs,
            f'bottom {tuple(bottom.shape)} must have {self.inputs} channels on axis {self.axis}',
        )
        if self.axis == 1:
            return self._filter(bottom)
        batch = bottom.shape[: self.axis]
        top = self._filter(bottom.reshape(-1, *bottom.shape[self.axis :]))
        return top.reshape(*batch, *top.shape[1:])


class Convolution(_Filters):
    """Cross-correlation with weight O x I/g x kh x kw, as conv_layer.cpp."""

    def _weight_shape(self, inputs: int, outputs: int) -> Shape:
        return outputs, inputs // self.group

    def _filter(self, bottom: Tensor) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.spatial - 1]
        return conv(
            bottom, self.weight, self.bias, self.stride, self.pad, self.dilation, self.group
        )


class Deconvolution(_Filters):
    """The transpose of Convolution, with weight I x O/g x kh x kw, as deconv_layer.cpp."""

    def _weight_shape(self, inputs: int, outputs: int) -> Shape:
        return inputs, outputs // self.group

    def _filter(self, bottom: Tensor) -> Tensor:
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.spatial - 1]
        return conv(
            bottom, self.weight, self.bias, self.stride, self.pad, 0, self.group, self.dilation
        )


class Im2col(_Sliding):
    """Copy the pixels under the kernel at each place to channels, as im2col_layer.cpp.

    C x H x W becomes C kh kw x (places down) x (places across): channel (c kh + i) kw + j
    holds the kernel's pixel i, j of channel c.
    """

    def setup(self, shape: Shape) -> None:
        self._read_geometry(shape)
        self.require(max(self.pad) <= MAX_PAD, f'pad {self.pad} exceeds {MAX_PAD}')

    def forward(self, bottom: Tensor) -> Tensor:
        top = F.pad(bottom, [pad for pad in reversed(self.pad) for _ in (0, 1)])
        at = self.axis + 1
        for i, (k, s, d) in enumerate(zip(self.kernel, self.stride, self.dilation)):
            reach = top.shape[at + 2 * i] - d * (k - 1)
            self.require(
                reach > 0,
                f'kernel {self.kernel} with dilation {self.dilation} exceeds '
                f'padded bottom {tuple(bottom.shape)}',
            )
            starts = torch.arange(0, reach, s, device=top.device)
            places = torch.arange(0, d * k, d, device=top.device)[:, None] + starts
            top = top.index_select(at + 2 * i, places.flatten()).unflatten(at + 2 * i, places.shape)
        # Each spatial axis has become two: the kernel's pixels, and its places.
        pixels, shifts = ([at + 2 * i + j for i in range(self.spatial)] for j in (0, 1))
        top = top.permute(*range(at), *pixels, *shifts)
        return top.flatten(self.axis, self.axis + self.spatial)


class Windows(NamedTuple):
    """The windows of a pooling, each field as (h, w)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]


class _Pool(Op):
    """Base of Pooling and SPP: the maximum, with its mask, or the mean over windows."""

    is_max: bool
    ceil = True

    def _read_method(self, shape: Shape, method: str) -> None:
        self.require(len(shape) == 4, f'bottom {shape} must have 4 axes')
        self.require(
            method != 'STOCHASTIC', 'pool STOCHASTIC is not supported; there are MAX and AVE'
        )
        self.is_max = method == 'MAX'

    def _pooled(self, bottom: Tensor, windows: Windows) -> tuple[Tensor, ...]:
        if not torch.compiler.is_exporting() and all(
            s <= k and 2 * pad <= k for k, s, pad in zip(*windows)
        ):
            return self._pool(bottom, windows, self.ceil)
        return self._padded(bottom, windows)

    def _pool(self, bottom: Tensor, windows: Windows, ceil: bool) -> tuple[Tensor, ...]:
        if not self.is_max:
            return (F.avg_pool2d(bottom, *windows, ceil, True),)
        if self.top_count == 1:
            return (F.max_pool2d(bottom, *windows, ceil_mode=ceil),)
        top, mask = F.max_pool2d(bottom, *windows, ceil_mode=ceil, return_indices=True)
        return top, mask.to(bottom.dtype)

    def _padded(self, bottom: Tensor, windows: Windows) -> tuple[Tensor, ...]:
        """Pool with explicit padding and without rounding up, for what PyTorch refuses (strides
        past the window, pads past its half) or cannot export (rounding up).

        Rounding up gives as many windows as fit after stride - 1 more pixels.
        """
        kernel, stride, pad = windows
        size, extra = bottom.shape[2:], [s - 1 if self.ceil else 0 for s in stride]
        (high, wide), (low, right) = pad, [p + e for p, e in zip(pad, extra)]
        for axis in (0, 1):
            reach = size[axis] + 2 * pad[axis] + extra[axis]
            self.require(
                reach >= kernel[axis],
                f'kernel {kernel} exceeds padded bottom {tuple(bottom.shape)}',
            )
            self.require(
                max(pad[axis], extra[axis]) <= MAX_PAD,
                f'pad {pad} or stride {stride} exceeds {MAX_PAD}',
            )
        padded = F.pad(bottom, (wide, right, high, low), value=LOWEST if self.is_max else 0)
        tops = self._pool(padded, windows._replace(pad=(0, 0)), False)
        if not self.is_max:
            area = kernel[0] * kernel[1]
            tops = (tops[0] * area / _areas(bottom, windows, tops[0]),)
        elif len(tops) == 2:
            rows, columns = tops[1] // padded.shape[3] - high, tops[1] % padded.shape[3] - wide
            inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
            tops = tops[0], torch.where(inside, rows * size[1] + columns, -1)
        return tuple(_without_last(top, bottom, windows).contiguous() for top in tops)


def _areas(bottom: Tensor, windows: Windows, top: Tensor) -> Tensor:
    """Return the areas of the windows, clipped to the padded extent as in Caffe."""
    sides = []
    for axis, (k, s, pad) in enumerate(zip(*windows), 2):
        starts = torch.arange(top.shape[axis], device=top.device) * s
        ends = (starts + k).clamp(max=bottom.shape[axis] + 2 * pad)
        sides.append((ends - starts).to(top.dtype))
    return sides[0][:, None] * sides[1]


def _without_last(top: Tensor, bottom: Tensor, windows: Windows) -> Tensor:
    """Drop a last window that starts past the image and its first pad, if there is any pad."""
    for axis, (k, s, pad) in enumerate(zip(*windows), 2):
        # Windows of pad + stride <= kernel start in the image, whatever its size.
        if (
            any(windows.pad)
            and pad + s > k
            and ((top.shape[axis] - 1) * s >= bottom.shape[axis] + pad)
        ):
            top = top.narrow(axis, 0, top.shape[axis] - 1)
    return top


class Pooling(_Pool):
    """Maximum or mean over windows, as pooling_layer.cpp; a second top of MAX is the mask.

    Output = ceil((in + 2 pad - kernel) / stride) + 1 (floor on request); with pad, a
    last window that would start in the far padding is dropped. AVE divides by the
    window clipped to the padded extent. The mask holds the winner's h * W + w.
    """

    tops = (1, 2)

    def setup(self, shape: Shape) -> None:
        p = self.param.pooling_param
        self._read_method(shape, PoolingParameter.PoolMethod.Name(p.pool))
        self.require(self.top_count == 1 or self.is_max, 'only MAX has a second top')
        self.is_global = p.global_pooling
        self.ceil = p.round_mode == PoolingParameter.CEIL

        def plain(field: str):
            return lambda: [getattr(p, field)] if p.HasField(field) else []

        stride = height_width(p, 'stride', 1, plain('stride'))
        pad = height_width(p, 'pad', 0, plain('pad'))
        if self.is_global:
            self.require(
                not (p.HasField('kernel_size') or p.HasField('kernel_h') or p.HasField('kernel_w')),
                'global_pooling takes no kernel size',
            )
            self.require(
                pad == (0, 0) and stride == (1, 1), 'global_pooling goes with pad 0 and stride 1'
            )
            return
        kernel = height_width(p, 'kernel', None, plain('kernel_size'))
        self.require(
            min(kernel) > 0 and min(stride) > 0,
            f'kernel {kernel} and stride {stride} must be positive',
        )
        self.require(
            all(one < k for one, k in zip(pad, kernel)),
            f'pad {pad} must be smaller than kernel {kernel}',
        )
        self.windows = Windows(kernel, stride, pad)

    def forward(self, bottom: Tensor) -> tuple[Tensor, ...]:
        return self._whole(bottom) if self.is_global else self._pooled(bottom, self.windows)

    def _whole(self, bottom: Tensor) -> tuple[Tensor, ...]:
        """Pool the whole image."""
        if not self.is_max:
            return (bottom.mean((2, 3), keepdim=True),)
        best, place = bottom.flatten(2).max(-1)
        tops = best, place.to(bottom.dtype)
        return tuple(top[:, :, None, None] for top in tops[: self.top_count])


class SPP(_Pool):
    """Spatial pyramid pooling, as spp_layer.cpp: level i of pyramid_height pools 2**i x 2**i
    windows that tile the image. The top is N x (1 + 4 + 16 + ...) C, or for one level
    N x C x 1 x 1.

    A window's side is its share of the image, rounded up. The excess of all windows over
    the image is padded, half on each side, rounded up; as in Caffe, an image whose pad
    would be a window or more is refused.
    """

    def setup(self, shape: Shape) -> None:
        p = self.param.spp_param
        self._read_method(shape, SPPParameter.PoolMethod.Name(p.pool))
        self.levels = p.pyramid_height
        self.require(self.levels > 0, 'pyramid_height must be positive')

    def forward(self, bottom: Tensor) -> Tensor:
        tops = [
            self._pooled(bottom, self._windows(bottom, level))[0] for level in range(self.levels)
        ]
        return tops[0] if len(tops) == 1 else torch.cat([top.flatten(1) for top in tops], 1)

    def _windows(self, bottom: Tensor, level: int) -> Windows:
        size, count = tuple(bottom.shape[2:]), 2**level
        kernel = tuple(-(-length // count) for length in size)
        pad = tuple((k * count - length + 1) // 2 for k, length in zip(kernel, size))
        self.require(
            all(p < k for p, k in zip(pad, kernel)),
            f'level {level} of the pyramid does not fit {size[0]} x {size[1]}: '
            f'pad {pad} must be smaller than kernel {kernel}',
        )
        return Windows(kernel, kernel, pad)


class LRN(Op):
    """Local response normalisation, as lrn_layer.cpp.

    Across channels: x / (k + alpha / n * sum of squares of n neighbours) ** beta.
    Within a channel: x / (1 + alpha * mean of squares over n x n) ** beta.
    """

    def setup(self, shape: Shape) -> None:
        p = self.param.lrn_param
        self.size, self.alpha, self.beta, self.k = p.local_size, p.alpha, p.beta, p.k
        self.require(self.size % 2 == 1, f'local_size {self.size} must be odd')
        self.require(len(shape) == 4, f'bottom {shape} must have 4 axes')
        self.within = p.norm_region == LRNParameter.WITHIN_CHANNEL

    def forward(self, bottom: Tensor) -> Tensor:
        squares, half = bottom * bottom, self.size // 2
        if self.within:
            # The mean divides by the window clipped to the padded extent, as AVE pooling.
            mean = F.avg_pool2d(squares, self.size, 1, half, count_include_pad=True)
            return bottom * (1 + self.alpha * mean) ** -self.beta
        half = min(half, bottom.shape[1] - 1)  # no channel has neighbours further away
        planes = F.pad(squares.unsqueeze(1), (0, 0, 0, 0, half, half))
        mean = F.avg_pool3d(
            planes, (2 * half + 1, 1, 1), stride=1, divisor_override=self.size
        ).squeeze(1)
        return bottom * (self.k + self.alpha * mean) ** -self.beta


class Crop(Op):
    """Cut the first bottom to the second's size, from `axis` on, as crop_layer.cpp.

    `offset` is 0 where not given; one number serves every cropped axis.
    """

    bottoms = (2, 2)
    forceable = (True, False)

    def setup(self, shape: Shape, like: Shape) -> None:
        p = self.param.crop_param
        self.require(len(shape) == len(like), f'bottoms {shape} and {like} differ in axes')
        self.axis = axis_of(p.axis, len(shape))
        self.offset = per_axis(p.offset, len(shape) - self.axis, 0, 'offset')

    def forward(self, bottom: Tensor, like: Tensor) -> Tensor:
        top = bottom
        for axis, offset in enumerate(self.offset, self.axis):
            size = like.shape[axis]
            if torch.compiler.is_exporting():
                # An exported program serves sizes that cannot be checked now.
                places = torch.arange(size, device=top.device) + offset
                top = top.index_select(axis, places)
                continue
            self.require(
                bottom.shape[axis] >= offset + size,
                f'axis {axis} of {tuple(bottom.shape)} is too short for offset '
                f'{offset} and {size} of {tuple(like.shape)}',
            )
            top = top.narrow(axis, offset, size)
        return top.clone(memory_format=torch.contiguous_format)
