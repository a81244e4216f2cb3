"""Layers that act on each element alone."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from caffe_port import rng
from caffe_port.errors import CaffeError
from caffe_port.mode import TRAIN
from caffe_port.ops.base import Op, Shape
from caffe_port.proto.caffe_pb2 import FillerParameter


class ReLU(Op):
    """max(x, 0) + negative_slope * min(x, 0), as relu_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        self.slope = self.param.relu_param.negative_slope

    def forward(self, bottom: Tensor) -> Tensor:
        return F.leaky_relu(bottom, self.slope) if self.slope else F.relu(bottom)


class Dropout(Op):
    """In TRAIN zero elements with probability dropout_ratio and scale the others by
    1 / (1 - ratio), as dropout_layer.cpp; in TEST the identity."""

    def setup(self, shape: Shape) -> None:
        self.ratio = self.param.dropout_param.dropout_ratio
        self.require(0 < self.ratio < 1, f'dropout_ratio {self.ratio:g} must lie in (0, 1)')

    def forward(self, bottom: Tensor) -> Tensor:
        if self.phase != TRAIN:
            return bottom
        if bottom.is_meta:
            return bottom  # only shapes are asked for: draw nothing
        mask = rng.keep_mask(bottom.shape, 1 - self.ratio, bottom.device)
        return bottom * mask * (1 / (1 - self.ratio))


class AbsVal(Op):
    """|x|, as absval_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.abs()


class BNLL(Op):
    """log(1 + exp(x)), the binomial normal log likelihood, as bnll_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return F.softplus(bottom)


class Clip(Op):
    """min(max(x, min), max); the gradient passes on the bounds too, as clip_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        p = self.param.clip_param
        self.require(p.IsInitialized(), 'clip_param needs min and max')
        self.require(p.min < p.max, f'min {p.min:g} must be smaller than max {p.max:g}')

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.clamp(self.param.clip_param.min, self.param.clip_param.max)


class ELU(Op):
    """x where positive, else alpha * (exp(x) - 1), as elu_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return F.elu(bottom, self.param.elu_param.alpha)


def _log_of_base(base: float) -> float:
    """The natural logarithm of a base field, where -1 stands for e."""
    if base == -1:
        return 1.0
    if base <= 0 or base == 1:
        raise CaffeError(f'base {base:g} must be -1 (for e) or positive and not 1')
    return math.log(base)


class Exp(Op):
    """base ** (shift + scale * x), as exp_layer.cpp; base -1 stands for e."""

    def setup(self, shape: Shape) -> None:
        self.log_base = _log_of_base(self.param.exp_param.base)

    def forward(self, bottom: Tensor) -> Tensor:
        p = self.param.exp_param
        return ((bottom * p.scale + p.shift) * self.log_base).exp()


class Log(Op):
    """log(shift + scale * x) to a base, as log_layer.cpp; base -1 stands for e."""

    def setup(self, shape: Shape) -> None:
        self.log_base = _log_of_base(self.param.log_param.base)

    def forward(self, bottom: Tensor) -> Tensor:
        p = self.param.log_param
        return (bottom * p.scale + p.shift).log() / self.log_base


class Power(Op):
    """(shift + scale * x) ** power, as power_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        p = self.param.power_param
        if p.power * p.scale == 0:
            # A constant: Caffe gives it no gradient, not even where 0 ** -1 would.
            value = 1.0 if p.power == 0 else p.shift ** p.power
            return bottom * 0 + value
        inner = bottom * p.scale + p.shift
        return inner if p.power == 1 else inner ** p.power


class PReLU(Op):
    """x where positive, else slope * x with a learned slope per channel, as prelu_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        p = self.param.prelu_param
        self.require(len(shape) >= 2, f'bottom {shape} must have at least 2 axes')
        filler = p.filler if p.HasField('filler') else FillerParameter(value=0.25)
        self.add_blob('weight', () if p.channel_shared else (shape[1],), filler)

    def forward(self, bottom: Tensor) -> Tensor:
        return F.prelu(bottom, self.weight.reshape(-1))


class Sigmoid(Op):
    """1 / (1 + exp(-x)), as sigmoid_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.sigmoid()


class Swish(Op):
    """x * sigmoid(beta * x), as swish_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom * (bottom * self.param.swish_param.beta).sigmoid()


class TanH(Op):
    """Hyperbolic tangent, as tanh_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.tanh()


class Threshold(Op):
    """1 where x > threshold, else 0, as threshold_layer.cpp; it has no gradient."""

    forceable = (False,)

    def forward(self, bottom: Tensor) -> Tensor:
        return (bottom > self.param.threshold_param.threshold).to(bottom.dtype)
