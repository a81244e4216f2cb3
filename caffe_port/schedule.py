"""Learning-rate policies."""

from __future__ import annotations

import math

from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import SolverParameter


def learning_rate(p: SolverParameter, iteration: int, current_step: int, where: str) -> float:
    """base_lr as lr_policy changes it over iterations, as SGDSolver::GetLearningRate."""
    needs = {'fixed': (), 'step': ('gamma', 'stepsize'), 'exp': ('gamma',),
             'inv': ('gamma', 'power'), 'multistep': ('gamma', 'stepvalue'),
             'poly': ('power', 'max_iter'), 'sigmoid': ('gamma', 'stepsize')}
    if p.lr_policy not in needs:
        raise CaffeError(f'{where}: lr_policy "{p.lr_policy}" unknown; there are '
                         + ', '.join(needs))
    missing = [name for name in needs[p.lr_policy]
               if not (p.stepvalue if name == 'stepvalue' else p.HasField(name))]
    if missing:
        raise CaffeError(f'{where}: lr_policy "{p.lr_policy}" needs {" and ".join(missing)}')
    factors = {
        'fixed': lambda: 1.0,
        'step': lambda: p.gamma ** (iteration // p.stepsize),
        'exp': lambda: p.gamma ** iteration,
        'inv': lambda: (1 + p.gamma * iteration) ** -p.power,
        'multistep': lambda: p.gamma ** current_step,
        'poly': lambda: (1 - iteration / p.max_iter) ** p.power,
        'sigmoid': lambda: 1 / (1 + math.exp(-p.gamma * (iteration - p.stepsize))),
    }
    return p.base_lr * factors[p.lr_policy]()
