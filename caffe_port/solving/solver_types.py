"""Caffe's other solver types, and get_solver, which chooses by name."""

from __future__ import annotations

import os

from caffe_port import prototxt
from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.solving.solver import SGDSolver


class NesterovSolver(SGDSolver):
    """Minimise by SGD with Nesterov's momentum."""

    type = 'Nesterov'


class AdaGradSolver(SGDSolver):
    """Minimise by AdaGrad: divide each gradient by the root of the sum of its squares."""

    type = 'AdaGrad'


class RMSPropSolver(SGDSolver):
    """Minimise by RMSProp: divide each gradient by the root of a running mean of its squares."""

    type = 'RMSProp'


class AdaDeltaSolver(SGDSolver):
    """Minimise by AdaDelta: scale each gradient by RMS of updates over RMS of gradients."""

    type = 'AdaDelta'


class AdamSolver(SGDSolver):
    """Minimise by Adam: running means of gradient and square, corrected for starting at 0."""

    type = 'Adam'


SOLVERS: dict[str, type[SGDSolver]] = {
    each.type: each
    for each in (
        SGDSolver,
        NesterovSolver,
        AdaGradSolver,
        RMSPropSolver,
        AdaDeltaSolver,
        AdamSolver,
    )
}


def get_solver(solver: str | os.PathLike | SolverParameter) -> SGDSolver:
    """Return a solver of the type that a solver prototxt names.

    Raises CaffeError for another type than Caffe's.
    """
    if isinstance(solver, SolverParameter):
        param, where = solver, 'solver'
    else:
        param, where = prototxt.read_solver(solver), os.fspath(solver)
    if param.type not in SOLVERS:
        raise CaffeError(f'{where}: no solver type "{param.type}"; there are {", ".join(SOLVERS)}')
    return SOLVERS[param.type](solver)
