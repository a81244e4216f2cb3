"""A picture of what several nets make of the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from caffe_port import Net
from solve.run.counting import predict
from solve.run.figures import draw_panel
from solve.run.pictures import Labelled, to_picture


def draw_comparison(
    nets: Mapping[str, Net], mean: Sequence[float], classes: Sequence[str], path: Path, rows: int
) -> None:
    """Draw the next images of nets, their labels, and what each net, by its name, predicts.

    The nets are test nets whose data layers come to the same images; `mean` is what was
    subtracted from those.
    """
    first = next(iter(nets.values()))
    drawn: list[list[np.ndarray | Labelled]] = []
    for _ in range(rows):
        with torch.no_grad():
            for net in nets.values():
                net.forward()
        label = first.blobs['label'].data[0, 0].copy()
        drawn.append([to_picture(first.blobs['data'].data[0], mean), Labelled(label, classes)])
        drawn[-1] += [Labelled(predict(net), classes, label) for net in nets.values()]
    draw_panel(['image', 'label', *nets], drawn, path)
