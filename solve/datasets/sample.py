"""A small data set to try everything on, drawn here: five of VOC's classes.

It lies on disk as SBD and VOC do, so that the official layers, nets and scripts read
it as they read the real ones.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
import scipy.io
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from caffe_port.errors import CaffeError, replacing
from solve.datasets.drawings import OBJECTS, draw_object, draw_place, light, paste
from solve.datasets.images import VOID, bgr_blob
from solve.datasets.voc import CLASSES, MEAN, palette, segmentation_list

# Change it with whatever changes the pictures of a seed.
_EDITION = 1
_SETTINGS = 'sample.json'
_SIDES = (80, 140)
_BORDER = 5
# How wide around a window's middle there is only one class: an object, or background.
_INSIDE, _AWAY = 21, 43


@dataclass(frozen=True)
class SampleData:
    """Where a drawn data set lies and what is in it.

    `classes` are VOC's numbers of what is drawn, background included; `train` counts
    SBD's train list, `val` VOC's val without it, which is the sample's seg11valid.
    """

    sbdd_dir: Path
    voc_dir: Path
    classes: tuple[int, ...]
    train: int
    val: int


def draw(folder: str | os.PathLike, train: int = 150, val: int = 40,
         size: tuple[int, int] = (160, 200), seed: int = 1337) -> SampleData:
    """Draw the data set into `folder`, or take the one that is there already.

    SBD lies in sbdd/dataset, VOC in pascal/VOC2011, as the official prototxts have it.
    Images measure up to `size`, short side by long side, some upright, some not. VOC
    holds all of them; its val list has some of SBD's train too, as the real one has.
    The folder is there whole or not at all.

    Raises CaffeError if `folder` holds something else, or cannot be written.
    """
    folder = Path(folder)
    settings = {'edition': _EDITION, 'train': train, 'val': val, 'size': list(size), 'seed': seed}
    if train < 1 or val < 1 or not _SIDES[0] <= min(size):
        raise CaffeError(f'sample data: {train} and {val} images of {size}; at least one of each '
                         f'and {_SIDES[0]} pixels expected')
    if not folder.exists():
        _draw_whole(folder, settings)
    _check_is_ours(folder, settings)
    classes = (0, *sorted(CLASSES.index(name) for name in OBJECTS))
    return SampleData(folder / 'sbdd' / 'dataset', folder / 'pascal' / 'VOC2011', classes, train,
                      val)


class Windows:
    """Windows onto drawn scenes, to train a classifier to name what is in the middle.

    Beyond a scene's border a window is 0, as an FCN's padded image is. What it learns
    here holds at every place of an image, which is what an FCN asks of a classifier.
    """

    def __init__(self, scenes: int, size: int = 224, seed: int = 1337):
        """Draw as many scenes; windows will measure size x size pixels."""
        self._size, self._rng = size, np.random.RandomState(seed)
        self._scenes: list[tuple[np.ndarray, np.ndarray]] = []
        self._showing: dict[int, list[int]] = {}
        for i, first in enumerate(_deck(list(OBJECTS), scenes, self._rng)):
            rgb, labels = _any_scene((160, 200), first, self._rng)
            middles = _middles(labels)
            self._scenes.append((bgr_blob(rgb, MEAN)[0], middles))
            for kind in np.setdiff1d(middles, VOID).tolist():
                self._showing.setdefault(kind, []).append(i)
        self._kinds = itertools.cycle(sorted(self._showing))

    def batch(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut the next `count` windows, the classes in turn, the places at random.

        Returns images, count x 3 x size x size float32, BGR minus VOC's mean, and labels,
        count int64: VOC's class numbers, 0 where the middle is background.
        """
        images = np.zeros((count, 3, self._size, self._size), np.float32)
        labels = np.empty(count, np.int64)
        for i, kind in enumerate(itertools.islice(self._kinds, count)):
            labels[i] = kind
            self._cut(images[i], kind)
        return images, labels

    def _cut(self, window: np.ndarray, kind: int) -> None:
        """Fill `window`, all 0, around a place of `kind`."""
        showing = self._showing[kind]
        image, middles = self._scenes[showing[self._rng.randint(len(showing))]]
        places = np.argwhere(middles == kind)
        down, right = self._size // 2 - places[self._rng.randint(len(places))]
        (height, width), size = middles.shape, self._size
        window[:, max(down, 0):max(down + height, 0), max(right, 0):max(right + width, 0)] = \
            image[:, max(-down, 0):max(size - down, 0), max(-right, 0):max(size - right, 0)]


def _middles(labels: np.ndarray) -> np.ndarray:
    """The labels of places well inside an object or well away from all; VOID elsewhere."""
    inside, away = (maximum_filter(labels, size) == minimum_filter(labels, size)
                    for size in (_INSIDE, _AWAY))
    return np.where(np.where(labels, inside, away), labels, np.uint8(VOID))


def _deck(names: Sequence[str], count: int, rng: np.random.RandomState) -> list[str]:
    """`count` of `names`, each as often as the others, shuffled."""
    return [names[i % len(names)] for i in rng.permutation(count)]


