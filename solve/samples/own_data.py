"""Draw pictures and masks of three classes in the layout of own data, to try finetune.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from caffe_port.errors import make_folder
from solve.datasets.images import VOID
from solve.datasets.voc import palette
from solve.samples.scenes import borders, draw_series

CLASSES = ('background', 'bus', 'sheep')


def draw_pairs(
    folder: Path, count: int, size: tuple[int, int] = (160, 200), seed: int = 1337
) -> Path:
    """Draw `count` pictures into images/, their masks into labels/, and classes.txt."""
    images, labels = make_folder(folder / 'images'), make_folder(folder / 'labels')
    settings = dict(train=count, val=0, size=size, seed=seed)
    numbers = {name: CLASSES.index(name) for name in CLASSES[1:]}
    for name, scene in draw_series(settings, CLASSES[1:])[2]:
        Image.fromarray(scene.rgb).save(images / f'{name}.jpg', quality=92)
        mask = scene.labels(numbers)
        image = Image.fromarray(np.where(borders(mask, 5), np.uint8(VOID), mask))
        image.putpalette(palette().tobytes())
        image.save(labels / f'{name}.png')
    (folder / 'classes.txt').write_text(''.join(f'{name}\n' for name in CLASSES))
    return folder
