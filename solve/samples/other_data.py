"""Drawn data sets like sample.py's, lying on disk as NYUDv2, SIFT Flow and PASCAL-Context do.

The scenes are the same ones; here all of a picture has a class, and rooms have depth.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from solve.datasets import nyud, pascalcontext, siftflow
from solve.samples.drawings import OBJECTS, REGIONS
from solve.samples.scenes import Scene, borders, draw_whole, series, write_list, write_mat

# What is drawn, in the words of each data set. Neither sheep nor buses are let into rooms.
_NYUD = {
    'wall': 'wall',
    'floor': 'floor',
    'bottle': 'otherprop',
    'pottedplant': 'otherprop',
    'tvmonitor': 'television',
}
# SIFT Flow has no sheep; bottles stay unlabelled, as much does in the real one.
_SEMANTIC = {
    'sky': 'sky',
    'grass': 'grass',
    'building': 'building',
    'sidewalk': 'sidewalk',
    'road': 'road',
    'line': 'road',
    'bus': 'bus',
    'pottedplant': 'plant',
    'sheep': 'cow',
    'tvmonitor': 'sign',
}
_GEOMETRIC = {
    'sky': 'sky',
    'grass': 'horizontal',
    'sidewalk': 'horizontal',
    'road': 'horizontal',
    'line': 'horizontal',
    'building': 'vertical',
    'bus': 'vertical',
    'pottedplant': 'vertical',
    'sheep': 'vertical',
    'tvmonitor': 'vertical',
}
# PASCAL-Context calls all by their names here; its 59 classes have none for lines on a road.
_CONTEXT = ('sky', 'grass', 'building', 'sidewalk', 'road', 'line', *OBJECTS)
_OUTDOORS = ('meadow', 'street')

_BORDER = 3
# Depths, in millimetres, at the foot of the wall and at the lower edge of the picture; and
# how high above the floor, in centimetres, the camera is.
_WALL, _NEAR, _CAMERA = (3200, 4800), (1250, 1500), 120


@dataclass(frozen=True)
class Drawn:
    """Where a drawn data set lies and what is in it.

    `places` are the arguments by which the nets' fcn() finds it; `classes` the numbers
    of what is drawn (SIFT Flow: semantic ones).
    """

    places: dict[str, str]
    classes: tuple[int, ...]
    train: int
    test: int


def draw_nyud(
    folder: str | os.PathLike,
    train: int = 100,
    test: int = 30,
    size: tuple[int, int] = (160, 200),
    seed: int = 1337,
) -> Drawn:
    """Draw rooms into folder/nyud, in color, depth and HHA, or take those already there.

    Splits trainval and test; images measure up to `size`, short side by long side.

    Raises CaffeError if `folder` holds something else, or cannot be written.
    """
    folder = Path(folder)
    draw_whole(folder, _settings('NYUDv2', train, test, size, seed), _draw_nyud)
    classes = {nyud.CLASSES.index(name) for name in _NYUD.values()}
    return Drawn({'nyud_dir': str(folder / 'nyud')}, tuple(sorted(classes)), train, test)


def draw_siftflow(
    folder: str | os.PathLike,
    train: int = 100,
    test: int = 30,
    size: tuple[int, int] = (160, 160),
    seed: int = 1337,
) -> Drawn:
    """Draw outdoor scenes into folder/sift-flow, or take those already there.

    Splits trainval and test; semantic and geometric labels. All else as draw_nyud.
    """
    folder = Path(folder)
    draw_whole(folder, _settings('SIFT Flow', train, test, size, seed), _draw_siftflow)
    classes = {siftflow.SEMANTIC.index(name) for name in _SEMANTIC.values()}
    return Drawn({'siftflow_dir': str(folder / 'sift-flow')}, tuple(sorted(classes)), train, test)


def draw_pascalcontext(
    folder: str | os.PathLike,
    train: int = 100,
    test: int = 30,
    size: tuple[int, int] = (160, 200),
    seed: int = 1337,
) -> Drawn:
    """Draw outdoor scenes into folder/pascal and folder/pascal-context, or take those there.

    Splits train and val. Labels hold the numbers of 459 annotations, of which 59 are
    classes. All else as draw_nyud.
    """
    folder = Path(folder)
    draw_whole(folder, _settings('PASCAL-Context', train, test, size, seed), _draw_pascalcontext)
    classes = {
        pascalcontext.CLASSES.index(name) for name in _CONTEXT if name in pascalcontext.CLASSES
    }
    places = {'voc_dir': str(folder / 'pascal'), 'context_dir': str(folder / 'pascal-context')}
    return Drawn(places, (0, *sorted(classes)), train, test)


def _settings(data: str, train: int, test: int, size: tuple[int, int], seed: int) -> dict[str, Any]:
    return {'data': data, 'train': train, 'val': test, 'size': list(size), 'seed': seed}


def _folders(*folders: Path) -> tuple[Path, ...]:
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def _write_lists(train: Path, test: Path, ids: list[str], count: int) -> None:
    """The first `count` ids are for training."""
    write_list(train, ids[:count])
    write_list(test, ids[count:])


# NYUDv2.


def _draw_nyud(folder: Path, settings: dict[str, Any]) -> None:
    root, ids = folder / 'nyud', []
    _folders(*((root / file).parent for file in nyud.FILES.values()))
    rng = np.random.RandomState(settings['seed'])
    numbers = {name: nyud.CLASSES.index(known) + 1 for name, known in _NYUD.items()}
    objects = [name for name in OBJECTS if name in _NYUD]
    for name, _, scene in series(settings, objects, ['room']):
        ids.append(name)
        path = {top: root / file.format(name) for top, file in nyud.FILES.items()}
        depth, hha = depth_and_hha(scene, rng)
        for top, picture in (('color', scene.rgb), ('depth', depth), ('hha', hha)):
            # Grain does not get much smaller however long one tries.
            Image.fromarray(picture).save(path[top], compress_level=1)
        labels = scene.labels(numbers)
        labels[borders(labels, _BORDER)] = 0
        write_mat(path['label'], {'segmentation': labels})
    _write_lists(root / 'trainval.txt', root / 'test.txt', ids, settings['train'])


def depth_and_hha(scene: Scene, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """How deep a drawn room is, as a depth camera sees it, and the HHA of that.

    Along the floor one over depth grows evenly from row to row, as on any plane below a
    camera; objects stand a little before what they hide. HHA is as in Gupta et al.,
    2014: 31000 / depth in centimetres, height above the floor in centimetres, angle to
    gravity in degrees + 38 (walls 128), each within 0..255.

    Returns depth, H x W uint16, millimetres, and HHA, H x W x 3 uint8.
    """
    floor = scene.regions == REGIONS.index('floor')
    height, width = floor.shape
    far, near = rng.uniform(*_WALL), rng.uniform(*_NEAR)
    foot = int(floor.any(1).argmax())
    per_row = (1 / near - 1 / far) / (height - 1 - foot)
    horizon = foot - 1 / far / per_row  # where floor would be infinitely far
    depth = np.full((height, width), far)
    depth[floor] = 1 / ((np.nonzero(floor)[0] - horizon) * per_row)
    for _, covered in scene.objects:
        depth[covered] = 0.97 * depth[covered].min()
        floor = floor & ~covered
    # A depth camera's noise grows with the square of depth.
    depth += rng.normal(0, 1, depth.shape) * 1.4e-6 * depth**2
    above = _CAMERA * (1 - (np.arange(height)[:, np.newaxis] - horizon) * depth * per_row)
    angle = np.where(floor, 38, 128) + rng.normal(0, 3, depth.shape)
    hha = np.dstack([310000 / depth, above, angle])
    return depth.round().astype(np.uint16), np.clip(hha.round(), 0, 255).astype(np.uint8)


# SIFT Flow.


def _draw_siftflow(folder: Path, settings: dict[str, Any]) -> None:
    root, ids = folder / 'sift-flow', []
    images, semantic, geometric = _folders(
        *(root / kind / siftflow.SCENES for kind in ('Images', 'SemanticLabels', 'GeoLabels'))
    )
    sem = {name: siftflow.SEMANTIC.index(known) + 1 for name, known in _SEMANTIC.items()}
    geo = {
        'bottle': -1,
        **{name: siftflow.GEOMETRIC.index(known) + 1 for name, known in _GEOMETRIC.items()},
    }
    for name, _, scene in series(settings, list(OBJECTS), _OUTDOORS):
        ids.append(name)
        Image.fromarray(scene.rgb).save(images / f'{name}.jpg', quality=92)
        write_mat(semantic / f'{name}.mat', {'S': scene.labels(sem)})
        write_mat(geometric / f'{name}.mat', {'S': scene.labels(geo, np.int16)})
    _write_lists(root / 'trainval.txt', root / 'test.txt', ids, settings['train'])


# PASCAL-Context.


def _draw_pascalcontext(folder: Path, settings: dict[str, Any]) -> None:
    voc, context, ids = folder / 'pascal' / 'VOC2010', folder / 'pascal-context', []
    images, lists, labels = _folders(
        voc / 'JPEGImages', voc / 'ImageSets' / 'Main', context / 'trainval'
    )
    numbers = {name: pascalcontext.ANNOTATED.index(name) + 1 for name in _CONTEXT}
    for name, _, scene in series(settings, list(OBJECTS), _OUTDOORS):
        ids.append(name)
        Image.fromarray(scene.rgb).save(images / f'{name}.jpg', quality=92)
        write_mat(labels / f'{name}.mat', {'LabelMap': scene.labels(numbers, np.uint16)})
    _write_lists(lists / 'train.txt', lists / 'val.txt', ids, settings['train'])
    _write_names(context / 'labels.txt', pascalcontext.ANNOTATED)
    _write_names(context / '59_labels.txt', pascalcontext.CLASSES[1:])


def _write_names(path: Path, names: tuple[str, ...]) -> None:
    path.write_text(
        ''.join(f'{number}: {name}\n' for number, name in enumerate(names, 1)), encoding='utf-8'
    )
