"""Layers that look at neighbourhoods: Convolution, Deconvolution, Pooling, LRN, Crop."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.ops.base import Op, Shape, axis_of, height_width, per_axis
from caffe_port.proto.caffe_pb2 import LRNParameter, PoolingParameter

LOWEST = torch.finfo(torch.float32).min
# Pads and strides that pooling lays out in memory; nets in use have less than 10.
MAX_PAD = 1024


class _Filters(Op):
    """What Convolution and Deconvolution share: geometry, weight and bias."""

    bottoms = tops = (1, math.inf)

    def setup(self, *shapes: Shape) -> None:
        p, first = self.param.convolution_param, shapes[0]
        self.axis = axis_of(p.axis, len(first))
        axes = len(first) - self.axis - 1
        self.require(1 <= axes <= 3, f'{axes} spatial axes in bottom {first}, 1 to 3 are supported')
        self.spatial = axes
        self.kernel = self._numbers('kernel', 'kernel_size', None)
        self.stride = self._numbers('stride', 'stride', 1)
        self.pad = self._numbers('pad', 'pad', 0)
        self.dilation = per_axis(p.dilation, axes, 1, 'dilation')
        for what, numbers in (('kernel', self.kernel), ('stride', self.stride),
                              ('dilation', self.dilation)):
            self.require(min(numbers) > 0, f'{what} {numbers} must be positive')
        self.group = p.group
        outputs, inputs = p.num_output, first[self.axis]
        self.require(outputs > 0, 'num_output must be positive')
        self.require(self.group > 0 and inputs % self.group == 0 and outputs % self.group == 0,
                     f'{inputs} channels to {outputs} outputs do not divide into '
                     f'{self.group} groups')
        for shape in shapes:
            self.require(shape == first, f'bottoms differ: {first} and {shape}')
        self.inputs = inputs
        self.add_blob('weight', self._weight_shape(inputs, outputs) + self.kernel, p.weight_filler)
        if p.bias_term:
            self.add_blob('bias', (outputs,), p.bias_filler)
        else:
            self.bias = None

    def _numbers(self, name: str, field: str, default: int | None) -> tuple[int, ...]:
        p = self.param.convolution_param
        if p.HasField(f'{name}_h') or p.HasField(f'{name}_w'):
            self.require(self.spatial == 2,
                         f'{name}_h and {name}_w need 2 spatial axes, there are {self.spatial}')
            return height_width(p, name, default, lambda: getattr(p, field))
        return per_axis(getattr(p, field), self.spatial, default, field)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._with_batch(bottom) for bottom in bottoms)

    def _with_batch(self, bottom: Tensor) -> Tensor:
        """Axes before the channel axis count as the batch, whatever their number."""
        self.require(bottom.dim() > self.axis and bottom.shape[self.axis] == self.inputs,
                     f'bottom {tuple(bottom.shape)} must have {self.inputs} channels '
                     f'on axis {self.axis}')
        if self.axis == 1:
            return self._filter(bottom)
        batch = bottom.shape[:self.axis]
        top = self._filter(bottom.reshape(-1, *bottom.shape[self.axis:]))
        return top.reshape(*batch, *top.shape[1:])


class Convolution(_Filters):
    """Cross-correlation with weight O x I/g x kh x kw, as conv_layer.cpp."""

    def _weight_shape(self, inputs: int, outputs: int) -> Shape:
        return outputs, inputs // self.group

    def _filter(self, bottom: Tensor) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.spatial - 1]
        return conv(bottom, self.weight, self.bias, self.stride, self.pad, self.dilation,
                    self.group)


class Deconvolution(_Filters):
    """Convolution's transpose with weight I x O/g x kh x kw, as deconv_layer.cpp."""

    def _weight_shape(self, inputs: int, outputs: int) -> Shape:
        return inputs, outputs // self.group

    def _filter(self, bottom: Tensor) -> Tensor:
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.spatial - 1]
        return conv(bottom, self.weight, self.bias, self.stride, self.pad, 0, self.group,
                    self.dilation)


