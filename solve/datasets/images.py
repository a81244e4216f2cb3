"""Read lists of ids and pictures, and turn pictures and labels into blobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from caffe_port.errors import CaffeError

VOID = 255


def read_list(path: str | os.PathLike) -> list[str]:
    """Read the ids of a split, one a line, in the file's order; skip blank lines.

    A byte order mark before the first id is left out.

    Raises CaffeError if the file is missing, empty or not UTF-8, or if a line is not a
    plain name.
    """
    path = check_exists(path)
    try:
        lines = path.read_text(encoding='utf-8-sig').split('\n')
    except OSError as error:
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    except UnicodeError as error:
        raise CaffeError(f'{path}: not a list of ids: {error}') from error
    ids = [
        plain_name(line.strip(), f'{path}: line {number}')
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not ids:
        raise CaffeError(f'{path}: empty, one image id a line expected')
    return ids


def plain_name(name: str, where: str) -> str:
    """Return `name` if it can name a file in a folder; raise CaffeError if not."""
    if name in ('', '.', '..') or len(name) > 255 or not name.isprintable() or {*name} & {*'/\\'}:
        raise CaffeError(
            f'{where}: {name[:80]!r} is not an id: a plain name expected, without folders'
        )
    return name


def check_exists(path: str | os.PathLike) -> Path:
    """Return `path` if it is a file; raise CaffeError if not."""
    path = Path(path)
    try:
        is_file = path.is_file()
    except PermissionError as error:  # of a folder above it
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    if not is_file:
        looked = '' if path.is_absolute() else f' (looked from {Path.cwd()})'
        what = 'a folder, a file expected' if path.is_dir() else 'no such file'
        raise CaffeError(f'{path}: {what}{looked}')
    return path


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Read a JPEG or PNG picture; convert grey and CMYK ones.

    uint8, H x W x 3, RGB.

    Raises CaffeError if it is missing, broken or of another format.
    """
    return np.asarray(open_picture(path, ('JPEG', 'PNG'), 'RGB'))


def read_label_png(path: str | os.PathLike) -> np.ndarray:
    """Read the labels of a PNG: its palette indices, or its grey values.

    uint8, H x W.

    Raises CaffeError as read_rgb does, and if the PNG holds colours.
    """
    image = open_picture(path, ('PNG',))
    if image.mode not in ('P', 'L'):
        raise CaffeError(
            f'{path}: PNG of mode {image.mode}, must be palette (P) or grey (L): '
            'the labels are its indices'
        )
    return np.asarray(image)


def open_picture(
    path: str | os.PathLike, formats: tuple[str, ...], mode: str | None = None
) -> Image.Image:
    """Read a picture of one of `formats`, converted to `mode` if given."""
    path, wanted = check_exists(path), ' or '.join(formats)
    try:
        with Image.open(path, formats=formats) as image:
            image.load()
            return image if mode in (None, image.mode) else image.convert(mode)
    except Image.UnidentifiedImageError as error:
        raise CaffeError(f'{path}: not a {wanted} file') from error
    except PermissionError as error:
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    except Exception as error:  # a decoder may raise anything on a broken file
        raise CaffeError(f'{path}: broken {wanted} file: {error}') from error


def bgr_blob(rgb: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """Turn an H x W x 3 RGB picture into a blob: 1 x 3 x H x W float32, BGR, minus `mean`."""
    bgr = rgb[:, :, ::-1].astype(np.float32)
    bgr -= np.asarray(mean, np.float64)
    return np.ascontiguousarray(bgr.transpose(2, 0, 1))[np.newaxis]


def label_blob(labels: np.ndarray, classes: int, path: Path, rgb: np.ndarray) -> np.ndarray:
    """Turn H x W labels into a blob: 1 x 1 x H x W float32 of 0..classes-1 and 255 (void).

    Raises CaffeError, naming `path`, if another value occurs or if the labels and their
    picture `rgb` differ in size.
    """
    if labels.shape != rgb.shape[:2]:
        raise CaffeError(
            f'{path}: label of {labels.shape[0]} x {labels.shape[1]} (height x width)'
            f', its image is {rgb.shape[0]} x {rgb.shape[1]}'
        )
    known = np.isin(labels, [*range(classes), VOID])
    check_labels(labels, known, path, f'0..{classes - 1} and {VOID} (void)')
    return labels.astype(np.float32)[np.newaxis, np.newaxis]


def check_labels(labels: np.ndarray, known: np.ndarray, path: Path, expected: str) -> None:
    """Raise CaffeError with the first label, H x W, that is not `known`, H x W bool."""
    if not known.all():
        y, x = np.argwhere(~known)[0]
        raise CaffeError(
            f'{path}: image {path.stem} has label {labels[y, x]} at row {y}, column {x}; '
            f'{expected} expected'
        )
