"""Make the nets that a solver's parameters name."""

from __future__ import annotations

import os
from pathlib import Path

from caffe_port import mode
from caffe_port.errors import CaffeError
from caffe_port.net import Net
from caffe_port.proto.caffe_pb2 import NetParameter, NetState, SolverParameter


def make_train_net(param: SolverParameter, folder: Path, where: str) -> Net:
    """Make the training net of solver `where`, looking for its file as `_find` does.

    Raises CaffeError unless exactly one is named.
    """
    given = [
        field
        for field in ('net', 'net_param', 'train_net', 'train_net_param')
        if param.HasField(field)
    ]
    if len(given) != 1:
        raise CaffeError(
            f'{where}: expected one of net, net_param, train_net and '
            f'train_net_param, found {", ".join(given) or "none"}'
        )
    return _net(getattr(param, given[0]), mode.TRAIN, param.train_state, folder)


def make_test_nets(param: SolverParameter, folder: Path, where: str) -> list[Net]:
    """Make the test nets of solver `where`: one for each test_iter.

    Raises CaffeError where test_iter or test_state are not as many as the nets.
    """
    sources: list[str | NetParameter] = [*param.test_net_param, *param.test_net]
    if param.HasField('net') or param.HasField('net_param'):
        shared = param.net if param.HasField('net') else param.net_param
        sources += [shared] * (len(param.test_iter) - len(sources))
    for field in 'test_iter', 'test_state':
        count = len(getattr(param, field))
        if count not in (0, len(sources)):
            raise CaffeError(f'{where}: {count} {field} for {len(sources)} test nets')
    states = list(param.test_state) or [NetState()] * len(sources)
    nets = [_net(source, mode.TEST, state, folder) for source, state in zip(sources, states)]
    for net in nets:
        net.debug_info = param.debug_info
    return nets


def _net(source: str | NetParameter, phase: int, state: NetState, folder: Path) -> Net:
    proto = _find(source, folder) if isinstance(source, str) else source
    return Net(proto, phase, level=state.level, stages=list(state.stage))


def _find(name: str, folder: Path) -> Path:
    """Look for a file from the working directory, as Caffe does, then beside the solver's."""
    beside = folder / name
    return beside if not os.path.exists(name) and os.path.exists(beside) else Path(name)
