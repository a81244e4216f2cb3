"""Open every image and label of a data set and say what is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from caffe_port.errors import CaffeError
from solve.datasets import nyud, pascalcontext, siftflow, voc
from solve.datasets.images import VOID
from solve.datasets.layer import SegDataLayer
from solve.run.progress import show_progress

# The classes of each kind of label, by the layer's module and top.
CLASSES_BY_TOP = {
    (voc.__name__, 'label'): voc.CLASSES,
    (nyud.__name__, 'label'): nyud.CLASSES,
    (siftflow.__name__, 'sem'): siftflow.SEMANTIC,
    (siftflow.__name__, 'geo'): siftflow.GEOMETRIC,
    (pascalcontext.__name__, 'label'): pascalcontext.CLASSES,
}


@dataclass
class Scan:
    """What the images of a list hold.

    `sizes` are the heights and widths that occur; `pixels` has for each kind of label how many
    pixels hold each of 0..255; `wrong` has one line for each fault, with file and value.
    """

    name: str
    ids: list[str]
    classes: dict[str, tuple[str, ...]]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    LINE: ClassVar[str] = '  {:24} {}'

    def lines(self) -> list[str]:
        """Return the scan as text: sizes and, for each kind of label, classes and share of void."""
        lines = [f'{self.name}: {sum(self.sizes.values())} of {len(set(self.ids))} images read']
        if self.sizes:
            small, large = min(self.sizes, key=np.prod), max(self.sizes, key=np.prod)
            lines.append(
                self.LINE.format(
                    'height x width',
                    f'{small[0]} x {small[1]} to {large[0]} x {large[1]}, '
                    f'{len(self.sizes)} different',
                )
            )
        for kind, pixels in self.pixels.items():
            names, total = self.classes[kind], max(int(pixels.sum()), 1)
            absent = [name for name, count in zip(names, pixels) if not count]
            shown = f'{len(names) - len(absent)} of {len(names)}'
            if absent:
                shown += f'; absent: {", ".join(absent)}'
            lines.append(self.LINE.format(f'{kind}, classes', shown))
            order = sorted(range(len(names)), key=lambda number: -pixels[number])
            most = [
                f'{names[number]} {100 * pixels[number] / total:.1f} %'
                for number in order[:5]
                if pixels[number]
            ]
            lines.append(self.LINE.format(f'{kind}, most pixels', ', '.join(most) or 'none'))
            lines.append(self.LINE.format(f'{kind}, void', f'{100 * pixels[VOID] / total:.1f} %'))
        return lines


def scan(name: str, layer: SegDataLayer, list_path: str) -> Scan:
    """Read every image and label of a data layer that is set up, in as many threads as cores.

    `wrong` then has what the layer refuses, ids that come twice and labels that are all void.
    """
    module = type(layer).__module__
    kinds = {
        position: top
        for position, top in enumerate(layer.top_names)
        if (module, top) in CLASSES_BY_TOP
    }
    found = Scan(
        name, list(layer.ids), {top: CLASSES_BY_TOP[module, top] for top in kinds.values()}
    )
    for kind in kinds.values():
        found.pixels[kind] = np.zeros(VOID + 1, np.int64)
    twice = [each for each, count in Counter(layer.ids).items() if count > 1]
    found.wrong += [f'{list_path}: {each} is in it more than once' for each in twice]
    ids = list(dict.fromkeys(layer.ids))
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        show_progress(desc=name, unit='img', total=len(ids), leave=False) as bar,
    ):
        try:
            for each, result in zip(ids, pool.map(_reader(layer, kinds), ids)):
                bar.update()
                if isinstance(result, CaffeError):
                    found.wrong.append(str(result))
                    continue
                size, counts = result
                found.sizes[size] += 1
                for kind, pixels in counts.items():
                    found.pixels[kind] += pixels
                    if pixels[VOID] == pixels.sum():
                        found.wrong.append(
                            f'{list_path}: image {each} has no {kind} but {VOID} (void)'
                        )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


Result = tuple[tuple[int, int], dict[str, np.ndarray]]


def _reader(layer: SegDataLayer, kinds: dict[int, str]) -> Callable[[str], Result | CaffeError]:
    def read(name: str) -> Result | CaffeError:
        try:
            tops = layer.load(name)
        except CaffeError as error:
            return error
        height, width = tops[0].shape[2:]
        counts = {
            kind: np.bincount(tops[position].astype(np.uint8).ravel(), minlength=VOID + 1)
            for position, kind in kinds.items()
        }
        return (height, width), counts

    return read


def find_overlap(
    train: Sequence[str], test: Sequence[str], train_path: str, test_path: str
) -> list[str]:
    """Return a line for each image that is in both lists."""
    both = set(train) & set(test)
    return [
        f'{test_path}: {each} is in {train_path} too, so it would be trained on and scored on'
        for each in test
        if each in both
    ]
