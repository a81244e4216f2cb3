"""SGDSolver: Caffe's stochastic gradient descent, step by step."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caffe_port import mode, parallel, prototxt, rng
from caffe_port.errors import CaffeError, WriteError, make_folder
from caffe_port.files import caffemodel
from caffe_port.net import Net
from caffe_port.proto.caffe_pb2 import NetParameter, NetState, SolverParameter
from caffe_port.solving import resume
from caffe_port.solving.schedule import learning_rate
from caffe_port.solving.update import Update

LOG = logging.getLogger('caffe_port')
_MAX_UNCHECKED = 1000  # iterations


class SGDSolver:
    """Minimise a net's loss as Caffe's SGDSolver does, in pycaffe's words.

    Takes a solver prototxt or a SolverParameter. The nets that a prototxt names are
    looked for from the working directory, as in Caffe, then beside the prototxt.

    With many processes (see parallel) each has a solver and all take each step together;
    rank 0 alone displays, tests and writes snapshots.

    `requested_action` is asked after each iteration and may answer 'snapshot' or 'stop'.
    `notes` holds what a script wants snapshots to remember, as JSON can hold it.

    Raises CaffeError, naming file and field, for what it cannot do as told.
    """

    def __init__(self, solver: str | os.PathLike | SolverParameter):
        if isinstance(solver, SolverParameter):
            self.param, self._folder = solver, Path('.')
        else:
            self.param, self._folder = prototxt.read_solver(solver), Path(solver).parent
        self.where = 'solver' if isinstance(solver, SolverParameter) else os.fspath(solver)
        self._check()
        if self.param.random_seed >= 0:
            rng.set_random_seed(self.param.random_seed + parallel.solver_rank())
        self.net = self._train_net()
        self.test_nets = self._test_nets()
        for weights in self.param.weights:
            for name in filter(None, (part.strip() for part in weights.split(','))):
                self.net.copy_from(name)
        self.iter = 0
        self.current_step = 0
        self._update = Update(self.param, self.net.module.learnable)
        self._in_step = False  # whether all ranks have the same parameters
        self.losses: deque[Tensor] = deque(maxlen=max(self.param.average_loss, 1))
        self._unchecked: list[tuple[int, list[tuple[str, Tensor]], Tensor]] = []
        self._callbacks: list[tuple[Callable, Callable]] = []
        self._display_clock = time.monotonic(), 0
        self.requested_action: Callable[[], str | None] = lambda: None
        self.notes: dict = {}

    # Setting up.

    def _check(self) -> None:
        p = self.param
        kinds = ('SGD', 'Nesterov')
        if p.type not in kinds:
            raise CaffeError(
                f'{self.where}: solver type "{p.type}" is not supported; there are '
                + ' and '.join(kinds)
            )
        if p.regularization_type not in ('L1', 'L2'):
            raise CaffeError(
                f'{self.where}: regularization_type "{p.regularization_type}" '
                'unknown; there are L1 and L2'
            )
        if p.iter_size < 1:
            raise CaffeError(f'{self.where}: iter_size {p.iter_size} must be positive')
        if len(p.test_iter) and not p.test_interval:
            raise CaffeError(f'{self.where}: test_iter without test_interval')
        learning_rate(p, 0, 0, self.where)

    def _resolve(self, name: str) -> Path:
        beside = self._folder / name
        return beside if not Path(name).exists() and beside.exists() else Path(name)

    def _net(self, source: str | NetParameter, phase: int, state: NetState) -> Net:
        proto = self._resolve(source) if isinstance(source, str) else source
        return Net(proto, phase, level=state.level, stages=list(state.stage))

    def _train_net(self) -> Net:
        p = self.param
        given = [
            field
            for field in ('net', 'net_param', 'train_net', 'train_net_param')
            if p.HasField(field)
        ]
        if len(given) != 1:
            raise CaffeError(
                f'{self.where}: expected one of net, net_param, train_net and '
                f'train_net_param, found {", ".join(given) or "none"}'
            )
        return self._net(getattr(p, given[0]), mode.TRAIN, p.train_state)

    def _test_nets(self) -> list[Net]:
        p = self.param
        sources: list = [*p.test_net_param, *p.test_net]
        if p.HasField('net') or p.HasField('net_param'):
            shared = p.net if p.HasField('net') else p.net_param
            sources += [shared] * (len(p.test_iter) - len(sources))
        if len(p.test_iter) not in (0, len(sources)):
            raise CaffeError(
                f'{self.where}: {len(p.test_iter)} test_iter for {len(sources)} test nets'
            )
        if len(p.test_state) not in (0, len(sources)):
            raise CaffeError(
                f'{self.where}: {len(p.test_state)} test_state for {len(sources)} test nets'
            )
        states = list(p.test_state) or [NetState()] * len(sources)
        nets = [self._net(source, mode.TEST, state) for source, state in zip(sources, states)]
        for net in nets:
            net.debug_info = p.debug_info
        return nets

    # Stepping.

    def add_callback(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Call `before` ahead of each iteration's forward, `after` once gradients are there."""
        self._callbacks.append((before, after))

    def solve(self, resume: str | os.PathLike | None = None) -> None:
        """Step until max_iter, from a .solverstate if given; snapshot after it as told."""
        if resume is not None:
            self.restore(resume)
        self.step(max(self.param.max_iter - self.iter, 0))
        p = self.param
        if p.snapshot_after_train and not (p.snapshot and self.iter % p.snapshot == 0):
            self.snapshot()
        if p.test_interval and self.iter % p.test_interval == 0:
            self.test_all()

    def step(self, count: int) -> None:
        """Run `count` iterations: forward, backward, update, and a snapshot when due.

        Raises KeyboardInterrupt where requested_action() answers 'stop'.
        """
        p = self.param
        self._get_in_step()
        for _ in range(count):
            self.net.clear_param_diffs()
            if (
                p.test_interval
                and self.iter % p.test_interval == 0
                and (self.iter or p.test_initialization)
            ):
                self.test_all()
            self._advance_step()
            for before, _ in self._callbacks:
                before()
            self.net.debug_info = bool(p.debug_info and p.display and self.iter % p.display == 0)
            passes = self._forward_backward()
            loss = sum(loss for _, loss in passes) / len(passes)
            parallel.average([loss])
            self.losses.append(loss)
            self._unchecked.append((self.iter, passes, loss))
            if loss.device.type == 'cpu' or len(self._unchecked) >= _MAX_UNCHECKED:
                self.check_losses()
            if p.display and self.iter % p.display == 0:
                self._display()
            for _, after in self._callbacks:
                after()
            self.apply_update()
            self.iter += 1
            action = self._agreed_action()
            if action == 'stop':
                self.snapshot()
                raise KeyboardInterrupt(f'stopped at iteration {self.iter}')
            if action == 'snapshot' or p.snapshot and self.iter % p.snapshot == 0:
                self._try_snapshot()

    def _get_in_step(self) -> None:
        """Begin with the parameters of rank 0 on every rank, as random fillers differ."""
        if not self._in_step and parallel.solver_count() > 1:
            self.net.follow_device()
            parallel.broadcast([item.parameter.data for item in self.net.module.learnable])
            self.net.params_written()
        self._in_step = True

    def _agreed_action(self) -> str | None:
        """What requested_action() of any rank asks for."""
        actions = (None, 'snapshot', 'stop')
        return actions[parallel.agree(actions.index(self.requested_action()))]

    def _forward_backward(self) -> list[tuple[str, Tensor]]:
        """iter_size passes, gradients added up; returns each one's images and scalar loss."""
        net, last = self.net, len(self.net.layers) - 1
        passes = []
        for _ in range(self.param.iter_size):
            net.forward_range(0, last)
            passes.append((self._images(), net.loss()))
            net.backward_range(last, 0, keep=False)
        return passes

    @property
    def smoothed_loss(self) -> float:
        """The mean loss of the last average_loss iterations, and of all ranks.

        Deviates: Caffe starts the window anew with each call of step, and shows rank 0's.
        """
        # The device may have been changed under way.
        losses = [loss.to(mode.device()) for loss in self.losses]
        return float(torch.stack(losses).mean()) if losses else math.nan

    def _images(self) -> str:
        """The images in the net now, as far as its data layers tell."""
        layers = (getattr(node.op, 'layer', None) for node in self.net.module.nodes)
        return ', '.join(str(layer.current) for layer in layers if hasattr(layer, 'current'))

    def check_losses(self) -> None:
        """Raise CaffeError if a loss since the last check is NaN or infinite on any rank.

        It waits for the device, so on a GPU it runs at display, before snapshots and where
        many are unchecked only.
        """
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        losses = torch.stack([mean.to(mode.device()) for *_, mean in unchecked]).tolist()
        for (iteration, passes, _), loss in zip(unchecked, losses):
            if not math.isfinite(loss):
                images, own = min(passes, key=lambda one: math.isfinite(one[1]))
                on = f' on image {images}' if images else ''
                if parallel.solver_count() > 1:
                    on += f' (rank {parallel.solver_rank()})'
                of_all = parallel.gather((float(own), on))
                loss, on = min(of_all, key=lambda of: math.isfinite(of[0]))
                raise CaffeError(
                    f'{self.where}: iteration {iteration}: the loss is {loss}{on}; '
                    f'{self._largest_change()}; resume from the last snapshot with '
                    'a smaller base_lr, or look at the image'
                )

    def _largest_change(self) -> str:
        names = {id(p): node.name for node in self.net.module.nodes for p in node.op.blobs()}
        changes = [(change, names[id(parameter)]) for change, parameter in self._update.largest()]
        broken = [name for change, name in changes if not math.isfinite(change)]
        if broken:
            return f'the last change of {broken[0]} was not finite'
        if not changes:
            return 'no parameter had been changed yet'
        change, name = max(changes)
        return f'the largest last change of a parameter was {change:.3g}, in {name}'

    def _display(self) -> None:
        self.check_losses()
        if parallel.solver_rank():
            return
        then, at = self._display_clock
        now = time.monotonic()
        pace = ''
        if self.iter > at:
            seconds, count = now - then, self.iter - at
            pace = f' ({count / max(seconds, 1e-9):.4g} iter/s, {seconds:.3f}s/{count} iters)'
        LOG.info('Iteration %d%s, loss = %.6g', self.iter, pace, self.smoothed_loss)
        self._display_clock = now, self.iter
        self._show_outputs(
            '    Train', self.net, {name: self.net.blobs[name].data for name in self.net.outputs}
        )
        LOG.info('Iteration %d, lr = %.6g', self.iter, self.rate())

    @staticmethod
    def _show_outputs(title: str, net: Net, outputs: dict[str, np.ndarray]) -> None:
        weights = {
            name: weight
            for node in net.module.nodes
            for name, weight in zip(node.tops, node.loss_weights)
        }
        number = 0
        for name, values in outputs.items():
            weight = weights.get(name, 0)
            for value in values.flat if values.size <= 64 else ():
                note = f' (* {weight:g} = {weight * value:.6g} loss)' if weight else ''
                LOG.info('%s net output #%d: %s = %.6g%s', title, number, name, value, note)
                number += 1

    def test_all(self) -> None:
        """Run each test net test_iter times and log the means of its outputs; rank 0 does."""
        if parallel.solver_rank():
            return
        for number, (net, passes) in enumerate(zip(self.test_nets, self.param.test_iter)):
            LOG.info('Iteration %d, Testing net (#%d)', self.iter, number)
            net.share_with(self.net)
            sums: dict[str, np.ndarray] = {}
            loss = 0.0
            with torch.no_grad():
                for _ in range(passes):
                    for name, values in net.forward().items():
                        sums[name] = sums.get(name, 0) + values.astype(np.float64)
                    loss += float(net.loss())
            if self.param.test_compute_loss:
                LOG.info('Test loss: %.6g', loss / passes)
            self._show_outputs('    Test', net, {k: v / passes for k, v in sums.items()})

    # The update.

    def rate(self) -> float:
        """The learning rate of this iteration, before lr_mult."""
        return learning_rate(self.param, self.iter, self.current_step, self.where)

    def _advance_step(self) -> None:
        """Count the stepvalues that this iteration has come to."""
        p = self.param
        while (
            p.lr_policy == 'multistep'
            and self.current_step < len(p.stepvalue)
            and self.iter >= p.stepvalue[self.current_step]
        ):
            self.current_step += 1
            LOG.info('MultiStep Status: Iteration %d, step = %d', self.iter, self.current_step)

    def apply_update(self) -> None:
        """Average the gradients over ranks, clip them and move the parameters, as Update says."""
        self._advance_step()
        self.net.module.flush()
        self._update.apply(self.rate())
        self.net.params_written()

    # Snapshots.

    def _try_snapshot(self) -> None:
        """Snapshot; where the disk refuses, say so and go on to the next interval."""
        try:
            self.snapshot()
        except WriteError as error:
            LOG.error('%s; training goes on, and the next snapshot tries again', error)

    def snapshot(self) -> Path:
        """Write <snapshot_prefix>_iter_<iter>.caffemodel and .solverstate (or .h5 twins).

        Each is there whole or not at all. A third file, .memory.json, holds what Caffe
        forgets: data order, random streams, recent losses and `notes`. With snapshot_diff
        the weights have the last update beside them, as Caffe's diffs then hold it.
        All ranks take part, rank 0 writes. Returns the path of the solver state.
        """
        self.check_losses()
        remembered = resume.collect(self)
        p = self.param
        hdf5 = p.snapshot_format == SolverParameter.HDF5
        suffix = '.h5' if hdf5 else ''
        stem = f'{p.snapshot_prefix or "snapshot"}_iter_{self.iter}'
        model, state = f'{stem}.caffemodel{suffix}', Path(f'{stem}.solverstate{suffix}')
        if parallel.solver_rank():
            return state
        make_folder(Path(stem).parent)
        LOG.info('Snapshotting to %s', model)
        self.net.save(model, self._last_update() if p.snapshot_diff else None)
        resume.save(resume.beside(state), remembered)
        write = caffemodel.write_state_hdf5 if hdf5 else caffemodel.write_state
        write(state, self.iter, model, self._update.arrays(), self.current_step)
        LOG.info('Snapshotting solver state to %s', state)
        return state

    def _last_update(self) -> dict[str, list[np.ndarray]]:
        moved = self._update.last()
        return {
            name: [moved[id(blob.parameter)].reshape(blob.shape) for blob in blobs]
            for name, blobs in self.net.params.items()
        }

    def restore(self, path: str | os.PathLike) -> None:
        """Take up iteration, weights and history from a .solverstate, Caffe's or ours.

        Its weights are looked for beside it, so that a run may be moved, then where it says.
        With the .memory.json that `snapshot` leaves the run goes on to the bit as if it had
        not stopped; without it data order and random streams start anew, as in Caffe.
        Nothing changes on error.
        """
        state = caffemodel.read_state(path)
        self._update.check(state.history, path, self.net.name)
        remembered = resume.load(resume.beside(path), state.iter)
        kind = (remembered or {}).get('type', self.param.type)
        if kind != self.param.type:
            raise CaffeError(f'{path}: of a solver of type {kind}, this one is {self.param.type}')
        before = resume.collect(self)
        try:
            if remembered is not None:
                resume.recall(remembered, self)
            if state.learned_net:
                named = Path(state.learned_net)
                beside = Path(path).parent / named.name
                self.net.copy_from(beside if beside.exists() else named)
        except CaffeError:
            resume.recall(before, self)
            raise
        if remembered is None:
            LOG.info(
                '%s has no %s: data order and random streams start anew, as in Caffe',
                path,
                resume.beside(path).name,
            )
        self.iter, self.current_step = state.iter, state.current_step
        self._update.restore(state.history)
        self._display_clock = time.monotonic(), self.iter
        LOG.info('Restored iteration %d from %s', self.iter, path)


def get_solver(solver: str | os.PathLike | SolverParameter) -> SGDSolver:
    """The solver that a solver prototxt asks for."""
    return SGDSolver(solver)
