"""What a solver logs of its nets, in Caffe's words."""

from __future__ import annotations

import logging

import numpy as np
import torch

from caffe_port.net import Net

LOG = logging.getLogger('caffe_port')


def log_outputs(title: str, net: Net, values: dict[str, np.ndarray]) -> None:
    """Log each output's values, and its part in the loss; large outputs are left out."""
    weights = {
        name: weight
        for node in net.module.nodes
        for name, weight in zip(node.tops, node.loss_weights)
    }
    number = 0
    for name, array in values.items():
        weight = weights.get(name, 0)
        for value in array.flat if array.size <= 64 else ():
            note = f' (* {weight:g} = {weight * value:.6g} loss)' if weight else ''
            LOG.info('    %s net output #%d: %s = %.6g%s', title, number, name, value, note)
            number += 1


def test_and_log(net: Net, passes: int, with_loss: bool) -> None:
    """Run a test net `passes` times and log the means of its outputs, and of its loss if asked."""
    sums: dict[str, np.ndarray] = {}
    loss = 0.0
    with torch.no_grad():
        for _ in range(passes):
            for name, values in net.forward().items():
                sums[name] = sums.get(name, 0) + values.astype(np.float64)
            loss += float(net.loss())
    if with_loss:
        LOG.info('Test loss: %.6g', loss / passes)
    log_outputs('Test', net, {name: total / passes for name, total in sums.items()})


class Pace:
    """How fast iterations pass between displays."""

    def __init__(self, iteration: int, seconds: float):
        self._iteration, self._seconds = iteration, seconds

    def text(self, iteration: int, seconds: float) -> str:
        """Return the pace since the last call at `seconds`; empty for no iterations."""
        count, spent = iteration - self._iteration, seconds - self._seconds
        self._iteration, self._seconds = iteration, seconds
        if count <= 0:
            return ''
        return f' ({count / max(spent, 1e-9):.4g} iter/s, {spent:.3f}s/{count} iters)'
