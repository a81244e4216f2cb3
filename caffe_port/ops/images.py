"""Images as OpenCV gives them to Caffe: H x W x channels, uint8, colours in the order BGR."""

from __future__ import annotations

import os
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from caffe_port.errors import CaffeError


def read_image(
    path: str | os.PathLike, color: bool = True, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read an image file, in colour or grey, and resize it to `size` (height, width).

    Raises CaffeError if the file is missing or no image.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except OSError as error:
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    image = decode(data, color, os.fspath(path))
    return image if size is None else resize(image, *size)


def decode(data: bytes, color: bool | None, where: str) -> np.ndarray:
    """Decode the bytes of an image file: in colour, in grey or, with None, as it is.

    Grey values may be 1 off OpenCV's, which round otherwise. Raises CaffeError, which
    begins with `where`, for what is no image, and as it is for more than 8 bits.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            if color is False:
                image.draft('L', image.size)  # a JPEG has its grey values apart
            if image.mode.startswith('I'):
                return _of_16_bits(np.asarray(image), color)
            return _pixels(image, color)
    except UnidentifiedImageError as error:
        raise CaffeError(
            f'{where}: expected an image, found {len(data)} bytes of no format that Pillow reads'
        ) from error
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise CaffeError(f'{where}: expected an image, found {len(data)} bytes: {error}') from error


def _pixels(image: Image.Image, color: bool | None) -> np.ndarray:
    if color is None:
        has_alpha, is_grey = image.mode in ('RGBA', 'LA', 'PA'), image.mode in ('1', 'L')
        mode = 'RGBA' if has_alpha else 'L' if is_grey else 'RGB'
    else:
        mode = 'RGB' if color else 'L'
    pixels = np.atleast_3d(np.asarray(image.convert(mode)))
    return (
        np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
        if (pixels.shape[2] > 1)
        else pixels
    )


def _of_16_bits(pixels: np.ndarray, color: bool | None) -> np.ndarray:
    if color is None:
        raise CaffeError('16 bits per channel, 8 expected')
    grey = (pixels >> 8).astype(np.uint8)[..., np.newaxis]
    return np.repeat(grey, 3, 2) if color else grey


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize bilinearly as cv::resize does: H x W x channels, uint8.

    Pixels are squares whose corners stay in place, nothing is smoothed, and weights are
    whole multiples of 1 / 2048.
    """
    if image.shape[:2] == (height, width):
        return image
    (above, below), of_rows = _neighbours(image.shape[0], height)
    (left, right), of_columns = _neighbours(image.shape[1], width)
    # At the sides OpenCV gives all weight to one pixel, at top and bottom it rounds two parts.
    of_columns[0][left == right], of_columns[1][left == right] = 2048, 0
    whole = image.astype(np.int32)
    across = whole[:, left] * of_columns[0][:, None] + whole[:, right] * of_columns[1][:, None]
    first, second = (
        (weight[:, None, None] * (across[rows] >> 4)) >> 16
        for rows, weight in zip((above, below), of_rows)
    )
    return ((first + second + 2) >> 2).astype(np.uint8)


def _neighbours(old: int, new: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return for each new pixel its two old neighbours, and their weights in 2048ths, int32."""
    at = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    part = at - first.astype(np.float32)
    weights = [np.rint(share * np.float32(2048)).astype(np.int32) for share in (1 - part, part)]
    return [places.clip(0, old - 1) for places in (first, first + 1)], weights
