"""Learning-rate policies."""

from __future__ import annotations

import math

from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import SolverParameter


def learning_rate(p: SolverParameter, iteration: int, current_step: int, where: str) -> float:
    """Return base_lr as lr_policy changes it over iterations, as SGDSolver::GetLearningRate.

    Raises CaffeError, naming solver `where`, policy and iteration, if the rate is not finite.
    Deviates: Caffe goes on with a rate of nan or infinity.
    """
    needs = {
        'fixed': (),
        'step': ('gamma', 'stepsize'),
        'exp': ('gamma',),
        'inv': ('gamma', 'power'),
        'multistep': ('gamma', 'stepvalue'),
        'poly': ('power', 'max_iter'),
        'sigmoid': ('gamma', 'stepsize'),
    }
    if p.lr_policy not in needs:
        raise CaffeError(
            f'{where}: lr_policy "{p.lr_policy}" unknown; there are {", ".join(needs)}'
        )
    missing = [
        name
        for name in needs[p.lr_policy]
        if not (p.stepvalue if name == 'stepvalue' else p.HasField(name))
    ]
    if missing:
        raise CaffeError(f'{where}: lr_policy "{p.lr_policy}" needs {" and ".join(missing)}')
    divisor = {'step': 'stepsize', 'poly': 'max_iter'}.get(p.lr_policy)
    if divisor and not getattr(p, divisor):
        raise CaffeError(f'{where}: lr_policy "{p.lr_policy}" divides by {divisor}, which is 0')
    factors = {
        'fixed': lambda: 1.0,
        'step': lambda: p.gamma ** (iteration // p.stepsize),
        'exp': lambda: p.gamma**iteration,
        'inv': lambda: (1 + p.gamma * iteration) ** -p.power,
        'multistep': lambda: p.gamma**current_step,
        'poly': lambda: (1 - iteration / p.max_iter) ** p.power,
        # Beyond 700 the exponential overflows; in float32 the rate has been 0 long before.
        'sigmoid': lambda: 1 / (1 + math.exp(min(-p.gamma * (iteration - p.stepsize), 700))),
    }
    try:
        rate = p.base_lr * factors[p.lr_policy]()
    except ArithmeticError:
        rate = math.inf
    if isinstance(rate, complex) or not math.isfinite(rate):
        raise CaffeError(
            f'{where}: lr_policy "{p.lr_policy}" has no finite rate at iteration '
            f"{iteration}; Caffe's pow gives nan or infinity there"
        )
    return rate
