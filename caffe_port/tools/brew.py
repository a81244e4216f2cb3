"""The commands of Caffe's own program: train, test, time, device_query.

Source of flags, order and lines: Caffe's tools/caffe.cpp.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time as clock
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe_port import mode, parallel, prototxt
from caffe_port.errors import CaffeError
from caffe_port.net import Net
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.solving.display import average_outputs, note_losses
from caffe_port.solving.solver_types import get_solver

LOG = logging.getLogger('caffe_port')
FLAGS: dict[str, str | int] = dict(
    gpu='',
    solver='',
    model='',
    phase='',
    level=0,
    stage='',
    snapshot='',
    weights='',
    iterations=50,
    sigint_effect='stop',
    sighup_effect='snapshot',
)
_EFFECTS = {'stop': 'stop', 'snapshot': 'snapshot', 'none': None}


def train(flags: dict[str, Any]) -> None:
    """Train or finetune a model: --solver, and --snapshot to resume or --weights to begin with.

    --gpu names one GPU, several by commas (one process each), or all; without it the solver's
    own solver_mode counts. Signals do what --sigint_effect and --sighup_effect say.
    """
    _need(flags, 'solver', 'a solver definition to train')
    if flags['snapshot'] and flags['weights']:
        raise CaffeError('give a snapshot to resume training or weights to finetune, but not both')
    param = prototxt.read_solver(flags['solver'])
    param.train_state.level = flags['level']
    param.train_state.stage.extend(_stages(flags))
    gpus = _gpus(flags)
    if not gpus and param.solver_mode == SolverParameter.GPU and torch.cuda.is_available():
        gpus = [param.device_id]
    if len(gpus) > 1 and not parallel.run_id():
        _start_processes(gpus, flags)
        return
    _choose_device(gpus)
    parallel.join()
    if flags['weights']:
        del param.weights[:]
        param.weights.append(flags['weights'])
    solver = get_solver(_with_paths(param, Path(flags['solver']).parent))
    with _signals(flags) as requested:
        solver.requested_action = requested
        if flags['snapshot']:
            LOG.info('Resuming from %s', flags['snapshot'])
        LOG.info('Starting Optimization')
        try:
            solver.solve(flags['snapshot'] or None)
            LOG.info('Optimization Done.')
        except KeyboardInterrupt:
            LOG.info('Optimization stopped early.')
    parallel.leave()


def test(flags: dict[str, Any]) -> None:
    """Score a model: --model and --weights over --iterations batches; log each output's mean."""
    _need(flags, 'model', 'a model definition to score')
    _need(flags, 'weights', 'model weights to score')
    _choose_device(_gpus(flags))
    net = Net(flags['model'], mode.TEST, level=flags['level'], stages=_stages(flags))
    for weights in flags['weights'].split(','):
        net.copy_from(weights)
    iterations = flags['iterations']
    LOG.info('Running for %d iterations.', iterations)

    def log_batch(batch: int, outputs: dict[str, np.ndarray]) -> None:
        for name, values in outputs.items():
            for value in values.flat:
                LOG.info('Batch %d, %s = %.6g', batch, name, value)

    means, loss = average_outputs(net, iterations, log_batch)
    LOG.info('Loss: %.6g', loss)
    for name, mean, note in note_losses(net, means):
        LOG.info('%s = %.6g%s', name, mean, note)


def time(flags: dict[str, Any]) -> None:
    """Benchmark a model: --model, run forward and backward --iterations times, layer by layer."""
    _need(flags, 'model', 'a model definition to time')
    phases = {'': mode.TRAIN, 'TRAIN': mode.TRAIN, 'TEST': mode.TEST}
    if flags['phase'] not in phases:
        raise CaffeError(f'phase must be "TRAIN" or "TEST", found "{flags["phase"]}"')
    _choose_device(_gpus(flags))
    net = Net(flags['model'], phases[flags['phase']], level=flags['level'], stages=_stages(flags))
    last = len(net.layers) - 1
    LOG.info('Performing Forward')
    net.forward_range(0, last)
    LOG.info('Initial loss: %.6g', float(net.loss()))
    LOG.info('Performing Backward')
    net.backward_range(last, 0)
    LOG.info('*** Benchmark begins ***')
    iterations = flags['iterations']
    LOG.info('Testing for %d iterations.', iterations)
    forward, backward = np.zeros(last + 1), np.zeros(last + 1)
    began = _now()
    for iteration in range(iterations):
        started = _now()
        for i in range(last + 1):
            forward[i] += _milliseconds(net.forward_range, i, i)
        for i in reversed(range(last + 1)):
            backward[i] += _milliseconds(net.backward_range, i, i)
        LOG.info('Iteration: %d forward-backward time: %.6g ms.', iteration + 1, _now() - started)
    LOG.info('Average time per layer: ')
    for i, name in enumerate(net._layer_names):
        LOG.info('%10s\tforward: %.6g ms.', name, forward[i] / iterations)
        LOG.info('%10s\tbackward: %.6g ms.', name, backward[i] / iterations)
    LOG.info('Average Forward pass: %.6g ms.', forward.sum() / iterations)
    LOG.info('Average Backward pass: %.6g ms.', backward.sum() / iterations)
    LOG.info('Average Forward-Backward: %.6g ms.', (forward + backward).sum() / iterations)
    LOG.info('Total Time: %.6g ms.', _now() - began)
    LOG.info('*** Benchmark ends ***')


