"""The types of solvers: how each computes the update of a parameter from its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import SolverParameter

Tensors = list[Tensor]


@dataclass(frozen=True)
class Step:
    """What the rules need besides tensors: settings, learning rate and iteration.

    `rate` counts with the parameters' lr_mult; `iteration` is counted from 0.
    """

    param: SolverParameter
    rate: float
    iteration: int


def _accept(param: SolverParameter, where: str) -> None:
    """Accept all settings."""


@dataclass(frozen=True)
class Rule:
    """A type of solver.

    `update(step, diffs, *history)` replaces regularized gradients by what is to be
    subtracted from the parameters, and updates the history, all in place. Each argument is a
    list with one tensor per parameter. A parameter has `histories` tensors of history; a
    solver state holds the first of every parameter, then the second of every parameter.

    `history_is_update` says that the history holds past updates, so that it stays 0 where
    the rate is 0; other types keep squares of gradients, weight decay included.
    `history_is_diff` says that it is what `update` leaves in the diffs.
    `check(param, where)` raises CaffeError for settings that the type cannot take.
    """

    update: Callable[..., None]
    histories: int = 1
    history_is_update: bool = False
    history_is_diff: bool = False
    check: Callable[[SolverParameter, str], None] = _accept


def sgd(step: Step, diffs: Tensors, history: Tensors) -> None:
    """Take SGD's step: history = momentum * history + rate * diff is the update."""
    torch._foreach_mul_(history, step.param.momentum)
    torch._foreach_add_(history, diffs, alpha=step.rate)
    torch._foreach_copy_(diffs, history)


def nesterov(step: Step, diffs: Tensors, history: Tensors) -> None:
    """Do as sgd, but update by (1 + momentum) * history - momentum * the history before."""
    momentum = step.param.momentum
    update = torch._foreach_mul(history, -momentum)
    torch._foreach_mul_(history, momentum)
    torch._foreach_add_(history, diffs, alpha=step.rate)
    torch._foreach_add_(update, history, alpha=1 + momentum)
    torch._foreach_copy_(diffs, update)


def adagrad(step: Step, diffs: Tensors, history: Tensors) -> None:
    """Add diff ** 2 to the history; update by rate * diff / (sqrt(history) + delta)."""
    torch._foreach_add_(history, torch._foreach_mul(diffs, diffs))
    _scale(step, diffs, history)


def rmsprop(step: Step, diffs: Tensors, history: Tensors) -> None:
    """Do as adagrad, but the history is a running mean of squares, by rms_decay."""
    _mean_of_squares(history, diffs, step.param.rms_decay)
    _scale(step, diffs, history)


def adadelta(step: Step, diffs: Tensors, gradients: Tensors, updates: Tensors) -> None:
    """Update by rate * u, u = diff * sqrt((updates + delta) / (gradients + delta)).

    Both histories are running means of squares, by momentum: of diff and, after it, of u.
    """
    delta, momentum = step.param.delta, step.param.momentum
    _mean_of_squares(gradients, diffs, momentum)
    ratio = torch._foreach_add(updates, delta)
    torch._foreach_div_(ratio, torch._foreach_add(gradients, delta))
    torch._foreach_sqrt_(ratio)
    torch._foreach_mul_(diffs, ratio)
    _mean_of_squares(updates, diffs, momentum)
    torch._foreach_mul_(diffs, step.rate)


def adam(step: Step, diffs: Tensors, means: Tensors, squares: Tensors) -> None:
    """Update by rate * correction * means / (sqrt(squares) + delta).

    The histories are running means of diff, by momentum, and of its square, by momentum2;
    at iteration t, counted from 1, correction is sqrt(1 - momentum2 ** t) / (1 - momentum ** t).
    """
    p, t = step.param, step.iteration + 1
    correction = np.float32(math.sqrt(1 - p.momentum2**t) / (1 - p.momentum**t))
    torch._foreach_mul_(means, p.momentum)
    torch._foreach_add_(means, diffs, alpha=1 - p.momentum)
    _mean_of_squares(squares, diffs, p.momentum2)
    root = torch._foreach_sqrt(squares)
    torch._foreach_add_(root, p.delta)
    torch._foreach_copy_(diffs, means)
    torch._foreach_div_(diffs, root)
    torch._foreach_mul_(diffs, step.rate * float(correction))


def _mean_of_squares(means: Tensors, values: Tensors, decay: float) -> None:
    """Set means = decay * means + (1 - decay) * values ** 2."""
    torch._foreach_mul_(means, decay)
    torch._foreach_add_(means, torch._foreach_mul(values, values), alpha=1 - decay)


def _scale(step: Step, diffs: Tensors, history: Tensors) -> None:
    """Set diff = rate * diff / (sqrt(history) + delta)."""
    root = torch._foreach_sqrt(history)
    torch._foreach_add_(root, step.param.delta)
    torch._foreach_div_(diffs, root)
    torch._foreach_mul_(diffs, step.rate)


def _without_momentum(param: SolverParameter, where: str) -> None:
    if param.momentum:
        raise CaffeError(
            f'{where}: AdaGrad and RMSProp take no momentum, found momentum {param.momentum:g}'
        )


def _with_rms_decay(param: SolverParameter, where: str) -> None:
    _without_momentum(param, where)
    if not 0 <= param.rms_decay < 1:
        raise CaffeError(
            f'{where}: rms_decay must be at least 0 and below 1, found {param.rms_decay:g}'
        )


def _with_means(param: SolverParameter, where: str) -> None:
    for name in 'momentum', 'momentum2':
        if not 0 <= getattr(param, name) < 1:
            raise CaffeError(
                f'{where}: Adam needs {name} of at least 0 and below 1, '
                f'found {getattr(param, name):g}'
            )


RULES = {
    'SGD': Rule(sgd, history_is_update=True, history_is_diff=True),
    'Nesterov': Rule(nesterov, history_is_update=True),
    'AdaGrad': Rule(adagrad, check=_without_momentum),
    'RMSProp': Rule(rmsprop, check=_with_rms_decay),
    'AdaDelta': Rule(adadelta, histories=2),
    'Adam': Rule(adam, histories=2, check=_with_means),
}
