"""A small data set to try everything on, drawn here: five of VOC's classes.

It lies on disk as SBD and VOC do, so that the official layers, nets and scripts read
it as they read the real ones.
"""

from __future__ import annotations

import io
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from solve.datasets.images import VOID, bgr_blob
from solve.datasets.voc import CLASSES, MEAN, palette, segmentation_list
from solve.samples.drawings import OBJECTS
from solve.samples.scenes import any_scene, borders, deck, draw_whole, series, write_list, write_mat

_NUMBERS = {name: CLASSES.index(name) for name in OBJECTS}
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


def draw(
    folder: str | os.PathLike,
    train: int = 150,
    val: int = 40,
    size: tuple[int, int] = (160, 200),
    seed: int = 1337,
) -> SampleData:
    """Draw the data set into `folder`, or take the one that is there already.

    SBD lies in sbdd/dataset, VOC in pascal/VOC2011, as the official prototxts have it.
    Images measure up to `size`, short side by long side, some upright, some not. VOC
    holds all of them; its val list has some of SBD's train too, as the real one has.
    The folder is there whole or not at all.

    Raises CaffeError if `folder` holds something else, or cannot be written.
    """
    folder = Path(folder)
    draw_whole(folder, {'train': train, 'val': val, 'size': list(size), 'seed': seed}, _draw_trees)
    classes = (0, *sorted(_NUMBERS.values()))
    return SampleData(
        folder / 'sbdd' / 'dataset', folder / 'pascal' / 'VOC2011', classes, train, val
    )


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
        for i, first in enumerate(deck(list(OBJECTS), scenes, self._rng)):
            scene = any_scene((160, 200), first, list(OBJECTS), self._rng)
            middles = _middles(scene.labels(_NUMBERS))
            self._scenes.append((bgr_blob(scene.rgb, MEAN)[0], middles))
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
        window[:, max(down, 0) : max(down + height, 0), max(right, 0) : max(right + width, 0)] = (
            image[:, max(-down, 0) : max(size - down, 0), max(-right, 0) : max(size - right, 0)]
        )


def _middles(labels: np.ndarray) -> np.ndarray:
    """The labels of places well inside an object or well away from all; VOID elsewhere."""
    inside, away = (~borders(labels, size) for size in (_INSIDE, _AWAY))
    return np.where(np.where(labels, inside, away), labels, np.uint8(VOID))


def _draw_trees(folder: Path, settings: dict) -> None:
    sbdd, voc = folder / 'sbdd' / 'dataset', folder / 'pascal' / 'VOC2011'
    lists = segmentation_list(voc, 'val').parent
    for path in (sbdd / 'img', sbdd / 'cls', voc / 'JPEGImages', voc / 'SegmentationClass', lists):
        path.mkdir(parents=True)
    ids, train = [], settings['train']
    for name, for_training, scene in series(settings, list(OBJECTS)):
        ids.append(name)
        labels = scene.labels(_NUMBERS)
        jpeg = io.BytesIO()
        Image.fromarray(scene.rgb).save(jpeg, 'JPEG', quality=92)
        (voc / 'JPEGImages' / f'{name}.jpg').write_bytes(jpeg.getvalue())
        _write_voc_label(voc / 'SegmentationClass' / f'{name}.png', labels)
        if for_training:
            (sbdd / 'img' / f'{name}.jpg').write_bytes(jpeg.getvalue())
            _write_sbd_label(sbdd / 'cls' / f'{name}.mat', labels)
    both = max(1, train // 10)
    write_list(sbdd / 'train.txt', ids[:train])
    write_list(lists / 'train.txt', ids[both:train] or ids[:both])
    write_list(lists / 'val.txt', ids[:both] + ids[train:])


def _write_voc_label(path: Path, labels: np.ndarray) -> None:
    """VOC's label: a palette PNG with void around every object."""
    image = Image.fromarray(np.where(borders(labels, _BORDER), np.uint8(VOID), labels))
    image.putpalette(palette().tobytes())
    image.save(path)


def _write_sbd_label(path: Path, labels: np.ndarray) -> None:
    """SBD's label: a struct GTcls, in which nothing is void."""
    present = np.setdiff1d(labels, 0)[:, np.newaxis]
    write_mat(path, {'GTcls': {'Segmentation': labels, 'CategoriesPresent': present}})
