"""Layers that shift and scale blobs: Scale, Bias, BatchNorm, MVN."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.ops.base import Op, Shape, axis_of, settings
from caffe_port.proto.caffe_pb2 import FillerParameter


class _Broadcast(Op, abstract=True):
    """Base of Scale and Bias, whose factor spans some axes of the bottom.

    The factor is the second bottom, or else the layer's first blob, which has the bottom's
    dims from `axis` over `num_axes` axes (-1: to the end; 0: a scalar).
    """

    bottoms = (1, 2)

    def _setup_factor(self, p, name: str, default: float, shapes: tuple[Shape, ...]) -> None:
        shape = shapes[0]
        scalar = len(shapes) == 2 and not shapes[1]
        self.axis = 0 if scalar or not shape else axis_of(p.axis, len(shape))
        self.itemwise = self.axis > 0 and len(shapes) == 1
        if len(shapes) == 2:
            return
        if p.num_axes == -1:
            end = len(shape)
        else:
            self.require(p.num_axes >= 0, f'num_axes {p.num_axes} must be -1 or more')
            end = self.axis + p.num_axes
            self.require(
                end <= len(shape),
                f'axis {p.axis} with num_axes {p.num_axes} exceeds bottom {shape}',
            )
        filler = FillerParameter(type='constant', value=default)
        self.add_blob(name, shape[self.axis : end], p.filler if p.HasField('filler') else filler)

    def _laid_along(self, bottom: Tensor, factor: Tensor) -> Tensor:
        end = self.axis + factor.dim()
        self.require(
            bottom.shape[self.axis : end] == factor.shape,
            f'{tuple(factor.shape)} does not match {tuple(bottom.shape)} from axis {self.axis} on',
        )
        return factor.reshape(factor.shape + (1,) * (bottom.dim() - end))


class Scale(_Broadcast):
    """x * scale (+ bias) along some axes, as scale_layer.cpp."""

    def setup(self, *shapes: Shape) -> None:
        p = self.param.scale_param
        self._setup_factor(p, 'weight', 1, shapes)
        self.with_bias = p.bias_term
        if p.bias_term:
            shape = shapes[1] if len(shapes) == 2 else tuple(self.weight.shape)
            self.add_blob('bias', shape, p.bias_filler)

    def forward(self, bottom: Tensor, *factor: Tensor) -> Tensor:
        top = bottom * self._laid_along(bottom, factor[0] if factor else self.weight)
        if self.with_bias:
            top = top + self._laid_along(bottom, self.bias)
        return top


class Bias(_Broadcast):
    """x + bias along some axes, as bias_layer.cpp."""

    def setup(self, *shapes: Shape) -> None:
        self._setup_factor(self.param.bias_param, 'bias', 0, shapes)

    def forward(self, bottom: Tensor, *bias: Tensor) -> Tensor:
        return bottom + self._laid_along(bottom, bias[0] if bias else self.bias)


class BatchNorm(Op):
    """(x - mean) / sqrt(variance + eps) per channel, as batch_norm_layer.cpp.

    Blobs: mean and variance, both times scale_factor, which counts the batches in them.
    TRAIN uses the statistics of the batch, and adds them to the blobs, which it first
    multiplies by moving_average_fraction. TEST, or use_global_stats, uses the blobs. train()
    and eval() switch between the two, except where use_global_stats is given.
    """

    def setup(self, shape: Shape) -> None:
        p = self.param.batch_norm_param
        channels = shape[1] if len(shape) > 1 else 1
        self.eps, self.fraction = p.eps, p.moving_average_fraction
        # None: as train() and eval() say.
        self.always_global = p.use_global_stats if p.HasField('use_global_stats') else None
        for spec in self.param.param:
            self.require(
                spec.lr_mult == 0 or not spec.HasField('lr_mult'),
                'the statistics are not learned: lr_mult must be 0',
            )
        for name, size in (('mean', channels), ('variance', channels), ('scale_factor', 1)):
            self.add_blob(name, (size,), learned=False)

    def top_shapes(self, shape: Shape) -> list[Shape]:
        if not shape or not all(shape):
            return self._shapes_by_forward(shape)
        # Not by forward: PyTorch's kernels without memory of a mean take seconds to import.
        channels = shape[1] if len(shape) > 1 else 1
        self.require(
            channels == len(self.mean), f'bottom {shape} must have {len(self.mean)} channels'
        )
        return [shape]

    def _channels(self) -> Shape:
        return tuple(self.mean.shape)

    def _settings(self) -> list[str]:
        return settings(eps=self.eps, use_global_stats=self.always_global)

    def forward(self, bottom: Tensor) -> Tensor:
        use_global = not self.training if self.always_global is None else self.always_global
        if use_global:
            count = self.scale_factor.detach()
            factor = torch.where(count == 0, 0.0, 1 / count)
            mean, variance = self.mean.detach() * factor, self.variance.detach() * factor
            # One pass over memory, where the formula below takes three.
            rows = bottom[:, None] if bottom.dim() == 1 else bottom
            return F.batch_norm(rows, mean, variance, eps=self.eps).reshape(bottom.shape)
        rows = bottom.reshape(bottom.shape[0], self.mean.shape[0], -1)
        mean = rows.mean((0, 2))
        variance = (rows - mean[:, None]).square().mean((0, 2))
        self._remember(mean.detach(), variance.detach(), rows.shape[0] * rows.shape[2])
        top = (rows - mean[:, None]) / (variance[:, None] + self.eps).sqrt()
        return top.reshape(bottom.shape)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        unbiased = count / (count - 1) if count > 1 else 1.0
        for blob, new in (
            (self.mean, mean),
            (self.variance, variance * unbiased),
            (self.scale_factor, torch.ones_like(self.scale_factor)),
        ):
            blob.mul_(self.fraction).add_(new)


class MVN(Op):
    """(x - mean) / (deviation + eps) per channel, or per sample across channels, as
    mvn_layer.cpp; without normalize_variance only the mean is removed.

    The gradient is Caffe's: it differentiates the divisor s = deviation + eps as if s were
    the root of variance plus a constant, ds = d variance / (2 s).
    """

    itemwise = True

    def setup(self, shape: Shape) -> None:
        p = self.param.mvn_param
        self.leading = 1 if p.across_channels else 2
        self.normalize, self.eps = p.normalize_variance, p.eps

    def forward(self, bottom: Tensor) -> Tensor:
        shape = bottom.shape
        rows = bottom.reshape(*shape[: self.leading], math.prod(shape[self.leading :]))
        top = rows - rows.mean(-1, keepdim=True)
        if self.normalize:
            variance = top.square().mean(-1, keepdim=True)
            divisor = variance.detach().sqrt() + self.eps
            # Its value is 1; its derivative is that of the divisor's inverse.
            passing = 1 + (variance.detach() - variance) / (2 * divisor * divisor)
            top = top / divisor * passing
        return top.reshape(shape)
