"""Score a segmentation net as the official release does."""

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
from PIL import Image

from caffe_port import Net, SGDSolver, parallel
from caffe_port.errors import CaffeError, replacing
from solve.datasets.layer import SegDataLayer
from solve.datasets.voc import palette
from solve.run.progress import progress


@dataclass(frozen=True)
class Scores:
    """The release's four numbers and the mean loss; per class recall and IU, NaN if absent."""

    overall_accuracy: float
    mean_accuracy: float
    mean_iu: float
    fwavacc: float
    loss: float
    accuracy: np.ndarray
    iu: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        """Whether the ground truth has the class, per class."""
        return ~np.isnan(self.accuracy)

    @property
    def mean_iu_labelled(self) -> float:
        """The mean IU without the classes that the ground truth lacks."""
        return _nanmean(self.iu[self.labelled])


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
    def none(cls, net: Net, task: Task) -> Count:
        """The count of no image."""
        classes = net.blobs[task.layer].channels
        return cls(np.zeros((classes, classes), np.int64))


def fast_hist(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """Count pairs: n x n, row the label in `a`, column the prediction in `b`.

    Pixels whose label is outside 0..n-1, such as void, do not count.
    """
    valid = (a >= 0) & (a < n)
    pairs = n * a[valid].astype(np.int64) + b[valid]
    return np.bincount(pairs, minlength=n * n).reshape(n, n)


def measures(hist: np.ndarray, loss: float = math.nan) -> Scores:
    """What a confusion matrix (n x n, rows labels) says, as the release computes it.

    mean accuracy and mean IU leave out classes that neither label nor prediction has.
    """
    right, labelled, predicted = np.diag(hist), hist.sum(1), hist.sum(0)
    with np.errstate(divide='ignore', invalid='ignore'):
        accuracy = right / labelled
        iu = right / (labelled + predicted - right)
        frequency = labelled / hist.sum()
        overall = right.sum() / hist.sum()
    seen = frequency > 0
    return Scores(
        float(overall),
        _nanmean(accuracy),
        _nanmean(iu),
        float((frequency[seen] * iu[seen]).sum()),
        loss,
        accuracy,
        iu,
    )


def _nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def predict(net: Net, layer: str = 'score') -> np.ndarray:
    """The best class of every pixel after a forward: H x W, int64."""
    return net.blobs[layer].tensor[0].argmax(0).cpu().numpy()


def tasks(net: Net) -> list[Task]:
    """What a net has losses for: one task, SIFT Flow's two."""
    return [
        Task(*net.bottom_names[name][:2], net.top_names[name][0])
        for name, layer in net.layer_dict.items()
        if layer.type == 'SoftmaxWithLoss'
    ]


def count_images(
    net: Net,
    wanted: Sequence[Task],
    dataset: Sequence[str],
    save_dirs: Sequence[Path] = (),
    start: int = 0,
) -> Iterator[list[Count]]:
    """Run `net` for each id of `dataset` from `start` on; yield each image's counts.

    The data layer must come to these images in this order. Predictions go as palette
    PNGs named by id into `save_dirs`, one for each task, before their image is yielded.
    Ranks take turns with the images and yield all of them, in order.
    """
    left = dataset[start:]
    with (
        progress(desc='scoring', unit='img', leave=False, initial=start, total=len(dataset)) as bar,
        _shared(net, len(left)) as (rank, ranks),
    ):
        for first in range(0, len(left), ranks):
            mine = left[first : first + ranks][rank : rank + 1]
            own = [_count_image(net, wanted, name, save_dirs) for name in mine]
            for counts in chain(*parallel.gather(own) if ranks > 1 else [own]):
                yield counts
                bar.update()


@contextmanager
def _shared(net: Net, count: int) -> Iterator[tuple[int, int]]:
    """This rank, and of how many, for the next `count` images of the net's data layer.

    A layer that cannot be shared out feeds every rank all images.
    """
    layers = [
        node.op.layer
        for node in net.module.nodes
        if isinstance(getattr(node.op, 'layer', None), SegDataLayer)
    ]
    if len(layers) != 1 or parallel.solver_count() == 1:
        yield 0, 1
        return
    share = parallel.solver_rank(), parallel.solver_count()
    with layers[0].shared(*share, count):
        yield share


def _count_image(
    net: Net, wanted: Sequence[Task], name: str, save_dirs: Sequence[Path]
) -> list[Count]:
    with torch.no_grad():
        net.forward_range(0, len(net.layers) - 1)
    best = [predict(net, task.layer) for task in wanted]
    for save_dir, labels in zip(save_dirs, best):
        save_prediction(labels, save_dir / f'{name}.png')
    return [_count(net, task, labels) for task, labels in zip(wanted, best)]


def _count(net: Net, task: Task, best: np.ndarray) -> Count:
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
    Returns the confusion matrix (n x n, rows labels) and the mean loss, NaN where the net
    has none for `layer`. Deviates: the release takes the semantic loss for both of SIFT
    Flow's tasks.
    """
    task = next(
        (task for task in tasks(net) if (task.layer, task.gt) == (layer, gt)), Task(layer, gt)
    )
    if save_dir:
        Path(save_dir).mkdir(parents=True, exist_ok=True)
    total = Count.none(net, task)
    for (count,) in count_images(net, [task], dataset, [Path(save_dir)] if save_dir else []):
        total += count
    return total.hist, total.loss / max(len(dataset), 1)


def save_prediction(best: np.ndarray, path: Path) -> None:
    """Write class indices (H x W) as a palette PNG in VOC's colours."""
    image = Image.fromarray(best.astype(np.uint8))
    image.putpalette(palette().tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format='PNG')


def seg_tests(
    solver: SGDSolver,
    save_format: str | bool,
    dataset: Sequence[str],
    layer: str = 'score',
    gt: str = 'label',
) -> Scores:
    """Score the solver's first test net with the weights of the net in training."""
    if not solver.test_nets:
        raise CaffeError('seg_tests: the solver has no test net')
    print('>>>', datetime.now(), 'Begin seg tests')
    solver.test_nets[0].share_with(solver.net)
    return do_seg_tests(solver.test_nets[0], solver.iter, save_format, dataset, layer, gt)


def do_seg_tests(
    net: Net,
    iter: int,
    save_format: str | bool,
    dataset: Sequence[str],
    layer: str = 'score',
    gt: str = 'label',
) -> Scores:
    """Score `net` over `dataset` and print the release's lines.

    `save_format`, if given, names the folder for predictions, with the iteration in {}.
    """
    save_dir = save_format.format(iter) if save_format else None
    scores = measures(*compute_hist(net, save_dir, dataset, layer, gt))
    for what, value in (
        ('loss', scores.loss),
        ('overall accuracy', scores.overall_accuracy),
        ('mean accuracy', scores.mean_accuracy),
        ('mean IU', scores.mean_iu),
        ('fwavacc', scores.fwavacc),
    ):
        print('>>>', datetime.now(), 'Iteration', iter, what, value)
    return scores


def table(scores: Scores, classes: Sequence[str]) -> str:
    """Accuracy and IU per class as text; classes absent from the ground truth are named below."""
    width = max(map(len, ('class', *classes)))
    lines = [f'{"class":{width}}  accuracy      IU']
    for name, accuracy, iu in zip(classes, scores.accuracy, scores.iu):
        if not math.isnan(iu):
            shown = '       -' if math.isnan(accuracy) else f'{100 * accuracy:8.2f}'
            lines.append(f'{name:{width}}  {shown}  {100 * iu:6.2f}')
    absent = [name for name, labelled in zip(classes, scores.labelled) if not labelled]
    if absent:
        lines.append(
            f'absent from the ground truth: {", ".join(absent)}\n'
            f'mean IU {scores.mean_iu:.4f}, without these {scores.mean_iu_labelled:.4f}'
        )
    return '\n'.join(lines)
