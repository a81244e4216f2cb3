"""A small data set to try everything on, drawn here: five of VOC's classes.

It lies on disk as SBD and VOC do, so that the official layers, nets and scripts read
it as they read the real ones.
"""

from __future__ import annotations

import io
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


def draw_classification(count: int, size: int = 224,
                        seed: int = 1337) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures of one object each, and of none, for training a classifier first.

    Returns images, count x 3 x size x size float32, BGR minus VOC's mean, and labels,
    count int64: VOC's class numbers, 0 where there is only a background. All classes
    come equally often.
    """
    rng = np.random.RandomState(seed)
    images = np.empty((count, 3, size, size), np.float32)
    labels = np.empty(count, np.int64)
    kinds = _deck(['background', *OBJECTS], count, rng)
    for i, kind in enumerate(kinds):
        rgb, _ = _scene(size, size, [kind] if kind in OBJECTS else [], rng)
        images[i], labels[i] = bgr_blob(rgb, MEAN)[0], CLASSES.index(kind)
    return images, labels


def _deck(names: Sequence[str], count: int, rng: np.random.RandomState) -> list[str]:
    """`count` of `names`, each as often as the others, shuffled."""
    return [names[i % len(names)] for i in rng.permutation(count)]


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
        short, long = (np.array(size) - rng.randint(0, 13, 2)).tolist()
        width, height = (short, long) if rng.randint(2) else (long, short)
        names = [first] if rng.randint(2) else [first, str(rng.choice(list(OBJECTS)))]
        rgb, labels = _scene(width, height, names, rng)
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
