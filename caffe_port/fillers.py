"""How a blob's first values are drawn: the filler types of Caffe's filler.hpp."""

from __future__ import annotations

import math

import numpy as np

from caffe_port import rng
from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import FillerParameter


def fill(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a float32 array of `shape` as `filler` says; its default is constant 0.

    Random types draw from the stream of rng.py. The distributions are Caffe's;
    the numbers are not, for Caffe's depend on the version of boost it was built with.

    Raises CaffeError for an unknown type or a shape the type does not fit.
    """
    if filler.type not in _FILLERS:
        raise CaffeError(f'filler type "{filler.type}" unknown; there are '
                         + ', '.join(sorted(_FILLERS)))
    if filler.sparse != -1 and filler.type != 'gaussian':
        raise CaffeError(f'filler type "{filler.type}" takes no `sparse`; only gaussian does')
    return _FILLERS[filler.type](filler, shape).astype(np.float32, copy=False)


def _constant(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, filler.value, np.float32)


def _uniform(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    return rng.stream().uniform(filler.min, filler.max, shape)


def _gaussian(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    """With `sparse` k, an output's weights are non-zero with probability k / outputs."""
    if filler.std < 0:
        raise CaffeError(f'filler gaussian: std is {filler.std:g}, must not be negative')
    values = rng.stream().normal(filler.mean, filler.std, shape)
    if filler.sparse >= 0:
        outputs = shape[0] if shape else 1
        values *= rng.stream().uniform(size=shape) < filler.sparse / max(outputs, 1)
    return values


def _positive_unitball(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    """Positive weights that add up to 1 for each output."""
    values = rng.stream().uniform(size=shape).reshape(shape[0] if shape else 1, -1)
    return (values / values.sum(1, keepdims=True)).reshape(shape)


def _fan(filler: FillerParameter, shape: tuple[int, ...]) -> float:
    """Inputs of an output, outputs of an input, or their mean, as variance_norm says."""
    count = math.prod(shape)
    fan_in = count / shape[0] if shape and shape[0] else 1
    fan_out = count / shape[1] if len(shape) > 1 and shape[1] else count
    norms = {FillerParameter.FAN_IN: fan_in, FillerParameter.FAN_OUT: fan_out,
             FillerParameter.AVERAGE: (fan_in + fan_out) / 2}
    return max(norms[filler.variance_norm], 1)


def _xavier(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    bound = math.sqrt(3 / _fan(filler, shape))
    return rng.stream().uniform(-bound, bound, shape)


def _msra(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    return rng.stream().normal(0, math.sqrt(2 / _fan(filler, shape)), shape)


def _bilinear(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    """The upsampling kernel in every plane, diagonal or not, as Caffe fills it."""
    if len(shape) != 4 or shape[2] != shape[3]:
        raise CaffeError(f'filler bilinear: {shape} is not a stack of square filters')
    factor = math.ceil(shape[3] / 2)
    center = (2 * factor - 1 - factor % 2) / (2 * factor)
    line = 1 - np.abs(np.arange(shape[3]) / factor - center)
    return np.broadcast_to(np.outer(line, line), shape)


_FILLERS = {
    'constant': _constant, 'uniform': _uniform, 'gaussian': _gaussian,
    'positive_unitball': _positive_unitball, 'xavier': _xavier, 'msra': _msra,
    'bilinear': _bilinear,
}