def _any_scene(size: Sequence[int], first: str,
               rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene with `first` in it, up to `size` (short and long side), upright or not."""
    short, long = (np.array(size) - rng.randint(0, 13, 2)).tolist()
    width, height = (short, long) if rng.randint(2) else (long, short)
    names = [first] if rng.randint(2) else [first, str(rng.choice(list(OBJECTS)))]
    return _scene(width, height, names, rng)


def _scene(width: int, height: int, names: Sequence[str],
           rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Draw one or two objects, the second in front, in some place.

    Returns H x W x 3 uint8 (RGB) and H x W uint8 (VOC's class numbers).
    """
    scene, labels = draw_place(width, height, rng), np.zeros((height, width), np.uint8)
    for i, name in enumerate(names):
        longest = min(_SIDES[1], width, height) if len(names) == 1 else _SIDES[0] + 25
        side = rng.randint(min(_SIDES[0], longest), longest + 1)
        x, y = _spot(width - side, height - side, i if len(names) == 2 else None, rng)
        labels[paste(scene, draw_object(name, side, rng), x, y)] = CLASSES.index(name)
    return light(scene, rng), labels


def _spot(right: int, down: int, half: int | None, rng: np.random.RandomState) -> tuple[int, int]:
    """Where to put an object that may be moved so far: in the lower part, or in one half.

    Halves are left and right of a wide picture, upper and lower of an upright one.
    """
    if half is None or right >= down:
        low = round(down * rng.uniform(0.35, 1))
        return (rng.randint(right + 1) if half is None
                else round(right * rng.uniform(0.85 * half, 0.85 * half + 0.15))), low
    return rng.randint(right + 1), round(down * rng.uniform(*((0.2, 0.4), (0.9, 1))[half]))


def _draw_whole(folder: Path, settings: dict) -> None:
    """Draw beside `folder`, then rename."""
    beside = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
    try:
        beside.mkdir(parents=True)
        _draw_trees(beside, settings)
        os.rename(beside, folder)
    except OSError as error:
        # Somebody may have drawn the same meanwhile; what is there is looked at next.
        if not folder.exists():
            raise CaffeError(f'{folder}: not drawn: {error.strerror or error}') from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_is_ours(folder: Path, settings: dict) -> None:
    try:
        found = json.loads((folder / _SETTINGS).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        found = None
    if found != settings:
        raise CaffeError(f'{folder}: holds {"no sample data" if found is None else found}, '
                         f'{settings} expected; remove it or give another folder')


def _draw_trees(folder: Path, settings: dict) -> None:
    train, val, size = settings['train'], settings['val'], settings['size']
    rng = np.random.RandomState(settings['seed'])
    sbdd, voc = folder / 'sbdd' / 'dataset', folder / 'pascal' / 'VOC2011'
    lists = segmentation_list(voc, 'val').parent
    for path in (sbdd / 'img', sbdd / 'cls', voc / 'JPEGImages', voc / 'SegmentationClass', lists):
        path.mkdir(parents=True)
    ids = [f'sample_{number:04d}' for number in rng.permutation(train + val)]
    firsts = _deck(list(OBJECTS), train, rng) + _deck(list(OBJECTS), val, rng)
    for i, (name, first) in enumerate(zip(ids, firsts)):
        rgb, labels = _any_scene(size, first, rng)
        jpeg = io.BytesIO()
        Image.fromarray(rgb).save(jpeg, 'JPEG', quality=92)
        (voc / 'JPEGImages' / f'{name}.jpg').write_bytes(jpeg.getvalue())
        _write_voc_label(voc / 'SegmentationClass' / f'{name}.png', labels)
        if i < train:
            (sbdd / 'img' / f'{name}.jpg').write_bytes(jpeg.getvalue())
            _write_sbd_label(sbdd / 'cls' / f'{name}.mat', labels)
    both = max(1, train // 10)
    _write_list(sbdd / 'train.txt', ids[:train])
    _write_list(lists / 'train.txt', ids[both:train] or ids[:both])
    _write_list(lists / 'val.txt', ids[:both] + ids[train:])
    with replacing(folder / _SETTINGS) as path:
        path.write_text(json.dumps(settings) + '\n', encoding='utf-8')


def _write_list(path: Path, ids: Sequence[str]) -> None:
    path.write_text(''.join(f'{name}\n' for name in sorted(ids)), encoding='utf-8')


def _write_voc_label(path: Path, labels: np.ndarray) -> None:
    """VOC's label: a palette PNG with void around every object."""
    edge = maximum_filter(labels, _BORDER) != minimum_filter(labels, _BORDER)
    image = Image.fromarray(np.where(edge, np.uint8(VOID), labels))
    image.putpalette(palette().tobytes())
    image.save(path)


def _write_sbd_label(path: Path, labels: np.ndarray) -> None:
    """SBD's label: a struct GTcls, in which nothing is void."""
    present = np.setdiff1d(labels, 0)[:, np.newaxis]
    content = io.BytesIO()
    scipy.io.savemat(content, {'GTcls': {'Segmentation': labels, 'CategoriesPresent': present}},
                     do_compression=True)
    # The first 116 bytes are free text, in which scipy writes the date.
    path.write_bytes(b'MATLAB 5.0 MAT-file'.ljust(116) + content.getvalue()[116:])
