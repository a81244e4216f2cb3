"""Hide what is in a picture, by its labels (PAMI 2016, table 8)."""

from __future__ import annotations

import numpy as np

from caffe_port.errors import CaffeError
from solve.datasets.layer import Params

MASKS = ('foreground', 'background', 'shape')


def read_mask_option(params: Params) -> str | None:
    """Return the value of 'mask' in a param_str; raise CaffeError for one that is not in MASKS."""
    mask = params.get('mask', (str, type(None)), ' or '.join(map(repr, MASKS)), None)
    if mask not in (None, *MASKS):
        raise CaffeError(
            f"{params.layer}: param_str: 'mask' must be {' or '.join(map(repr, MASKS))}, "
            f'got {mask!r}'
        )
    return mask


def mask_image(image: np.ndarray, label: np.ndarray, mask: str | None) -> np.ndarray:
    """Return an image blob without its foreground, its background, or all but the shape of both.

    image: 1 x 3 x H x W float32, minus the mean; label: 1 x 1 x H x W. Hidden pixels are 0, the
    mean. Void is the rim of objects, so it goes with the foreground. The shape is white (+128)
    in front of black (-128): where the foreground is, and nothing of how it looks.
    """
    if mask is None:
        return image
    foreground = label != 0
    if mask == 'shape':
        white, black = np.float32(128), np.float32(-128)
        return np.broadcast_to(np.where(foreground, white, black), image.shape).copy()
    return np.where(foreground == (mask == 'foreground'), np.float32(0), image)
