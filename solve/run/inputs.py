"""Find the pictures that a command line names (files, folders, lists), and read them as RGB."""

from __future__ import annotations

import glob
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from caffe_port.errors import CaffeError
from solve.datasets.images import check_exists
from solve.run.results import is_ours

LISTS = ('.txt', '.lst', '.list')
# EPS starts Ghostscript; the others are names without a decoder, or films.
_LEFT_OUT = {'EPS', 'BUFR', 'GRIB', 'HDF5', 'WMF', 'MPEG'}


def list_formats() -> tuple[str, ...]:
    """Return the names of the formats that are read: all that Pillow opens, without EPS."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _LEFT_OUT)


def find_pictures(argument: str | Path) -> list[Path]:
    """Return the pictures that one argument names.

    For a folder, return its pictures in natural order (frame2 before frame10), without
    subfolders and infer.py's results. For a pattern such as 'day*/*.jpg', return what it
    matches, in the same order. For a .txt, .lst or .list file, return the picture of each line,
    relative to the file's folder. Anything else is itself a picture.

    Raises CaffeError if there is none.
    """
    path = Path(argument)
    try:
        if path.is_dir():
            return _in_folder(path)
        if not path.exists() and re.search(r'[*?[]', str(path)):
            found = [Path(name) for name in glob.glob(str(path), recursive=True)]
            if not found:
                raise CaffeError(f'{path}: no file matches')
            return sorted((name for name in found if name.is_file()), key=_by_number)
        if path.suffix.lower() in LISTS:
            return _in_list(path)
        return [check_exists(path)]
    except OSError as error:
        raise CaffeError(f'{path}: cannot be read: {error.strerror or error}') from error


def _in_folder(folder: Path) -> list[Path]:
    Image.init()
    known = {
        suffix for suffix, name in Image.registered_extensions().items() if name in list_formats()
    }
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in known and not path.name.startswith('.') and path.is_file()
        # A second run may find the results of the first among the pictures.
        if not (path.stem.endswith(('_labels', '_overlay')) and is_ours(path))
    ]
    if not found:
        raise CaffeError(f'{folder}: no picture in this folder')
    return sorted(found, key=_by_number)


def _in_list(path: Path) -> list[Path]:
    try:
        lines = check_exists(path).read_text(encoding='utf-8-sig').splitlines()
    except UnicodeError as error:
        raise CaffeError(f'{path}: not a list of files: {error}') from error
    found = [path.parent / line.strip() for line in lines if line.strip()]
    if not found:
        raise CaffeError(f'{path}: empty, one picture a line expected')
    return found


def _by_number(path: Path) -> list[tuple[bool, int, str]]:
    """Order names so that a number in them counts as a number."""
    parts = re.split(r'(\d+)', str(path))
    return [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part
    ]


def read_upright(path: Path) -> np.ndarray:
    """Read a picture as a viewer shows it, or its first frame: uint8, H x W x 3, RGB.

    It is turned as its EXIF orientation says. Transparent pixels are shown over white. 16-bit
    grey is scaled to 8 bits (65535, white, becomes 255).

    Raises CaffeError if it is missing, broken, of no format that Pillow opens, or its values have
    no known white: 32-bit integers and floats.
    """
    try:
        with Image.open(check_exists(path), formats=list_formats()) as image:
            image.load()
            if image.mode == 'I' and image.format not in ('PNG', 'PPM'):
                raise CaffeError(
                    f'{path}: {image.format} picture of 32-bit integers (mode I), whose white is '
                    'not known; save it with 8 or 16 bits'
                )
            return np.array(_to_rgb(ImageOps.exif_transpose(image), path))
    except Image.UnidentifiedImageError as error:
        raise CaffeError(f'{path}: not a picture in a format that Pillow opens') from error
    except CaffeError:
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise CaffeError(f'{path}: broken picture: {error}') from error


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith('I'):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert('RGB')
    if image.mode == 'F':
        raise CaffeError(
            f'{path}: picture of floats (mode F), whose white is not known; save it with 8 or 16 '
            'bits'
        )
    if image.has_transparency_data:
        clear = image.convert('RGBA')
        white = Image.new('RGBA', clear.size, 'white')
        return Image.alpha_composite(white, clear).convert('RGB')
    return image.convert('RGB')
