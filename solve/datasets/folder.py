"""Own data: pictures in one folder, masks of the same stems in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caffe_port.errors import CaffeError, replacing
from nets.data import VOC_MEAN_BGR
from solve.datasets.images import (
    VOID,
    bgr_blob,
    check_exists,
    check_labels,
    label_blob,
    open_picture,
    plain_name,
    read_rgb,
)
from solve.datasets.labels import recode
from solve.datasets.layer import Params, SegDataLayer

MEAN = VOC_MEAN_BGR
# The folder with a list of pairs for each split; finetune.py writes it.
PLACES = {'lists_dir': 'lists'}
PICTURES, MASKS = ('.jpg', '.jpeg', '.png'), ('.png',)
# Modes whose pixels are numbers, not colours.
MODES = ('P', 'L', '1', 'I', 'I;16', 'I;16B')
OTHERS = '*'


class Pair(NamedTuple):
    """A picture and its mask, under the id that names them in scores and predictions."""

    id: str
    image: Path
    label: Path


def read_mask(path: Path) -> np.ndarray:
    """Read the numbers of a PNG mask: palette indices or grey values, H x W.

    The type is uint8, or for a 16-bit PNG its own.

    Raises CaffeError if the file is missing, broken, no PNG, or holds colours.
    """
    image = open_picture(path, ('PNG',))
    if image.mode not in MODES:
        raise CaffeError(
            f'{path}: colour mask (mode {image.mode}), expected a palette or grey PNG whose '
            'numbers are the classes'
        )
    array = np.asarray(image)
    return array.astype(np.uint8) if array.dtype == bool else array


def map_labels(
    numbers: np.ndarray, table: Mapping[int | str, int], classes: int, path: Path
) -> np.ndarray:
    """Replace the numbers of a mask by classes, as `table` says: H x W uint8.

    An empty table leaves them as they are; OTHERS is the key for numbers without their own.

    Raises CaffeError, naming `path` and the first number, for one that is no class and not 255.
    """
    if table:
        known = {key: value for key, value in table.items() if isinstance(key, int)}
        if OTHERS in table:
            known = {**dict.fromkeys(np.unique(numbers).tolist(), table[OTHERS]), **known}
        return recode(numbers, known, path, f'one of the map, {", ".join(map(str, known))},')
    valid = (numbers >= 0) & (numbers < classes) | (numbers == VOID)
    check_labels(numbers, valid, path, f'0..{classes - 1} or {VOID} (void)')
    return numbers.astype(np.uint8)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write a line for each pair: id, picture and mask, with tabs between them."""
    with replacing(path) as temporary:
        temporary.write_text(
            ''.join('\t'.join(map(str, pair)) + '\n' for pair in pairs), encoding='utf-8'
        )


def read_pairs(path: Path) -> list[Pair]:
    """Read what write_pairs has written; raise CaffeError for anything else."""
    pairs = []
    for number, line in enumerate(check_exists(path).read_text(encoding='utf-8').splitlines(), 1):
        parts = line.split('\t')
        if len(parts) != 3:
            raise CaffeError(
                f'{path}: line {number}: {len(parts)} fields, 3 expected: id, picture, mask'
            )
        pairs.append(Pair(plain_name(parts[0], f'{path}: line {number}'), *map(Path, parts[1:])))
    if not pairs:
        raise CaffeError(f'{path}: empty, one pair a line expected')
    return pairs


class FolderSegDataLayer(SegDataLayer):
    """Feed own pictures and masks.

    Tops: data, 1 x 3 x H x W float32, BGR minus mean; label, 1 x 1 x H x W float32,
    0..classes-1 and 255 for void. param_str: lists_dir, split, classes, map, mean, seed,
    randomize.
    """

    def open(self, params: Params) -> list[str]:
        self._classes = params.get('classes', (int,), 'a number of classes')
        self._map = params.get('map', (dict,), 'a dict of numbers', {})
        self._mean = params.mean(MEAN)
        pairs = read_pairs(Path(params.text('lists_dir')) / f'{self.split}.txt')
        self._pairs = {pair.id: pair for pair in pairs}
        return [*self._pairs]

    def load(self, name: str) -> tuple[np.ndarray, ...]:
        _, image, label = self._pairs[name]
        rgb = read_rgb(image)
        mask = map_labels(read_mask(label), self._map, self._classes, label)
        return bgr_blob(rgb, self._mean), label_blob(mask, self._classes, label, rgb)
