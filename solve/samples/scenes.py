"""Compose scenes of drawn objects in drawn places, with the class and depth of every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from solve.samples.drawings import (
    BACKGROUNDS,
    REGIONS,
    Random,
    draw_object,
    draw_place,
    light,
    paste,
)

# The smallest and the largest object, pixels.
SIDES = (80, 140)


@dataclass(frozen=True)
class Scene:
    """A picture, H x W x 3 uint8, RGB, and what its pixels show.

    `regions` is H x W uint8, indices of REGIONS; `objects` are names and the pixels that
    each covers, H x W bool, the front one last.
    """

    rgb: np.ndarray
    regions: np.ndarray
    objects: tuple[tuple[str, np.ndarray], ...]

    def labels(self, numbers: Mapping[str, int], dtype: type = np.uint8) -> np.ndarray:
        """Return H x W numbers of objects and regions, by name; 0 for those not in `numbers`."""
        labels = np.array([numbers.get(name, 0) for name in REGIONS], dtype)[self.regions]
        for name, covered in self.objects:
            labels[covered] = numbers.get(name, 0)
        return labels


def compose_scene(
    width: int,
    height: int,
    names: Sequence[str],
    rng: Random,
    places: Sequence[str] = (*BACKGROUNDS,),
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


def _spot(right: int, down: int, half: int | None, rng: Random) -> tuple[int, int]:
    """Return where to put an object that has `right` x `down` pixels of room to move.

    It goes to the lower part, or to one half: left or right of a wide picture, upper or
    lower of an upright one.
    """
    if half is not None and right < down:
        return rng.randint(right + 1), round(down * rng.uniform(*((0.2, 0.4), (0.9, 1))[half]))
    low = round(down * rng.uniform(0.35, 1))
    if half is None:
        return rng.randint(right + 1), low
    return round(right * rng.uniform(0.85 * half, 0.85 * half + 0.15)), low


def draw_scene(
    size: Sequence[int],
    first: str,
    objects: Sequence[str],
    rng: Random,
    places: Sequence[str] = (*BACKGROUNDS,),
) -> Scene:
    """Draw a scene with `first` in it, perhaps with another of `objects` in front.

    `size` is short and long side; if they differ, the scene is up to 12 pixels smaller
    each way, and wide or upright.
    """
    smaller = 13 if size[0] != size[1] else 1
    short, long = (np.array(size) - rng.randint(0, smaller, 2)).tolist()
    width, height = (short, long) if rng.randint(2) else (long, short)
    names = [first] if rng.randint(2) else [first, str(rng.choice(objects))]
    return compose_scene(width, height, names, rng, places)


def shuffle_evenly(names: Sequence[str], count: int, rng: Random) -> list[str]:
    """Return `count` of `names`, each as often as the others, shuffled."""
    return [names[i % len(names)] for i in rng.permutation(count)]


def draw_series(
    settings: Mapping[str, Any], objects: Sequence[str], places: Sequence[str] = (*BACKGROUNDS,)
) -> tuple[list[str], list[str], Iterator[tuple[str, Scene]]]:
    """Return the ids of train and of val, and an iterator that draws each id's scene.

    `settings` has train and val (numbers of images), size and seed.
    """
    train, val, rng = settings['train'], settings['val'], np.random.RandomState(settings['seed'])
    ids = [f'sample_{number:04d}' for number in rng.permutation(train + val)]
    firsts = shuffle_evenly(objects, train, rng) + shuffle_evenly(objects, val, rng)
    scenes = (draw_scene(settings['size'], first, objects, rng, places) for first in firsts)
    return ids[:train], ids[train:], zip(ids, scenes)


def borders(labels: np.ndarray, width: int) -> np.ndarray:
    """Return where different labels meet, `width` pixels wide: H x W bool."""
    from scipy.ndimage import maximum_filter, minimum_filter

    return maximum_filter(labels, width) != minimum_filter(labels, width)


# Depths, in millimetres, at the foot of the wall and at the lower edge of the picture; and
# how high above the floor, in centimetres, the camera is.
_WALL, _NEAR, _CAMERA = (3200, 4800), (1250, 1500), 120


def depth_and_hha(scene: Scene, rng: Random) -> tuple[np.ndarray, np.ndarray]:
    """Compute the depth of a room as a depth camera sees it, and the HHA of that.

    One over depth grows evenly from row to row of the floor, as on any plane below a
    camera; objects stand a little in front of what they hide. HHA is as in Gupta et al.,
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
