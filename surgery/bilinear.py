"""Bilinear interpolation as the weights of a Deconvolution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError
from surgery.blobs import blobs_of, shape_of


def upsample_filt(size: int) -> np.ndarray:
    """Return the bilinear kernel, size x size float64, for a stride of half its size.

    On each axis it is a triangle of half-width f = (size + 1) // 2, 1 - |i - c| / f. The
    centre c is the middle pixel of an odd kernel, and between the two of an even one.

    Raises CaffeError if `size` is not positive.
    """
    if size < 1:
        raise CaffeError(f'bilinear kernel of size {size}, must be at least 1')
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    triangle = 1 - abs(np.arange(size) - centre) / factor
    return np.outer(triangle, triangle)


def interp(net: Any, layers: Iterable[str]) -> None:
    """Make the named Deconvolutions interpolate each channel bilinearly.

    Weights of C x C x k x k get the kernel on the diagonal, and keep their other values;
    those of C x 1 x k x k (one channel per group, or one output) get it everywhere.

    Raises CaffeError if a layer is missing, its filter is not square or its channels
    differ; then no layer has changed.
    """
    weights = {layer: blobs_of(net, layer)[0] for layer in layers}
    for layer, blob in weights.items():
        _check(layer, shape_of(blob))
    for blob in weights.values():
        weight = blob.data
        channels, across, size, _ = weight.shape
        diagonal = np.arange(channels)
        weight[diagonal, diagonal % across] = upsample_filt(size)


def _check(layer: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        raise CaffeError(f'{layer}: weights of shape {format_shape(shape)}, must have 4 axes')
    channels, across, height, width = shape
    if height != width:
        raise CaffeError(f'{layer}: {height} x {width} filter, must be square')
    if across not in (channels, 1):
        raise CaffeError(
            f'{layer}: {channels} x {across} channels, must be as many in as out, or one out'
        )
