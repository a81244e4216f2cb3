"""Draw small data sets, each as a folder tree in the format of the real one.

The official layers, nets and scripts read them as they read the published data.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from caffe_port.errors import CaffeError
from solve.datasets import nyud, pascalcontext, siftflow, voc
from solve.datasets.images import VOID
from solve.samples.drawings import OBJECTS, REGIONS
from solve.samples.scenes import SIDES, borders, depth_and_hha, draw_series

# Increase it when the pictures of a seed change.
_EDITION = 2
_SETTINGS = 'sample.json'
_OUTDOORS = ('meadow', 'street')
# The class of everything in a room. NYUDv2 has neither sheep nor buses.
_NYUD = dict(
    wall='wall', floor='floor', bottle='otherprop', pottedplant='otherprop', tvmonitor='television'
)
# The semantic and the geometric class of everything outdoors. SIFT Flow has no sheep;
# bottles stay unlabelled, as much does in the real one.
_SIFTFLOW = {
    'sky': ('sky', 'sky'),
    'grass': ('grass', 'horizontal'),
    'building': ('building', 'vertical'),
    'sidewalk': ('sidewalk', 'horizontal'),
    'road': ('road', 'horizontal'),
    'line': ('road', 'horizontal'),
    'bus': ('bus', 'vertical'),
    'pottedplant': ('plant', 'vertical'),
    'sheep': ('cow', 'vertical'),
    'tvmonitor': ('sign', 'vertical'),
}


def write_voc(settings: dict[str, Any], sbdd_dir: Path, voc_dir: Path) -> None:
    """Draw VOC with the images of both splits, and SBD with those of train.

    VOC's val list has some of SBD's train list too, as the real one has; its seg11valid
    list is val.
    """
    lists = voc.segmentation_list(voc_dir, 'val').parent
    jpegs, images, pngs, mats, _ = _folders(
        voc_dir / 'JPEGImages',
        sbdd_dir / 'img',
        voc_dir / 'SegmentationClass',
        sbdd_dir / 'cls',
        lists,
    )
    numbers = {name: voc.CLASSES.index(name) for name in OBJECTS}
    train, val, scenes = draw_series(settings, [*OBJECTS])
    for name, scene in scenes:
        labels = scene.labels(numbers)
        Image.fromarray(scene.rgb).save(jpegs / f'{name}.jpg', quality=92)
        # VOC has void around every object, SBD has none.
        image = Image.fromarray(np.where(borders(labels, 5), np.uint8(VOID), labels))
        image.putpalette(voc.palette().tobytes())
        image.save(pngs / f'{name}.png')
        if name in train:
            shutil.copyfile(jpegs / f'{name}.jpg', images / f'{name}.jpg')
            present = np.setdiff1d(labels, 0)[:, np.newaxis]
            truth = {'Segmentation': labels, 'CategoriesPresent': present}
            write_mat(mats / f'{name}.mat', {'GTcls': truth})
    both = max(1, len(train) // 10)
    write_list(sbdd_dir / 'train.txt', train)
    write_list(lists / 'train.txt', train[both:] or train)
    write_list(lists / 'val.txt', train[:both] + val)
    write_list(lists / 'seg11valid.txt', val)


def write_nyud(settings: dict[str, Any], nyud_dir: Path) -> None:
    """Draw rooms in color, depth and HHA."""
    rng = np.random.RandomState(settings['seed'])
    _folders(*((nyud_dir / file).parent for file in nyud.FILES.values()))
    numbers = {name: nyud.CLASSES.index(known) + 1 for name, known in _NYUD.items()}
    train, test, scenes = draw_series(
        settings, [name for name in OBJECTS if name in _NYUD], ['room']
    )
    for name, scene in scenes:
        path = {top: nyud_dir / file.format(name) for top, file in nyud.FILES.items()}
        depth, hha = depth_and_hha(scene, rng)
        for top, picture in (('color', scene.rgb), ('depth', depth), ('hha', hha)):
            # More compression takes longer and makes grain hardly smaller.
            Image.fromarray(picture).save(path[top], compress_level=1)
        labels = scene.labels(numbers)
        labels[borders(labels, 3)] = 0
        write_mat(path['label'], {'segmentation': labels})
    write_list(nyud_dir / 'trainval.txt', train)
    write_list(nyud_dir / 'test.txt', test)


def write_siftflow(settings: dict[str, Any], siftflow_dir: Path) -> None:
    """Draw outdoor scenes with semantic and geometric labels."""
    images, semantic, geometric = _folders(
        *(
            siftflow_dir / kind / siftflow.SCENES
            for kind in ('Images', 'SemanticLabels', 'GeoLabels')
        )
    )
    sem = {name: siftflow.SEMANTIC.index(kind) + 1 for name, (kind, _) in _SIFTFLOW.items()}
    geo = {name: siftflow.GEOMETRIC.index(kind) + 1 for name, (_, kind) in _SIFTFLOW.items()}
    train, test, scenes = draw_series(settings, [*OBJECTS], _OUTDOORS)
    for name, scene in scenes:
        Image.fromarray(scene.rgb).save(images / f'{name}.jpg', quality=92)
        write_mat(semantic / f'{name}.mat', {'S': scene.labels(sem)})
        write_mat(geometric / f'{name}.mat', {'S': scene.labels({'bottle': -1, **geo}, np.int16)})
    write_list(siftflow_dir / 'trainval.txt', train)
    write_list(siftflow_dir / 'test.txt', test)


def write_pascalcontext(settings: dict[str, Any], voc_dir: Path, context_dir: Path) -> None:
    """Draw outdoor scenes, and name what is drawn in labels.txt.

    Every region has a class name except road lines.
    """
    root = voc_dir / 'VOC2010'
    images, lists, labels = _folders(
        root / 'JPEGImages', root / 'ImageSets/Main', context_dir / 'trainval'
    )
    classes = pascalcontext.CLASSES[1:]
    annotated = sorted(['line', *(pascalcontext.ANNOTATED_AS.get(name, name) for name in classes)])
    for file, names in ('labels.txt', annotated), ('59_labels.txt', classes):
        lines = [f'{number}: {name}\n' for number, name in enumerate(names, 1)]
        (context_dir / file).write_text(''.join(lines), encoding='utf-8')
    numbers = {name: annotated.index(name) + 1 for name in (*REGIONS, *OBJECTS)}
    train, val, scenes = draw_series(settings, [*OBJECTS], _OUTDOORS)
    for name, scene in scenes:
        Image.fromarray(scene.rgb).save(images / f'{name}.jpg', quality=92)
        write_mat(labels / f'{name}.mat', {'LabelMap': scene.labels(numbers, np.uint16)})
    write_list(lists / 'train.txt', train)
    write_list(lists / 'val.txt', val)


# The module of a data set, the function that draws it, and its name in sample.json.
_TREES: dict[str, tuple[ModuleType, Callable[..., None], dict[str, str]]] = {
    'voc': (voc, write_voc, {}),
    'nyud': (nyud, write_nyud, {'data': 'NYUDv2'}),
    'siftflow': (siftflow, write_siftflow, {'data': 'SIFT Flow'}),
    'pascalcontext': (pascalcontext, write_pascalcontext, {'data': 'PASCAL-Context'}),
}


def draw_dataset(
    data: str,
    folder: Path,
    train: int = 100,
    val: int = 30,
    size: tuple[int, int] = (160, 200),
    seed: int = 1337,
) -> dict[str, str]:
    """Draw data set `data` into `folder`, or take it if it was drawn there before.

    `train` and `val` count the images of its two splits; they measure up to `size`, short
    and long side, some wide and some upright. The folder is there whole or not at all.

    Returns the arguments by which the nets' fcn() finds the data.

    Raises CaffeError if the settings are impossible, or if `folder` holds something else
    or cannot be written.
    """
    module, write, label = _TREES[data]
    if min(train, val) < 1 or min(size) < SIDES[0]:
        raise CaffeError(
            f'sample data: {train} and {val} images of {size}; at least one of each and '
            f'{SIDES[0]} pixels expected'
        )
    settings = dict(edition=_EDITION, **label, train=train, val=val, size=[*size], seed=seed)
    if not folder.exists():
        beside = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
        try:
            _folders(beside)
            (beside / _SETTINGS).write_text(json.dumps(settings) + '\n', encoding='utf-8')
            write(settings, **_places(module, beside))
            os.rename(beside, folder)
        except OSError as error:
            # Another process may have drawn the same meanwhile; its folder is checked next.
            if not folder.exists():
                raise CaffeError(f'{folder}: not drawn: {error.strerror or error}') from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    try:
        found = json.loads((folder / _SETTINGS).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        found = 'no sample data'
    if found != settings:
        raise CaffeError(
            f'{folder}: holds {found}, {settings} expected; remove it or give another folder'
        )
    return {name: str(path) for name, path in _places(module, folder).items()}


def _places(module: ModuleType, folder: Path) -> dict[str, Path]:
    """Return the places of a data set in `folder`, which takes the place of the project's data/."""
    return {name: folder / Path(path).relative_to('data') for name, path in module.PLACES.items()}


def _folders(*folders: Path) -> tuple[Path, ...]:
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def write_list(path: Path, ids: Iterable[str]) -> None:
    """Write the ids of a split, sorted, one a line."""
    path.write_text(''.join(f'{name}\n' for name in sorted(ids)), encoding='utf-8')


def write_mat(path: Path, content: dict[str, Any]) -> None:
    """Write a compressed .mat file that does not contain the date."""
    import scipy.io

    scipy.io.savemat(path, content, do_compression=True)
    with open(path, 'r+b') as file:  # the first 116 bytes are free text
        file.write(b'MATLAB 5.0 MAT-file'.ljust(116))
