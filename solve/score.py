"""Score a segmentation net as the official release does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from PIL import Image

from caffe_port import Net, SGDSolver
from caffe_port.errors import CaffeError, replacing
from solve.datasets.voc import palette
from solve.progress import progress


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
    return Scores(float(overall), _nanmean(accuracy), _nanmean(iu),
                  float((frequency[seen] * iu[seen]).sum()), loss, accuracy, iu)


def _nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def predict(net: Net, layer: str = 'score') -> np.ndarray:
    """The best class of every pixel after a forward: H x W, int64."""
    return net.blobs[layer].tensor[0].argmax(0).cpu().numpy()


def compute_hist(net: Net, save_dir: str | Path | None, dataset: Sequence[str],
                 layer: str = 'score', gt: str = 'label') -> tuple[np.ndarray, float]:
    """Run `net` once for each id in `dataset`, in the order of its data layer.

    With `save_dir`, predictions go there as palette PNGs named by id.
    Returns the confusion matrix (n x n, rows labels) and the mean loss.
    """
    classes = net.blobs[layer].channels
    if save_dir:
        Path(save_dir).mkdir(parents=True, exist_ok=True)
    hist, loss = np.zeros((classes, classes), np.int64), 0.0
    with torch.no_grad():
        for name in progress(dataset, desc='scoring', unit='img', leave=False):
            net._forward(0, len(net.layers) - 1)
            best = predict(net, layer)
            hist += fast_hist(net.blobs[gt].data[0, 0].ravel(), best.ravel(), classes)
            if 'loss' in net.blobs:
                loss += float(net.blobs['loss'].data)
            if save_dir:
                save_prediction(best, Path(save_dir) / f'{name}.png')
    return hist, loss / max(len(dataset), 1)


def save_prediction(best: np.ndarray, path: Path) -> None:
    """Write class indices (H x W) as a palette PNG in VOC's colours."""
    image = Image.fromarray(best.astype(np.uint8))
    image.putpalette(palette().tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format='PNG')


def seg_tests(solver: SGDSolver, save_format: str | bool, dataset: Sequence[str],
              layer: str = 'score', gt: str = 'label') -> Scores:
    """Score the solver's first test net with the weights of the net in training."""
    if not solver.test_nets:
        raise CaffeError('seg_tests: the solver has no test net')
    print('>>>', datetime.now(), 'Begin seg tests')
    solver.test_nets[0].share_with(solver.net)
    return do_seg_tests(solver.test_nets[0], solver.iter, save_format, dataset, layer, gt)


def do_seg_tests(net: Net, iter: int, save_format: str | bool, dataset: Sequence[str],
                 layer: str = 'score', gt: str = 'label') -> Scores:
    """Score `net` over `dataset` and print the release's lines.

    `save_format`, if given, names the folder for predictions, with the iteration in {}.
    """
    save_dir = save_format.format(iter) if save_format else None
    scores = measures(*compute_hist(net, save_dir, dataset, layer, gt))
    for what, value in (('loss', scores.loss), ('overall accuracy', scores.overall_accuracy),
                        ('mean accuracy', scores.mean_accuracy), ('mean IU', scores.mean_iu),
                        ('fwavacc', scores.fwavacc)):
        print('>>>', datetime.now(), 'Iteration', iter, what, value)
    return scores


def table(scores: Scores, classes: Sequence[str]) -> str:
    """Accuracy and IU per class as text; classes without a pixel are named below."""
    width = max(map(len, classes))
    lines = [f'{"class":{width}}  accuracy      IU']
    for name, accuracy, iu in zip(classes, scores.accuracy, scores.iu):
        if not math.isnan(iu):
            shown = '       -' if math.isnan(accuracy) else f'{100 * accuracy:8.2f}'
            lines.append(f'{name:{width}}  {shown}  {100 * iu:6.2f}')
    absent = [name for name, iu in zip(classes, scores.iu) if math.isnan(iu)]
    if absent:
        lines.append(f'neither labelled nor predicted: {", ".join(absent)}')
    return '\n'.join(lines)
