"""Layers that look at neighbourhoods: Convolution, Deconvolution, Im2col, LRN, Crop."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.ops.base import MAX_PAD, Op, Shape, axis_of, height_width, per_axis, settings
from caffe_port.proto.caffe_pb2 import LRNParameter


class _Sliding(Op, abstract=True):
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

    def _settings(self) -> list[str]:
        return settings(
            kernel_size=self.kernel,
            stride=self.stride if max(self.stride) > 1 else None,
            pad=self.pad if any(self.pad) else None,
            dilation=self.dilation if max(self.dilation) > 1 else None,
        )


class _Filters(_Sliding, abstract=True):
    """Base of Convolution and Deconvolution: weight, bias and batch."""

    bottoms = tops = (1, math.inf)
    itemwise = True

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
        self.inputs, self.outputs = inputs, outputs
        self.add_blob('weight', self._weight_shape(inputs, outputs) + self.kernel, p.weight_filler)
        if p.bias_term:
            self.add_blob('bias', (outputs,), p.bias_filler)
        else:
            self.bias = None

    def _channels(self) -> Shape:
        return self.inputs, self.outputs

    def _settings(self) -> list[str]:
        return [
            *super()._settings(),
            *settings(
                group=self.group if self.group > 1 else None,
                bias_term=False if self.bias is None else None,
            ),
        ]

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


class LRN(Op):
    """Local response normalisation, as lrn_layer.cpp.

    Across channels: x / (k + alpha / n * sum of squares of n neighbours) ** beta.
    Within a channel: x / (1 + alpha * mean of squares over n x n) ** beta.
    """

    itemwise = True

    def setup(self, shape: Shape) -> None:
        p = self.param.lrn_param
        self.size, self.alpha, self.beta, self.k = p.local_size, p.alpha, p.beta, p.k
        self.require(self.size % 2 == 1, f'local_size {self.size} must be odd')
        self.require(len(shape) == 4, f'bottom {shape} must have 4 axes')
        self.within = p.norm_region == LRNParameter.WITHIN_CHANNEL

    def _settings(self) -> list[str]:
        return settings(local_size=self.size, alpha=self.alpha, beta=self.beta)

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
        self.itemwise = self.axis > 0
        self.offset = per_axis(p.offset, len(shape) - self.axis, 0, 'offset')

    def _settings(self) -> list[str]:
        return settings(axis=self.axis, offset=self.offset)

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
