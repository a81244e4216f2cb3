"""Map the pixels of one blob to the grid of another, and crop one to align them.

A coordinate map takes the index x of a pixel in a layer's bottom to its index y in
the top, which need not be whole: y = scale * x + shift, on each spatial axis.

Convolution and pooling: the window of output y covers the inputs s*y - p up to
s*y - p + (k - 1), with stride s, padding p and dilated extent k. Its centre is
x = s*y - p + (k - 1)/2, hence y = x/s + (p - (k - 1)/2)/s.
Deconvolution is the same with bottom and top exchanged: y = s*x - p + (k - 1)/2.
Crop drops the first `offset` pixels: y = x - offset.

The arithmetic is in fractions, so that an offset that should be whole is whole.

Source of the names and of the behaviour: pycaffe's coord_map.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.net_spec import Function, Top, layers

# Layers whose pixel y is made of pixel y of each bottom (or of its channels).
PASS_THROUGH_LAYERS = frozenset(
    (
        'AbsVal',
        'BatchNorm',
        'Bias',
        'BNLL',
        'Clip',
        'Concat',
        'Dropout',
        'ELU',
        'Eltwise',
        'Exp',
        'Log',
        'LRN',
        'MVN',
        'Power',
        'PReLU',
        'ReLU',
        'Scale',
        'Sigmoid',
        'Slice',
        'Softmax',
        'Split',
        'Swish',
        'TanH',
        'Threshold',
    )
)

# Later bottoms of these give a size or coefficients and are not mapped to the top.
_ONE_MAPPED_BOTTOM = frozenset(('Bias', 'Crop', 'Scale'))


class UndefinedMapException(CaffeError):
    """A layer has no coordinate map: its top has no place on its bottom's grid."""


class AxisMismatchException(CaffeError):
    """Two coordinate maps are of different axes and cannot be composed."""


class UnconnectedError(CaffeError, RuntimeError):
    """No path of spatial layers connects two tops (pycaffe raises a RuntimeError)."""


class CropError(CaffeError, AssertionError):
    """No crop aligns two tops (pycaffe raises an AssertionError)."""


class CoordMap(NamedTuple):
    """y = scale * x + shift, on every axis after `axis`.

    axis: the last one before the mapped axes, 1 for N x C x H x W; None for any.
    scale, shift: object arrays of Fraction with one element for all axes, or one per axis.
    """

    axis: int | None
    scale: np.ndarray
    shift: np.ndarray


def _fractions(values: int | Sequence[int]) -> np.ndarray:
    several = values if isinstance(values, Sequence) else [values]
    return np.array([Fraction(int(value)) for value in several], dtype=object)


IDENTITY = CoordMap(None, _fractions(1), _fractions(0))


def coord_map(fn: Function) -> CoordMap:
    """Return the map from a layer's bottom to its top.

    Raises UndefinedMapException for a layer that has none, such as InnerProduct,
    or whose window is not known, such as a Convolution without kernel_size.
    """
    if fn.type_name in ('Convolution', 'Im2col', 'Pooling'):
        axis, stride, extent, pad = window(fn)
        return CoordMap(axis, 1 / stride, (pad - (extent - 1) / 2) / stride)
    if fn.type_name == 'Deconvolution':
        axis, stride, extent, pad = window(fn)
        return CoordMap(axis, stride, (extent - 1) / 2 - pad)
    if fn.type_name == 'Crop':
        param = fn.settings().crop_param
        return CoordMap(param.axis - 1, _fractions(1), -_fractions(list(param.offset) or 0))
    if fn.type_name in PASS_THROUGH_LAYERS and _keeps_places(fn):
        return IDENTITY
    raise UndefinedMapException(f'{fn}: this layer has no coordinate map')


def compose(base_map: CoordMap, next_map: CoordMap) -> CoordMap:
    """Return the map that applies `next_map`, then `base_map`.

    a1 * (a2 * x + b2) + b1 = (a1 * a2) * x + (a1 * b2 + b1).

    Raises AxisMismatchException if the two map different axes.
    """
    ax1, a1, b1 = base_map
    ax2, a2, b2 = next_map
    if None not in (ax1, ax2) and ax1 != ax2:
        raise AxisMismatchException(f'cannot compose maps of the axes after {ax1} and after {ax2}')
    _check_axes('cannot compose maps', a1, b1, a2, b2)
    return CoordMap(ax2 if ax1 is None else ax1, a1 * a2, a1 * b2 + b1)


def inverse(forward: CoordMap) -> CoordMap:
    """Return the map from y back to x: x = y/a - b/a where y = a*x + b."""
    axis, a, b = forward
    return CoordMap(axis, 1 / a, -b / a)


