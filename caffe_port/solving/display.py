"""Log a solver's outputs and tests, in Caffe's words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch

from caffe_port.net import Net

LOG = logging.getLogger('caffe_port')


def log_outputs(title: str, net: Net, values: dict[str, np.ndarray]) -> None:
    """Log each output's values, and its part in the loss; large outputs are left out."""
    values = {name: array for name, array in values.items() if array.size <= 64}
    for number, (name, value, note) in enumerate(note_losses(net, values)):
        LOG.info('    %s net output #%d: %s = %.6g%s', title, number, name, value, note)


def note_losses(net: Net, values: dict[str, np.ndarray]) -> Iterator[tuple[str, float, str]]:
    """Yield each value of the outputs with its name, and a note of its part in the loss."""
    weights = {
        name: weight
        for node in net.module.nodes
        for name, weight in zip(node.tops, node.loss_weights)
    }
    for name, array in values.items():
        weight = weights.get(name, 0)
        for value in array.flat:
            yield name, value, f' (* {weight:g} = {weight * value:.6g} loss)' if weight else ''


def average_outputs(
    net: Net, passes: int, look: Callable[[int, dict[str, np.ndarray]], None] | None = None
) -> tuple[dict[str, np.ndarray], float]:
    """Run a net `passes` times; return the means of its outputs in float64, and of its loss.

    `look` is called with the number of each pass and its outputs.
    """
    sums: dict[str, np.ndarray] = {}
    loss = 0.0
    with torch.no_grad():
        for number in range(passes):
            outputs = net.forward()
            loss += float(net.loss())
            if look:
                look(number, outputs)
            for name, values in outputs.items():
                sums[name] = sums.get(name, 0) + values.astype(np.float64)
    return {name: total / passes for name, total in sums.items()}, loss / max(passes, 1)


def test_and_log(net: Net, passes: int, with_loss: bool) -> None:
    """Run a test net `passes` times and log the means of its outputs, and of its loss if asked."""
    means, loss = average_outputs(net, passes)
    if with_loss:
        LOG.info('Test loss: %.6g', loss)
    log_outputs('Test', net, means)


class Pace:
    """Measures how fast iterations pass between displays."""

    def __init__(self, iteration: int, seconds: float):
        self._iteration, self._seconds = iteration, seconds

    def format(self, iteration: int, seconds: float) -> str:
        """Return the pace since the last call, as text; empty for no iterations."""
        count, spent = iteration - self._iteration, seconds - self._seconds
        self._iteration, self._seconds = iteration, seconds
        if count <= 0:
            return ''
        return f' ({count / max(spent, 1e-9):.4g} iter/s, {spent:.3f}s/{count} iters)'
