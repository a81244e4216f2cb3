"""Layers that act on each element alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port import rng
from caffe_port.errors import CaffeError
from caffe_port.ops.base import Op, Shape, settings
from caffe_port.proto.caffe_pb2 import FillerParameter


class _Neuron(Op, abstract=True):
    """Base of layers that act on each element alone."""

    itemwise = True


class ReLU(_Neuron):
    """max(x, 0) + negative_slope * min(x, 0), as relu_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        self.slope = self.param.relu_param.negative_slope

    def _settings(self) -> list[str]:
        return settings(negative_slope=self.slope or None)

    def forward(self, bottom: Tensor) -> Tensor:
        return F.leaky_relu(bottom, self.slope) if self.slope else F.relu(bottom)


class Dropout(_Neuron):
    """Zero elements with probability dropout_ratio and scale the others by 1 / (1 - ratio),
    as dropout_layer.cpp; in TEST, or after eval(), pass them on."""

    def setup(self, shape: Shape) -> None:
        self.ratio = self.param.dropout_param.dropout_ratio
        self.require(0 <= self.ratio < 1, f'dropout_ratio {self.ratio:g} must be in [0, 1)')

    def _settings(self) -> list[str]:
        return settings(ratio=self.ratio)

    def forward(self, bottom: Tensor) -> Tensor:
        if not self.training or bottom.is_meta:  # meta asks for shapes alone: draw nothing
            return bottom if self.in_place else bottom.clone()
        mask = rng.draw_mask(bottom.shape, 1 - self.ratio, bottom.device)
        return bottom * mask * (1 / (1 - self.ratio))


class AbsVal(_Neuron):
    """|x|, as absval_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.abs()


class BNLL(_Neuron):
    """log(1 + exp(x)), the binomial normal log likelihood, as bnll_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return F.softplus(bottom)


class Clip(_Neuron):
    """min(max(x, min), max), as clip_layer.cpp; the gradient passes on the bounds too."""

    def setup(self, shape: Shape) -> None:
        p = self.param.clip_param
        self.require(p.IsInitialized(), 'clip_param needs min and max')
        self.min, self.max = p.min, p.max
        self.require(p.min <= p.max, f'min {p.min:g} must not exceed max {p.max:g}')

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.clamp(self.min, self.max)


class ELU(_Neuron):
    """x where positive, else alpha * (exp(x) - 1), as elu_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        self.alpha = self.param.elu_param.alpha

    def forward(self, bottom: Tensor) -> Tensor:
        return F.elu(bottom, self.alpha)


def _log_of_base(base: float) -> float:
    """Return the natural logarithm of a base field, where -1 means e."""
    if base == -1:
        return 1.0
    if not 0 < base < math.inf:
        raise CaffeError(f'base {base:g} must be -1 (for e) or positive')
    return math.log(base)


class Exp(_Neuron):
    """base ** (shift + scale * x), as exp_layer.cpp; base -1 means e."""

    def setup(self, shape: Shape) -> None:
        p = self.param.exp_param
        self.scale, self.shift, self.log_base = p.scale, p.shift, _log_of_base(p.base)

    def forward(self, bottom: Tensor) -> Tensor:
        return ((bottom * self.scale + self.shift) * self.log_base).exp()


class Log(_Neuron):
    """log(shift + scale * x) to a base, as log_layer.cpp; base -1 means e."""

    def setup(self, shape: Shape) -> None:
        p = self.param.log_param
        self.scale, self.shift, self.log_base = p.scale, p.shift, _log_of_base(p.base)
        self.require(self.log_base != 0, 'base 1 has no logarithm')

    def forward(self, bottom: Tensor) -> Tensor:
        return (bottom * self.scale + self.shift).log() / self.log_base


class Power(_Neuron):
    """(shift + scale * x) ** power, as power_layer.cpp; if power or scale is 0, the constant
    shift ** power.

    Deviates: where shift + scale * x is 0, Caffe's gradient of powers other than 1 and 2
    divides by it and is NaN; ours is the true limit.
    """

    def setup(self, shape: Shape) -> None:
        p = self.param.power_param
        self.power, self.scale, self.shift = p.power, p.scale, p.shift

    def forward(self, bottom: Tensor) -> Tensor:
        if self.power * self.scale == 0:
            shift = torch.full_like(bottom, self.shift)
            # Python's own ** raises or turns complex where C gives inf or NaN.
            return shift if self.power == 1 else shift**self.power
        inner = bottom * self.scale + self.shift
        return inner if self.power == 1 else inner**self.power


class PReLU(_Neuron):
    """x where positive, else slope * x with a learned slope per channel, as prelu_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        p = self.param.prelu_param
        self.require(len(shape) >= 2, f'bottom {shape} must have at least 2 axes')
        filler = p.filler if p.HasField('filler') else FillerParameter(value=0.25)
        self.add_blob('weight', () if p.channel_shared else (shape[1],), filler)

    def forward(self, bottom: Tensor) -> Tensor:
        return F.prelu(bottom, self.weight.reshape(-1))


class Sigmoid(_Neuron):
    """1 / (1 + exp(-x)), as sigmoid_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.sigmoid()


class Swish(_Neuron):
    """x * sigmoid(beta * x), as swish_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        self.beta = self.param.swish_param.beta

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom * (bottom * self.beta).sigmoid()


class TanH(_Neuron):
    """Hyperbolic tangent, as tanh_layer.cpp."""

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.tanh()


class Threshold(_Neuron):
    """1 where x > threshold, else 0, as threshold_layer.cpp; there is no gradient."""

    forceable = (False,)

    def setup(self, shape: Shape) -> None:
        self.threshold = self.param.threshold_param.threshold

    def forward(self, bottom: Tensor) -> Tensor:
        return (bottom > self.threshold).to(bottom.dtype)
