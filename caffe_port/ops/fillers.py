"""Fill new blobs: the filler types of Caffe's filler.hpp."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from caffe_port import rng
from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import FillerParameter

# The most values that one net draws (1.2 GB), so that a few lines of prototxt cannot fill the
# machine's memory. The largest official net, FCN-32s on colour and HHA, has 275 million.
MAX_DRAWN = 300_000_000
# How many values to draw at once: the stream gives float64, twice the blob's memory.
_CHUNK = 2**20
_spent: ContextVar[list[int] | None] = ContextVar('spent', default=None)


@contextmanager
def limit_draws() -> Iterator[None]:
    """Hold all params filled in the block together, as those of a net, to MAX_DRAWN values."""
    token = _spent.set([0])
    try:
        yield
    finally:
        _spent.reset(token)


def fill(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    """Return a float32 array of `shape` filled by `filler`; its default is constant 0.

    Random types draw from the stream of rng.py. The distributions are Caffe's, the numbers
    are not: Caffe's depend on the boost it was built with.

    Raises CaffeError for an unknown type, for a shape that does not fit the type, and for
    more than MAX_DRAWN values, all params of a net under `limit_draws` taken together.
    """
    if filler.type not in _FILLERS:
        raise CaffeError(
            f'filler type "{filler.type}" unknown; there are ' + ', '.join(sorted(_FILLERS))
        )
    if filler.sparse != -1 and filler.type != 'gaussian':
        raise CaffeError(f'filler type "{filler.type}" takes no `sparse`; only gaussian does')
    _spend(filler.type, shape)
    return _FILLERS[filler.type](filler, shape)


def _spend(kind: str, shape: tuple[int, ...]) -> None:
    """Count a blob's values against the bound."""
    spent, count = _spent.get() or [0], math.prod(shape)
    if spent[0] + count > MAX_DRAWN:
        raise CaffeError(
            f'filler {kind}: {shape} are {count} values after {spent[0]} of other '
            f'params, at most {MAX_DRAWN} are drawn for a net; load weights over a '
            'constant 0 instead'
        )
    spent[0] += count


def _constant(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, filler.value, np.float32)


def _drawn(shape: tuple[int, ...], draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return an array of `shape`, drawn by draw(count) one stretch at a time."""
    values = np.empty(shape, np.float32)
    for part in _stretches(values):
        part[...] = draw(part.size)
    return values


def _stretches(values: np.ndarray) -> Iterator[np.ndarray]:
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]


def _uniform(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    if not filler.min <= filler.max:
        raise CaffeError(f'filler uniform: min {filler.min:g} exceeds max {filler.max:g}')
    return _drawn(shape, lambda n: rng.stream().uniform(filler.min, filler.max, n))


def _gaussian(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    """Draw normal values; with `sparse` k each stays with probability k / outputs, else is 0."""
    if not filler.std >= 0:
        raise CaffeError(f'filler gaussian: std is {filler.std:g}, must not be negative')
    values = _drawn(shape, lambda n: rng.stream().normal(filler.mean, filler.std, n))
    if filler.sparse != -1:
        share = filler.sparse / max(shape[0] if shape else 1, 1)
        if not 0 <= share <= 1:
            raise CaffeError(
                f'filler gaussian: sparse {filler.sparse} of {shape}, must be -1 '
                'or 0 to the number of outputs'
            )
        for part in _stretches(values):
            part *= rng.stream().uniform(size=part.size) < share
    return values


def _positive_unitball(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    """Draw positive weights that sum to 1 for each output."""
    values = _drawn(shape, lambda n: rng.stream().uniform(size=n))
    axes = tuple(range(1, len(shape)))
    values /= values.sum(axes, keepdims=True, dtype=np.float64)
    return values


def _fan(filler: FillerParameter, shape: tuple[int, ...]) -> float:
    """Return the number of inputs, of outputs, or their mean, by variance_norm."""
    count = math.prod(shape)
    fan_in = count / shape[0] if shape and shape[0] else 1
    fan_out = count / shape[1] if len(shape) > 1 and shape[1] else count
    norms = {
        FillerParameter.FAN_IN: fan_in,
        FillerParameter.FAN_OUT: fan_out,
        FillerParameter.AVERAGE: (fan_in + fan_out) / 2,
    }
    return max(norms[filler.variance_norm], 1)


def _xavier(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    bound = math.sqrt(3 / _fan(filler, shape))
    return _drawn(shape, lambda n: rng.stream().uniform(-bound, bound, n))


def _msra(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    std = math.sqrt(2 / _fan(filler, shape))
    return _drawn(shape, lambda n: rng.stream().normal(0, std, n))


def _bilinear(filler: FillerParameter, shape: tuple[int, ...]) -> np.ndarray:
    """Return the upsampling kernel in every plane, on the diagonal or not, as Caffe does."""
    if len(shape) != 4 or shape[2] != shape[3] or not shape[3]:
        raise CaffeError(f'filler bilinear: {shape} is not a stack of square filters')
    factor = math.ceil(shape[3] / 2)
    center = (shape[3] - 1) / (2 * factor)
    line = 1 - np.abs(np.arange(shape[3]) / factor - center)
    return np.broadcast_to(np.outer(line, line).astype(np.float32), shape).copy()


_FILLERS = {
    'constant': _constant,
    'uniform': _uniform,
    'gaussian': _gaussian,
    'positive_unitball': _positive_unitball,
    'xavier': _xavier,
    'msra': _msra,
    'bilinear': _bilinear,
}