def coord_map_from_to(top_from: Top, top_to: Top) -> CoordMap:
    """Return the map from the pixels of one top to those of another.

    With maps F and T from a common ancestor to the two tops it is T after the inverse
    of F. Of several paths the shortest is taken: like pycaffe, this assumes that all agree.

    Raises UnconnectedError if no path of layers with coordinate maps connects the two.
    """
    undefined: list[str] = []
    from_maps = dict(_ancestors(top_from, undefined))
    for top, to_map in _ancestors(top_to, undefined):
        if top in from_maps:
            return compose(to_map, inverse(from_maps[top]))
    stopped = f'; stopped at: {", ".join(dict.fromkeys(undefined))}' if undefined else ''
    raise UnconnectedError(
        f'no coordinate map from the top of {top_from.fn} to that of {top_to.fn}: '
        f'no path of spatial layers connects them{stopped}'
    )


def crop(top_from: Top, top_to: Top) -> Top:
    """Crop `top_from` to the size and place of `top_to`, by the offset that aligns their pixels.

    Raises CropError if the grids differ in scale, or if the offset is negative or falls
    between pixels.
    """
    axis, a, b = coord_map_from_to(top_from, top_to)
    name = f'crop of {top_from.fn} to {top_to.fn}'
    if not (a == 1).all():
        raise CropError(f'{name}: the scale is {_text(a)}, must be 1')
    offset = np.broadcast_to(-b, np.broadcast(a, b).shape)
    if not (offset >= 0).all():
        raise CropError(f'{name}: the offset is {_text(offset)}, must not be negative')
    if any(value.denominator != 1 for value in offset):
        raise CropError(f'{name}: the offset is {_text(offset)}, must be whole')
    # A map for any axis is taken as one of the spatial axes of N x C x H x W.
    first_cropped = 2 if axis is None else axis + 1
    return layers.Crop(
        top_from,
        top_to,
        crop_param=dict(axis=first_cropped, offset=[int(value) for value in offset]),
    )


def _ancestors(top: Top, undefined: list[str]) -> Iterator[tuple[Top, CoordMap]]:
    """Yield a top and all tops it is computed from, nearest first, each with its map to `top`.

    Layers without a map end their path; they are added to `undefined`.
    """
    maps = {top: IDENTITY}
    waiting = deque([top])
    while waiting:
        here = waiting.popleft()
        yield here, maps[here]
        fn = here.fn
        bottoms = fn.inputs[:1] if fn.type_name in _ONE_MAPPED_BOTTOM else fn.inputs
        unseen = [bottom for bottom in bottoms if bottom not in maps]
        if not unseen:
            continue
        try:
            step = coord_map(fn)
        except UndefinedMapException as error:
            undefined.append(str(error))
            continue
        for bottom in dict.fromkeys(unseen):
            maps[bottom] = compose(maps[here], step)
            waiting.append(bottom)


def _keeps_places(fn: Function) -> bool:
    """Return False for a Concat or Slice on another axis than the channels."""
    joined, cut = fn.settings().concat_param, fn.settings().slice_param
    return all(axis == 1 for axis in (joined.axis, joined.concat_dim, cut.axis, cut.slice_dim))


def window(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Return axis, stride, dilated extent and padding of a layer with a sliding window."""
    pooling, convolution = fn.settings().pooling_param, fn.settings().convolution_param
    pools = fn.type_name == 'Pooling'
    if pools and pooling.global_pooling:
        raise UndefinedMapException(f'{fn}: global pooling has no coordinate map')
    param = pooling if pools else convolution
    axis, dilation = convolution.axis, _fractions(list(convolution.dilation) or 1)
    kernel = _per_axis(param, 'kernel_size', 'kernel', default=0)
    stride = _per_axis(param, 'stride', 'stride', default=1)
    pad = _per_axis(param, 'pad', 'pad', default=0)
    if not (kernel.all() and stride.all()):
        raise UndefinedMapException(
            f'{fn}: kernel size and stride must be positive, '
            f'got {_text(kernel)} and {_text(stride)}'
        )
    _check_axes(str(fn), kernel, stride, pad, dilation)
    return axis, stride, (kernel - 1) * dilation + 1, pad


def _per_axis(param, plain: str, stem: str, default: int) -> np.ndarray:
    """Return a setting as one number for all axes or one per axis: `_h` and `_w` if given."""
    if param.HasField(stem + '_h') or param.HasField(stem + '_w'):
        return _fractions([getattr(param, stem + '_h'), getattr(param, stem + '_w')])
    value = getattr(param, plain)
    several = hasattr(value, 'extend')  # convolutions take one per axis, pooling one for all
    return _fractions((list(value) or default) if several else value)


def _check_axes(what: str, *arrays: np.ndarray) -> None:
    lengths = {len(array) for array in arrays} - {1}
    if len(lengths) > 1:
        raise AxisMismatchException(
            f'{what}: settings for {min(lengths)} and for {max(lengths)} axes'
        )


def _text(values: np.ndarray) -> str:
    return ', '.join(str(value) for value in values)
