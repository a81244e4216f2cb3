"""Run a net over a data set and count its predictions, as the release's score.py does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from caffe_port import Net, SGDSolver, parallel
from caffe_port.errors import CaffeError, make_folder
from solve.datasets.layer import SegDataLayer
from solve.run.metrics import PRINTED, Scores, fast_hist
from solve.run.pictures import save_labels
from solve.run.progress import show_progress


@dataclass(frozen=True)
class Task:
    """What is scored: a blob of scores against one of labels, and their loss, if any."""

    layer: str
    gt: str
    loss: str | None = None


@dataclass(frozen=True)
class Count:
    """What was counted over some images: confusion matrix (n x n, rows labels), summed loss."""

    hist: np.ndarray
    loss: float = 0.0

    def __add__(self, other: Count) -> Count:
        return Count(self.hist + other.hist, self.loss + other.loss)

    @classmethod
    def zero(cls, net: Net, task: Task) -> Count:
        """Return the count of no image."""
        classes = net.blobs[task.layer].channels
        return cls(np.zeros((classes, classes), np.int64))


def find_data_layers(net: Net) -> list[SegDataLayer]:
    """Return the layers of solve/datasets that feed a net, in its order."""
    layers = [node.python_layer for node in net.module.nodes]
    return [layer for layer in layers if isinstance(layer, SegDataLayer)]


def find_tasks(net: Net) -> list[Task]:
    """Return a task for each SoftmaxWithLoss of a net: SIFT Flow's nets have two."""
    losses = [name for name, layer in net.layer_dict.items() if layer.type == 'SoftmaxWithLoss']
    bottoms, tops = net.bottom_names, net.top_names
    return [Task(bottoms[name][0], bottoms[name][1], tops[name][0]) for name in losses]


def predict(net: Net, layer: str = 'score') -> np.ndarray:
    """Return the best class of every pixel after a forward: H x W, int64."""
    return net.blobs[layer].tensor[0].argmax(0).cpu().numpy()


def count_images(
    net: Net,
    tasks: Sequence[Task],
    dataset: Sequence[str],
    save_dirs: Sequence[Path] = (),
    start: int = 0,
) -> Iterator[list[Count]]:
    """Run `net` for each id of `dataset` from `start` on; yield each image's counts by task.

    The data layer must come to these images in this order. Predictions go as palette
    PNGs named by id into `save_dirs`, one for each task, before their image is yielded.
    N ranks run every N-th image each, and each rank yields all images, in order.
    """
    left = dataset[start:]
    with (
        show_progress(
            desc='scoring', unit='img', leave=False, initial=start, total=len(dataset)
        ) as bar,
        _share_images(net, len(left)) as (rank, ranks),
    ):
        for first in range(0, len(left), ranks):
            mine = left[first : first + ranks][rank : rank + 1]
            own = [_count_image(net, tasks, name, save_dirs) for name in mine]
            for counts in chain(*parallel.gather(own) if ranks > 1 else [own]):
                yield counts
                bar.update()


@contextmanager
def _share_images(net: Net, count: int) -> Iterator[tuple[int, int]]:
    """Share the next `count` images out to the ranks; yield this rank and how many take part.

    Where the net has other data layers than one of solve/datasets, every rank runs all images.
    """
    layers = find_data_layers(net)
    if len(layers) != 1 or parallel.solver_count() == 1:
        yield 0, 1
        return
    share = parallel.solver_rank(), parallel.solver_count()
    with layers[0].shared(*share, count):
        yield share


def _count_image(
    net: Net, tasks: Sequence[Task], name: str, save_dirs: Sequence[Path]
) -> list[Count]:
    with torch.no_grad():
        net.forward_range(0, len(net.layers) - 1)
    best = [predict(net, task.layer) for task in tasks]
    for save_dir, labels in zip(save_dirs, best):
        save_labels(labels, save_dir / f'{name}.png')
    return [_count_task(net, task, labels) for task, labels in zip(tasks, best)]


def _count_task(net: Net, task: Task, best: np.ndarray) -> Count:
    label = net.blobs[task.gt].data[0, 0]
    hist = fast_hist(label.ravel(), best.ravel(), net.blobs[task.layer].channels)
    return Count(hist, float(net.blobs[task.loss].data) if task.loss else math.nan)


def compute_hist(
    net: Net,
    save_dir: str | Path | None,
    dataset: Sequence[str],
    layer: str = 'score',
    gt: str = 'label',
) -> tuple[np.ndarray, float]:
    """Run `net` once for each id in `dataset`, in the order of its data layer.

    With `save_dir`, predictions go there as palette PNGs named by id.
    Returns the confusion matrix (n x n float64, rows are labels) and the mean loss, NaN
    where the net has none for `layer`. Deviates: the release takes the semantic loss for
    both of SIFT Flow's tasks.
    """
    known = [task for task in find_tasks(net) if (task.layer, task.gt) == (layer, gt)]
    task = known[0] if known else Task(layer, gt)
    total = Count.zero(net, task)
    save_dirs = [make_folder(save_dir)] if save_dir else []
    for (count,) in count_images(net, [task], dataset, save_dirs):
        total += count
    return total.hist.astype(np.float64), total.loss / max(len(dataset), 1)


def seg_tests(
    solver: SGDSolver,
    save_format: str | bool,
    dataset: Sequence[str],
    layer: str = 'score',
    gt: str = 'label',
) -> Scores:
    """Score the solver's first test net with the weights of the net in training.

    Prints the release's lines. Returns the scores, where the release returns nothing.
    """
    if not solver.test_nets:
        raise CaffeError('seg_tests: the solver has no test net')
    print('>>>', datetime.now(), 'Begin seg tests')
    net = solver.test_nets[0]
    net.share_with(solver.net)
    return _score(net, solver.iter, save_format, dataset, layer, gt)


def do_seg_tests(
    net: Net,
    iter: int,
    save_format: str | bool,
    dataset: Sequence[str],
    layer: str = 'score',
    gt: str = 'label',
) -> np.ndarray:
    """Score `net` over `dataset`, print the release's lines and return the confusion matrix.

    `save_format`, if given, names the folder for predictions, with the iteration in {}.
    """
    return _score(net, iter, save_format, dataset, layer, gt).hist


def _score(
    net: Net, iter: int, save_format: str | bool, dataset: Sequence[str], layer: str, gt: str
) -> Scores:
    save_dir = str(save_format).format(iter) if save_format else None
    scores = Scores(*compute_hist(net, save_dir, dataset, layer, gt))
    for name, value in scores.printed().items():
        print('>>>', datetime.now(), 'Iteration', iter, PRINTED[name], value)
    return scores
