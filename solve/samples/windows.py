"""Cut windows out of drawn scenes, to train a classifier to name what is in the middle."""

from __future__ import annotations

import itertools

import numpy as np

from solve.datasets.images import VOID, bgr_blob
from solve.datasets.voc import CLASSES, MEAN
from solve.samples.drawings import OBJECTS
from solve.samples.scenes import borders, draw_scene, shuffle_evenly

# How wide around a window's middle there is only one class: an object, or background.
_INSIDE, _AWAY = 21, 43


class WindowSampler:
    """Windows onto drawn scenes, each with the class of its middle.

    A window is 0 beyond the border of its scene, as an FCN's padded image is, and its
    middle may be anywhere in the scene: an FCN applies the classifier at every place.
    """

    def __init__(self, scenes: int, size: int = 224, seed: int = 1337):
        """Draw the scenes; windows will measure size x size pixels."""
        self._size, self._rng = size, np.random.RandomState(seed)
        self._scenes: list[tuple[np.ndarray, np.ndarray]] = []
        self._showing: dict[int, list[int]] = {}
        numbers = {name: CLASSES.index(name) for name in OBJECTS}
        for i, first in enumerate(shuffle_evenly([*OBJECTS], scenes, self._rng)):
            scene = draw_scene((160, 200), first, [*OBJECTS], self._rng)
            middles = _middles(scene.labels(numbers))
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
        labels = np.array([*itertools.islice(self._kinds, count)], np.int64)
        for window, kind in zip(images, labels.tolist()):
            self._cut(window, kind)
        return images, labels

    def _cut(self, window: np.ndarray, kind: int) -> None:
        """Fill `window`, all 0, around a place of class `kind`."""
        showing = self._showing[kind]
        image, middles = self._scenes[showing[self._rng.randint(len(showing))]]
        places = np.argwhere(middles == kind)
        down, right = self._size // 2 - places[self._rng.randint(len(places))]
        (height, width), size = middles.shape, self._size
        window[:, max(down, 0) : max(down + height, 0), max(right, 0) : max(right + width, 0)] = (
            image[:, max(-down, 0) : max(size - down, 0), max(-right, 0) : max(size - right, 0)]
        )


def _middles(labels: np.ndarray) -> np.ndarray:
    """Return the labels well inside an object or well away from all; VOID elsewhere."""
    inside, away = (~borders(labels, size) for size in (_INSIDE, _AWAY))
    return np.where(np.where(labels, inside, away), labels, np.uint8(VOID))
