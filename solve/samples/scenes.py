"""What all drawn data sets share: scenes whose every pixel is known, and folders drawn whole."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from scipy.ndimage import maximum_filter, minimum_filter

from caffe_port.errors import CaffeError
from solve.samples.drawings import ALL_PLACES, REGIONS, draw_object, draw_place, light, paste

# Change it with whatever changes the pictures of a seed.
_EDITION = 2
_SETTINGS = 'sample.json'
# Objects measure from the first to the second, pixels.
SIDES = (80, 140)


@dataclass(frozen=True)
class Scene:
    """A picture (H x W x 3 uint8, RGB) and what is where in it.

    `regions` is H x W uint8, indices of REGIONS; `objects` are names and where each
    covers what is behind it, H x W bool, the front one last.
    """

    rgb: np.ndarray
    regions: np.ndarray
    objects: tuple[tuple[str, np.ndarray], ...]

    def labels(self, numbers: Mapping[str, int], dtype: type = np.uint8) -> np.ndarray:
        """H x W numbers of objects and regions, by name; 0 for those not in `numbers`."""
        labels = np.array([numbers.get(name, 0) for name in REGIONS], dtype)[self.regions]
        for name, covered in self.objects:
            labels[covered] = numbers.get(name, 0)
        return labels


def compose(
    width: int,
    height: int,
    names: Sequence[str],
    rng: np.random.RandomState,
    places: Sequence[str] = ALL_PLACES,
) -> Scene:
    """Draw one or two objects, or none, in one of `places`; the second is in front."""
    picture, regions = draw_place(width, height, rng, places)
    objects = []
    for i, name in enumerate(names):
        longest = min(SIDES[1] if len(names) == 1 else SIDES[0] + 25, width, height)
        side = rng.randint(min(SIDES[0], longest), longest + 1)
        x, y = _spot(width - side, height - side, i if len(names) == 2 else None, rng)
        objects.append((name, paste(picture, draw_object(name, side, rng), x, y)))
    return Scene(light(picture, rng), regions, tuple(objects))


def any_scene(
    size: Sequence[int],
    first: str,
    objects: Sequence[str],
    rng: np.random.RandomState,
    places: Sequence[str] = ALL_PLACES,
) -> Scene:
    """Draw a scene with `first` in it, perhaps with another of `objects` before it.

    It is up to 12 pixels smaller than `size`, short and long side, upright or not; as
    large as `size` if that is square.
    """
    smaller = 13 if size[0] != size[1] else 1
    short, long = (np.array(size) - rng.randint(0, smaller, 2)).tolist()
    width, height = (short, long) if rng.randint(2) else (long, short)
    names = [first] if rng.randint(2) else [first, str(rng.choice(objects))]
    return compose(width, height, names, rng, places)


def _spot(right: int, down: int, half: int | None, rng: np.random.RandomState) -> tuple[int, int]:
    """Where to put an object that may be moved so far: in the lower part, or in one half.

    Halves are left and right of a wide picture, upper and lower of an upright one.
    """
    if half is None or right >= down:
        low = round(down * rng.uniform(0.35, 1))
        return (
            rng.randint(right + 1)
            if half is None
            else round(right * rng.uniform(0.85 * half, 0.85 * half + 0.15))
        ), low
    return rng.randint(right + 1), round(down * rng.uniform(*((0.2, 0.4), (0.9, 1))[half]))


def series(
    settings: Mapping[str, Any], objects: Sequence[str], places: Sequence[str] = ALL_PLACES
) -> Iterator[tuple[str, bool, Scene]]:
    """Draw settings' train + val scenes of one or two of `objects` each.

    Yields id, whether it is for training, and scene.
    """
    train, val = settings['train'], settings['val']
    rng = np.random.RandomState(settings['seed'])
    ids = [f'sample_{number:04d}' for number in rng.permutation(train + val)]
    firsts = deck(objects, train, rng) + deck(objects, val, rng)
    for i, (name, first) in enumerate(zip(ids, firsts)):
        yield name, i < train, any_scene(settings['size'], first, objects, rng, places)


def deck(names: Sequence[str], count: int, rng: np.random.RandomState) -> list[str]:
    """`count` of `names`, each as often as the others, shuffled."""
    return [names[i % len(names)] for i in rng.permutation(count)]


def borders(labels: np.ndarray, width: int) -> np.ndarray:
    """Where labels of different kinds meet, `width` pixels wide: H x W bool."""
    return maximum_filter(labels, width) != minimum_filter(labels, width)


def draw_whole(
    folder: Path, settings: dict[str, Any], draw_trees: Callable[[Path, dict[str, Any]], None]
) -> None:
    """Have draw_trees(folder, settings) draw `folder` unless it has drawn the same before.

    The folder is there whole or not at all.

    Raises CaffeError if the settings are impossible, or if `folder` holds something
    else or cannot be written.
    """
    counts, size = (settings['train'], settings['val']), settings['size']
    if min(counts) < 1 or SIDES[0] > min(size):
        raise CaffeError(
            f'sample data: {counts[0]} and {counts[1]} images of {tuple(size)}; at '
            f'least one of each and {SIDES[0]} pixels expected'
        )
    settings = {'edition': _EDITION, **settings}
    if not folder.exists():
        _draw_beside(folder, settings, draw_trees)
    _check_is_ours(folder, settings)


def _draw_beside(
    folder: Path, settings: dict[str, Any], draw_trees: Callable[[Path, dict[str, Any]], None]
) -> None:
    """Draw beside `folder`, then rename."""
    beside = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
    try:
        beside.mkdir(parents=True)
        (beside / _SETTINGS).write_text(json.dumps(settings) + '\n', encoding='utf-8')
        draw_trees(beside, settings)
        os.rename(beside, folder)
    except OSError as error:
        # Somebody may have drawn the same meanwhile; what is there is looked at next.
        if not folder.exists():
            raise CaffeError(f'{folder}: not drawn: {error.strerror or error}') from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_is_ours(folder: Path, settings: dict[str, Any]) -> None:
    try:
        found = json.loads((folder / _SETTINGS).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        found = None
    if found != settings:
        raise CaffeError(
            f'{folder}: holds {"no sample data" if found is None else found}, '
            f'{settings} expected; remove it or give another folder'
        )


def write_list(path: Path, ids: Sequence[str]) -> None:
    """Write the ids of a split, sorted, one a line."""
    path.write_text(''.join(f'{name}\n' for name in sorted(ids)), encoding='utf-8')


def write_mat(path: Path, content: dict[str, Any]) -> None:
    """Write a compressed .mat file that is the same on every day."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content, do_compression=True)
    # The first 116 bytes are free text, in which scipy writes the date.
    path.write_bytes(b'MATLAB 5.0 MAT-file'.ljust(116) + buffer.getvalue()[116:])