class Pooling(Op):
    """Maximum or mean over windows, as pooling_layer.cpp; a second top of MAX is the mask.

    Output = ceil((in + 2 pad - kernel) / stride) + 1 (floor on request); with pad, a
    last window that would start in the far padding is dropped. AVE divides by the
    window clipped to the padded extent. The mask holds the winner's h * W + w.
    """

    tops = (1, 2)

    def setup(self, shape: Shape) -> None:
        p = self.param.pooling_param
        self.require(len(shape) == 4, f'bottom {shape} must have 4 axes')
        self.require(p.pool != PoolingParameter.STOCHASTIC,
                     'pool STOCHASTIC is not supported; there are MAX and AVE')
        self.require(len(self.param.top) == 1 or p.pool == PoolingParameter.MAX,
                     'only MAX has a second top')
        self.is_max, self.is_global = p.pool == PoolingParameter.MAX, p.global_pooling
        self.ceil = p.round_mode == PoolingParameter.CEIL

        def plain(field: str):
            return lambda: [getattr(p, field)] if p.HasField(field) else []

        self.stride = height_width(p, 'stride', 1, plain('stride'))
        self.pad = height_width(p, 'pad', 0, plain('pad'))
        if self.is_global:
            self.require(not (p.HasField('kernel_size') or p.HasField('kernel_h')
                              or p.HasField('kernel_w')),
                         'global_pooling takes no kernel size')
            self.require(self.pad == (0, 0) and self.stride == (1, 1),
                         'global_pooling goes with pad 0 and stride 1')
            return
        self.kernel = height_width(p, 'kernel', None, plain('kernel_size'))
        self.require(min(self.kernel) > 0 and min(self.stride) > 0,
                     f'kernel {self.kernel} and stride {self.stride} must be positive')
        self.require(all(pad < k for pad, k in zip(self.pad, self.kernel)),
                     f'pad {self.pad} must be smaller than kernel {self.kernel}')

    def forward(self, bottom: Tensor) -> tuple[Tensor, ...]:
        if self.is_global:
            return self._whole(bottom)
        if not torch.compiler.is_exporting() and all(
                s <= k and 2 * pad <= k for s, k, pad in zip(self.stride, self.kernel, self.pad)):
            return self._pool(bottom, self.kernel, self.pad, self.ceil)
        return self._padded(bottom, self.kernel)

    def _whole(self, bottom: Tensor) -> tuple[Tensor, ...]:
        """The image as the only window."""
        if not self.is_max:
            return bottom.mean((2, 3), keepdim=True),
        best, place = bottom.flatten(2).max(-1)
        tops = best, place.to(bottom.dtype)
        return tuple(top[:, :, None, None] for top in tops[:self.top_count])

    def _pool(self, bottom: Tensor, kernel: tuple[int, int], pad: tuple[int, int],
              ceil: bool) -> tuple[Tensor, ...]:
        if not self.is_max:
            return F.avg_pool2d(bottom, kernel, self.stride, pad, ceil, True),
        if self.top_count == 1:
            return F.max_pool2d(bottom, kernel, self.stride, pad, ceil_mode=ceil),
        top, mask = F.max_pool2d(bottom, kernel, self.stride, pad, ceil_mode=ceil,
                                 return_indices=True)
        return top, mask.to(bottom.dtype)

    def _padded(self, bottom: Tensor, kernel: tuple[int, int]) -> tuple[Tensor, ...]:
        """What PyTorch refuses (strides past the window, pads past its half) or can't
        export (rounding up): padding that is there, and no rounding.

        As many windows fit after stride - 1 more pixels as rounding up gives.
        """
        size, extra = bottom.shape[2:], [s - 1 if self.ceil else 0 for s in self.stride]
        (high, wide), (low, right) = self.pad, [p + e for p, e in zip(self.pad, extra)]
        for axis in (0, 1):
            reach = size[axis] + 2 * self.pad[axis] + extra[axis]
            self.require(reach >= kernel[axis],
                         f'kernel {kernel} exceeds padded bottom {tuple(bottom.shape)}')
            self.require(max(self.pad[axis], extra[axis]) <= MAX_PAD,
                         f'pad {self.pad} or stride {self.stride} exceeds {MAX_PAD}')
        padded = F.pad(bottom, (wide, right, high, low), value=LOWEST if self.is_max else 0)
        tops = self._pool(padded, kernel, (0, 0), False)
        if not self.is_max:
            area = kernel[0] * kernel[1]
            tops = tops[0] * area / self._areas(bottom, kernel, tops[0]),
        elif len(tops) == 2:
            rows, columns = tops[1] // padded.shape[3] - high, tops[1] % padded.shape[3] - wide
            inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
            tops = tops[0], torch.where(inside, rows * size[1] + columns, -1)
        return tuple(self._without_last(top, bottom, kernel).contiguous() for top in tops)

    def _areas(self, bottom: Tensor, kernel: tuple[int, int], top: Tensor) -> Tensor:
        """The areas of the windows, clipped to the padded extent as Caffe clips them."""
        sides = []
        for axis in (0, 1):
            starts = torch.arange(top.shape[2 + axis], device=top.device) * self.stride[axis]
            ends = (starts + kernel[axis]).clamp(max=bottom.shape[2 + axis] + 2 * self.pad[axis])
            sides.append((ends - starts).to(top.dtype))
        return sides[0][:, None] * sides[1]

    def _without_last(self, top: Tensor, bottom: Tensor, kernel: tuple[int, int]) -> Tensor:
        """With any pad, a last window that starts past image and first pad is dropped."""
        for axis, (s, k, pad) in enumerate(zip(self.stride, kernel, self.pad), 2):
            # Windows that reach back into the image whatever its size need no look at it.
            if any(self.pad) and pad + s > k and (
                    (top.shape[axis] - 1) * s >= bottom.shape[axis] + pad):
                top = top.narrow(axis, 0, top.shape[axis] - 1)
        return top


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
        half = min(half, bottom.shape[1] - 1)  # further neighbours there are none
        planes = F.pad(squares.unsqueeze(1), (0, 0, 0, 0, half, half))
        mean = F.avg_pool3d(planes, (2 * half + 1, 1, 1), stride=1,
                            divisor_override=self.size).squeeze(1)
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
                # The program exported must serve sizes that nobody can check yet.
                places = torch.arange(size, device=top.device) + offset
                top = top.index_select(axis, places)
                continue
            self.require(bottom.shape[axis] >= offset + size,
                         f'axis {axis} of {tuple(bottom.shape)} is too short for offset '
                         f'{offset} and {size} of {tuple(like.shape)}')
            top = top.narrow(axis, offset, size)
        return top.clone(memory_format=torch.contiguous_format)