def device_query(flags: dict[str, Any]) -> None:
    """Show what there is to know of the GPUs that --gpu names."""
    gpus = _gpus(flags)
    LOG.info('Querying GPUs %s', flags['gpu'])
    for gpu in gpus:
        if gpu >= torch.cuda.device_count():
            raise CaffeError(f'no GPU {gpu}; PyTorch finds {torch.cuda.device_count()}')
        found = torch.cuda.get_device_properties(gpu)
        for what, value in (
            ('Device id', gpu),
            ('Major revision number', found.major),
            ('Minor revision number', found.minor),
            ('Name', found.name),
            ('Total global memory', found.total_memory),
            ('Number of multiprocessors', found.multi_processor_count),
        ):
            LOG.info('%-32s%s', what + ':', value)


COMMANDS: dict[str, Callable[[dict[str, Any]], None]] = {
    'train': train,
    'test': test,
    'device_query': device_query,
    'time': time,
}


def _with_paths(param: SolverParameter, folder: Path) -> SolverParameter:
    """Name nets that are not found from here by where they are beside the solver's file."""
    for field in ('net', 'train_net'):
        name = getattr(param, field)
        if name and not Path(name).exists() and (folder / name).exists():
            setattr(param, field, str(folder / name))
    for i, name in enumerate(param.test_net):
        if not Path(name).exists() and (folder / name).exists():
            param.test_net[i] = str(folder / name)
    return param


def _need(flags: dict[str, Any], name: str, what: str) -> None:
    if not flags[name]:
        raise CaffeError(f'need {what}: --{name}')


def _stages(flags: dict[str, Any]) -> list[str]:
    return [stage for stage in flags['stage'].split(',') if stage]


def _gpus(flags: dict[str, Any]) -> list[int]:
    """Return the numbers of the GPUs that --gpu names."""
    if flags['gpu'] == 'all':
        return list(range(torch.cuda.device_count()))
    try:
        return [int(number) for number in flags['gpu'].split(',') if number]
    except ValueError:
        raise CaffeError(
            f'--gpu={flags["gpu"]}: expected a number, several by commas, or all'
        ) from None


def _choose_device(gpus: Sequence[int]) -> None:
    if not gpus:
        LOG.info('Use CPU.')
        mode.set_mode_cpu()
        return
    gpu = gpus[parallel.local_rank()] if parallel.run_id() else gpus[0]
    LOG.info('Use GPU with device ID %d', gpu)
    mode.set_device(gpu)
    mode.set_mode_gpu()


def _start_processes(gpus: Sequence[int], flags: dict[str, Any]) -> None:
    """Run this training once for each GPU, as one net in training.

    Raises CaffeError where PyTorch does not find all of them.
    """
    found = torch.cuda.device_count()
    if missing := [gpu for gpu in gpus if gpu >= found]:
        raise CaffeError(f'--gpu={flags["gpu"]}: no GPU {missing[0]}; PyTorch finds {found}')
    LOG.info('Using GPUs %s', ', '.join(map(str, gpus)))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += [f'--nproc_per_node={len(gpus)}', '-m', 'caffe_port', 'train']
    command += [f'--{name}={flags[name]}' for name in FLAGS if flags[name] != FLAGS[name]]
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


@contextmanager
def _signals(flags: dict[str, Any]):
    """Let SIGINT and SIGHUP have the effects asked for; yield what a solver is to ask.

    Deviates: SIGTERM, which batch systems send, does what SIGINT does; it ends Caffe at once.
    """
    asked: list[str | None] = []
    before = {}
    for number, name in (
        (signal.SIGINT, 'sigint_effect'),
        (signal.SIGTERM, 'sigint_effect'),
        (signal.SIGHUP, 'sighup_effect'),
    ):
        if flags[name] not in _EFFECTS:
            raise CaffeError(f'--{name}={flags[name]}: expected {", ".join(_EFFECTS)}')
        effect = _EFFECTS[flags[name]]
        before[number] = signal.signal(number, lambda *_, effect=effect: asked.append(effect))
    try:
        yield lambda: 'stop' if 'stop' in asked else asked.pop() if asked else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _now() -> float:
    """Wait for the GPU and return the time in milliseconds."""
    if mode.device().type == 'cuda':
        torch.cuda.synchronize()
    return clock.perf_counter() * 1000


def _milliseconds(run: Callable[..., None], *arguments: int) -> float:
    started = _now()
    run(*arguments)
    return _now() - started
