"""Compute accuracies and IU from a confusion matrix, as the release does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

# What the release prints of a scoring, in its order and words, by the names of Scores.
PRINTED = {
    'loss': 'loss',
    'overall_accuracy': 'overall accuracy',
    'mean_accuracy': 'mean accuracy',
    'mean_iu': 'mean IU',
    'fwavacc': 'fwavacc',
}


def fast_hist(a: np.ndarray, b: np.ndarray, n: int) -> np.ndarray:
    """Count pairs: n x n, row the label in `a`, column the prediction in `b`.

    Pixels whose label is outside 0..n-1, such as void, do not count.
    """
    valid = (a >= 0) & (a < n)
    pairs = n * a[valid].astype(np.int64) + b[valid]
    return np.bincount(pairs, minlength=n * n).reshape(n, n)


@dataclass(frozen=True)
class Scores:
    """The measures of a confusion matrix (n x n, rows are labels), and the mean loss.

    `accuracy` (recall) and `iu` are per class, NaN where not defined. Mean accuracy leaves
    out the classes without a label, mean IU those with neither label nor prediction.
    """

    hist: np.ndarray
    loss: float = math.nan

    @cached_property
    def accuracy(self) -> np.ndarray:
        return _divide(np.diag(self.hist), self.hist.sum(1))

    @cached_property
    def iu(self) -> np.ndarray:
        right = np.diag(self.hist)
        return _divide(right, self.hist.sum(1) + self.hist.sum(0) - right)

    @property
    def overall_accuracy(self) -> float:
        return float(_divide(np.diag(self.hist).sum(), self.hist.sum()))

    @property
    def mean_accuracy(self) -> float:
        return _nanmean(self.accuracy)

    @property
    def mean_iu(self) -> float:
        return _nanmean(self.iu)

    @property
    def fwavacc(self) -> float:
        """The IU of each class, weighted by how many pixels have its label."""
        labelled = self.labelled
        frequency = _divide(self.hist.sum(1), self.hist.sum())
        return float((frequency[labelled] * self.iu[labelled]).sum())

    @property
    def labelled(self) -> np.ndarray:
        """Whether the ground truth has the class, per class."""
        return self.hist.sum(1) > 0

    @property
    def mean_iu_labelled(self) -> float:
        """The mean IU without the classes that the ground truth lacks."""
        return _nanmean(self.iu[self.labelled])

    def printed(self) -> dict[str, float]:
        """Return the numbers of PRINTED."""
        return {name: getattr(self, name) for name in PRINTED}


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divide; NaN where `b` is 0."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.divide(a, b)


def _nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def format_table(scores: Scores, classes: Sequence[str]) -> str:
    """Format accuracy and IU of each class in percent, then list the classes without labels.

    If a prediction has one of these, the mean IU is given with and without them.
    """
    width = max(map(len, ('class', *classes)))
    lines = [f'{"class":{width}}  accuracy %    IU %']
    for name, accuracy, iu in zip(classes, scores.accuracy, scores.iu):
        if not math.isnan(iu):
            shown = '       -' if math.isnan(accuracy) else f'{100 * accuracy:8.2f}'
            lines.append(f'{name:{width}}    {shown}  {100 * iu:6.2f}')
    absent = [name for name, labelled in zip(classes, scores.labelled) if not labelled]
    if absent:
        lines.append(f'absent from the ground truth: {", ".join(absent)}')
    if scores.mean_iu != scores.mean_iu_labelled and absent:
        lines.append(
            f'mean IU {100 * scores.mean_iu:.2f} %, without these '
            f'{100 * scores.mean_iu_labelled:.2f} %'
        )
    return '\n'.join(lines)


def format_numbers(scores: Scores) -> str:
    """Format the numbers of PRINTED, a line each: the loss, then shares in percent."""
    lines = [f'{PRINTED["loss"]:16} {scores.loss:.6g}']
    for name, value in scores.printed().items():
        if name != 'loss':
            lines.append(f'{PRINTED[name]:16} {100 * value:.2f} %')
    return '\n'.join(lines)


def format_for_report(scores: Scores) -> dict[str, str | float]:
    """Return the numbers of PRINTED under its words: the loss, and shares as percent."""
    return {
        PRINTED[name]: value if name == 'loss' else f'{100 * value:.2f} %'
        for name, value in scores.printed().items()
    }
