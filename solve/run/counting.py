"""Run a net over a data set and count its predictions, as the release's score.py does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from caffe_port import Net, SGDSolver, mode, parallel
from caffe_port.errors import CaffeError, make_folder
from solve.datasets.layer import SegDataLayer
from solve.run.metrics import PRINTED, Scores, fast_hist
from solve.run.pictures import save_labels
from solve.run.progress import show_progress
from solve.run.transfer import Download


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
        behind = _count_behind()
        begun: deque[list[_Image]] = deque()
        for first in range(0, len(left) + behind * ranks, ranks):
            mine = left[first : first + ranks][rank : rank + 1]
            begun.append([_Image(net, tasks, name) for name in mine])
            if len(begun) <= behind:
                continue
            own = [image.count(save_dirs) for image in begun.popleft()]
            for counts in chain(*parallel.gather(own) if ranks > 1 else [own]):
                yield counts
                bar.update()


def _count_behind() -> int:
    """Return how many images are begun before one is counted: a GPU then always has work."""
    return int(mode.device().type == 'cuda')


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


class _Image:
    """An image that a net is run on: its scores, labels and losses, on their way to the host."""

    def __init__(self, net: Net, tasks: Sequence[Task], name: str):
        self._tasks, self._name = tasks, name
        self._classes = [net.blobs[task.layer].channels for task in tasks]
        found = {}
        with torch.no_grad():
            net.forward_range(0, len(net.layers) - 1)
            for task in tasks:
                found[f'best {task.layer}'] = net.blobs[task.layer].tensor[0].argmax(0)
                # The next image overwrites the others.
                found[f'label {task.gt}'] = net.blobs[task.gt].tensor[0, 0].clone()
                if task.loss:
                    found[f'loss {task.loss}'] = net.blobs[task.loss].tensor.clone()
        self._found = Download(found)

    def count(self, save_dirs: Sequence[Path]) -> list[Count]:
        """Save the predictions, one for each task, and count them."""
        found = self._found.arrays()
        best = [found[f'best {task.layer}'] for task in self._tasks]
        for save_dir, labels in zip(save_dirs, best):
            save_labels(labels, save_dir / f'{self._name}.png')
        counts = []
        for task, labels, classes in zip(self._tasks, best, self._classes):
            hist = fast_hist(found[f'label {task.gt}'].ravel(), labels.ravel(), classes)
            loss = float(found[f'loss {task.loss}']) if task.loss else math.nan
            counts.append(Count(hist, loss))
        return counts


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
