"""What all data sets share: reading lists, images and labels, trusting none of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from caffe_port.errors import CaffeError

# The most pixels a picture may have; what it says of its size is checked before it is decoded.
MAX_PIXELS = 64 * 2**20
VOID = 255


def read_list(path: str | os.PathLike) -> list[str]:
    """Read the ids of a split, one a line, in the file's order; blank lines do not count.

    Raises CaffeError if the file is missing, empty or not UTF-8, or if a line could
    lead out of the data set's folders.
    """
    path = existing(path)
    try:
        lines = path.read_bytes().decode('utf-8').split('\n')
    except UnicodeDecodeError as error:
        raise CaffeError(f'{path}: not a list of ids: byte {error.start} is not UTF-8') from error
    except OSError as error:
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    ids = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            ids.append(plain_name(line.strip(), f'{path}: line {number}'))
    if not ids:
        raise CaffeError(f'{path}: empty, one image id a line expected')
    return ids


def plain_name(name: str, where: str) -> str:
    """Return `name` if it names something inside a folder; raise CaffeError if not."""
    if (
        name in ('', '.', '..')
        or len(name) > 255
        or not name.isprintable()
        or set(name) & set('/\\')
    ):
        raise CaffeError(
            f'{where}: {name[:80]!r} is not an id: a plain name expected, without folders'
        )
    return name


def existing(path: str | os.PathLike) -> Path:
    """Return `path` if it is a file; raise CaffeError if not."""
    path = Path(path)
    if not os.path.isfile(path):
        looked = '' if path.is_absolute() else f' (looked from {Path.cwd()})'
        what = 'a folder, a file expected' if os.path.isdir(path) else 'no such file'
        raise CaffeError(f'{path}: {what}{looked}')
    return path


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Read a JPEG or PNG picture; grey and CMYK ones are converted.

    uint8, H x W x 3, RGB.

    Raises CaffeError if it is missing, broken, of another format or above 64 Mpixel.
    """
    return np.asarray(picture(path, ('JPEG', 'PNG'), 'RGB'))


def read_label_png(path: str | os.PathLike) -> np.ndarray:
    """Read the labels of a PNG: the palette indices, or the values of a grey one.

    uint8, H x W.

    Raises CaffeError as read_rgb does, and if the PNG holds colours.
    """
    image = picture(path, ('PNG',))
    if image.mode not in ('P', 'L'):
        raise CaffeError(
            f'{path}: PNG of mode {image.mode}, must be palette (P) or grey (L): '
            'the labels are its indices'
        )
    return np.asarray(image)


def picture(
    path: str | os.PathLike, formats: tuple[str, ...], mode: str | None = None
) -> Image.Image:
    path = existing(path)
    wanted = ' or '.join(formats)
    try:
        with Image.open(path, formats=formats) as image:
            width, height = image.size
            if not 0 < width * height <= MAX_PIXELS:
                raise CaffeError(f'{path}: {width} x {height} pixels, at most {MAX_PIXELS} in all')
            image.load()
            return image if mode is None or image.mode == mode else image.convert(mode)
    except CaffeError:
        raise
    except Image.UnidentifiedImageError as error:
        raise CaffeError(f'{path}: not a {wanted} file') from error
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise CaffeError(f'{path}: broken {wanted} file: {error}') from error


def bgr_blob(rgb: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """Make an H x W x 3 RGB picture a blob: 1 x 3 x H x W float32, BGR, minus `mean`."""
    bgr = rgb[:, :, ::-1].astype(np.float32)
    bgr -= np.asarray(mean, np.float64)
    return np.ascontiguousarray(bgr.transpose(2, 0, 1))[np.newaxis]


def label_blob(labels: np.ndarray, classes: int, path: Path, rgb: np.ndarray) -> np.ndarray:
    """Make H x W labels a blob: 1 x 1 x H x W float32 of 0..classes-1 and 255 (void).

    Raises CaffeError, naming `path`, if another value occurs or if the labels are not
    of the size of their picture.
    """
    if labels.shape != rgb.shape[:2]:
        raise CaffeError(
            f'{path}: label of {labels.shape[0]} x {labels.shape[1]} (height x width)'
            f', its image is {rgb.shape[0]} x {rgb.shape[1]}'
        )
    odd = ~np.isin(labels, [*range(classes), VOID])
    if odd.any():
        y, x = np.argwhere(odd)[0]
        raise CaffeError(
            f'{path}: image {path.stem} has label {labels[y, x]} at row {y}, '
            f'column {x}; 0..{classes - 1} and {VOID} (void) expected'
        )
    return labels.astype(np.float32)[np.newaxis, np.newaxis]
