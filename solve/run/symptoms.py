"""Detect signs that a net is not learning, and warn with their usual causes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from caffe_port import Net
from caffe_port.ops.loss import divisor
from solve.run.metrics import Scores

# How near to chance counts as chance, and for how many iterations it may last: a sound run
# of the release leaves ln(classes) within its first hundred.
NEAR, PATIENCE = 0.01, 200


class LossAtChance:
    """Finds losses of a net that stay at ln(classes) per labelled pixel."""

    def __init__(self, net: Net):
        self._net = net
        self._since: dict[str, int] = {}
        self._warned: set[str] = set()

    def look(self, iteration: int) -> str | None:
        """Return a warning, once for each loss, if it has stayed at chance for PATIENCE iterations.

        Call it now and then, after a forward; it waits for the device.
        """
        for node in self._net.module.nodes:
            if node.type != 'SoftmaxWithLoss' or node.name in self._warned:
                continue
            loss, classes = self._measure_per_pixel(node)
            if math.isnan(loss):
                continue  # the image has no labels
            if abs(loss - math.log(classes)) > NEAR * math.log(classes):
                self._since.pop(node.name, None)
            elif iteration - self._since.setdefault(node.name, iteration) >= PATIENCE:
                self._warned.add(node.name)
                return (
                    f'{node.name} has stayed at ln({classes}) = {math.log(classes):.4f} per '
                    f'pixel since iteration {self._since[node.name]}: the scores say nothing '
                    'yet. Usual causes: the weights to start from did not reach the net '
                    '(other layer names, fc6 and fc7 not made convolutions), the kernels of '
                    'upsampling are 0 (surgery.interp), or the learning rate is too small '
                    '(1e-10 is for the unnormalised loss).'
                )
        return None

    def _measure_per_pixel(self, node: Any) -> tuple[float, int]:
        """Return the mean loss of the labelled pixels now in the net, and how many classes it has.

        The mean is NaN if no pixel has a label.
        """
        op = node.op
        scores, labels = (self._net.blobs[name].tensor for name in node.bottoms)
        count = labels.numel() if op.ignore is None else int((labels != op.ignore).sum())
        batch = math.prod(scores.shape[: op.axis])
        total = float(self._net.blobs[node.tops[0]].tensor) * float(
            divisor(op.mode, labels.numel(), batch, count)
        )
        return (total / count if count else math.nan), scores.shape[op.axis]


def warn_accuracy_at_chance(scores: Scores) -> str | None:
    """Return a warning if the mean accuracy is 1 / classes, as when all pixels get one class."""
    labelled = np.count_nonzero(scores.labelled)
    if labelled < 2 or abs(scores.mean_accuracy - 1 / labelled) > 1e-3:
        return None
    return (
        f'the mean accuracy is {scores.mean_accuracy:.4f}, 1 / {labelled} classes: as '
        'good as one class for every pixel. Usual causes: too few iterations so far, weights that '
        'did not reach the net, kernels of upsampling that are 0 (surgery.interp), a learning '
        'rate that is far too small or too large, or labels that do not belong to the images.'
    )
