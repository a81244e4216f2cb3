"""Caffe's solvers, step by step."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from caffe_port import mode, parallel, plan, prototxt, rng
from caffe_port.building import Node
from caffe_port.errors import CaffeError, WriteError
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.solving import display, resume, snapshot, solver_nets
from caffe_port.solving.losses import Pass, Unchecked
from caffe_port.solving.rules import RULES
from caffe_port.solving.schedule import learning_rate
from caffe_port.solving.update import Update

LOG = logging.getLogger('caffe_port')
_MAX_UNCHECKED = 1000  # iterations


@runtime_checkable
class StepCallback(Protocol):
    """An object whose methods a solver calls in each iteration."""

    def on_start(self) -> None:
        """Act before the forward passes."""

    def on_gradients_ready(self) -> None:
        """Act once gradients are there."""


def _no_action() -> None:
    """Ask for nothing."""


def _any_notes(notes: dict) -> None:
    """Accept all notes."""


class SGDSolver:
    """Minimise a net's loss as Caffe's SGDSolver does, in pycaffe's words.

    Takes a solver prototxt or a SolverParameter. The nets that a prototxt names are
    looked for from the working directory, as in Caffe, then beside the prototxt. As in
    Caffe, the class decides the type of solver; get_solver makes the one that the
    prototxt's `type` names.

    With many processes (see parallel) each has a solver and all take each step together;
    rank 0 alone displays, tests and writes snapshots.

    `requested_action` is called after each iteration and may return 'snapshot' or 'stop'.
    `notes` holds what a script wants snapshots to keep, as JSON can hold it; `check_notes`
    is called with those of a snapshot before it is restored, and raises CaffeError to refuse
    them. A copy or a pickle of a solver has none of these functions, nor callbacks: they
    belong to the original.

    Raises CaffeError, naming file and field, for what it cannot do.
    """

    type = 'SGD'

    def __init__(self, solver: str | os.PathLike | SolverParameter):
        if isinstance(solver, SolverParameter):
            self.param, folder = solver, Path('.')
        else:
            self.param, folder = prototxt.read_solver(solver), Path(solver).parent
        self.where = 'solver' if isinstance(solver, SolverParameter) else os.fspath(solver)
        self._check()
        if self.param.random_seed >= 0:
            rng.set_random_seed(self.param.random_seed + parallel.solver_rank())
        self.net = solver_nets.make_train_net(self.param, folder, self.where)
        self.test_nets = solver_nets.make_test_nets(self.param, folder, self.where)
        for weights in self.param.weights:
            for name in filter(None, (part.strip() for part in weights.split(','))):
                self.net.copy_from(name)
        self.iter = 0
        self.current_step = 0
        self._update = Update(self.type, self.param, self.net.module.learnable)
        self._in_step = False  # whether all ranks have the same parameters
        self._moved: set[int] = set()  # parameters that backward has moved already
        self.losses: deque[Tensor] = deque(maxlen=max(self.param.average_loss, 1))
        self._unchecked = Unchecked()
        self._pace = display.Pace(0, time.monotonic())
        self.notes: dict = {}
        self._reset_functions()

    # Setting up.

    def _check(self) -> None:
        p = self.param
        if p.type != self.type:
            LOG.warning(
                '%s: type is "%s", but %s was called: it solves by %s, as in Caffe; '
                'get_solver chooses by the type',
                self.where,
                p.type,
                type(self).__name__,
                self.type,
            )
        RULES[self.type].check(p, self.where)
        if p.regularization_type not in ('L1', 'L2'):
            raise CaffeError(
                f'{self.where}: regularization_type "{p.regularization_type}" '
                'unknown; there are L1 and L2'
            )
        if p.iter_size < 1:
            raise CaffeError(f'{self.where}: iter_size {p.iter_size} must be positive')
        if len(p.test_iter) and not p.test_interval:
            raise CaffeError(f'{self.where}: test_iter without test_interval')
        if p.test_compute_loss and any(passes < 1 for passes in p.test_iter):
            raise CaffeError(
                f'{self.where}: test_iter {min(p.test_iter)} with test_compute_loss: '
                'no loss is the mean of no passes; test_iter must be positive'
            )
        learning_rate(p, 0, 0, self.where)

    def _reset_functions(self) -> None:
        """Have no callbacks, and ask for no action."""
        self._callbacks: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._gradients_are_seen = False  # by a callback
        self.requested_action: Callable[[], str | None] = _no_action
        self.check_notes: Callable[[dict], None] = _any_notes

    def __getstate__(self) -> dict[str, Any]:
        functions = ('_callbacks', '_gradients_are_seen', 'requested_action', 'check_notes')
        return {name: value for name, value in self.__dict__.items() if name not in functions}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset_functions()

    # Stepping.

    def add_callback(
        self, before: Callable[[], None] | StepCallback, after: Callable[[], None] | None = None
    ) -> None:
        """Call `before` ahead of each iteration's forward, `after` once gradients are there.

        A single object, such as NCCL, has both as its methods on_start and on_gradients_ready.

        Raises CaffeError if it has not.
        """
        if after is not None:
            assert callable(before)
            self._callbacks.append((before, after))
        elif isinstance(before, StepCallback):
            self._callbacks.append((before.on_start, before.on_gradients_ready))
        else:
            raise CaffeError(
                'add_callback: expected two functions, or one object with on_start and '
                f'on_gradients_ready, found one {type(before).__name__}'
            )
        self._gradients_are_seen = True

    def add_watch(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Do as add_callback, for an `after` that sees neither gradients nor params.

        These need not wait for it then (see set_recompute).
        """
        self._callbacks.append((before, after))

    def solve(self, resume: str | os.PathLike | None = None) -> None:
        """Step until max_iter, from a .solverstate if given; then snapshot and test as set."""
        if resume is not None:
            self.restore(resume)
        LOG.info('Solving %s', self.net.name)
        LOG.info('Learning Rate Policy: %s', self.param.lr_policy)
        self.step(max(self.param.max_iter - self.iter, 0))
        p = self.param
        if p.snapshot_after_train and not (p.snapshot and self.iter % p.snapshot == 0):
            self.snapshot()
        if p.test_interval and self.iter % p.test_interval == 0:
            self.test_all()

    def step(self, count: int) -> None:
        """Run `count` iterations: forward, backward, update, and a snapshot when due.

        Raises KeyboardInterrupt where requested_action() returns 'stop'.
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
            try:
                self._learn()
            finally:
                self._moved = set()  # also where it was cut short
            self.iter += 1
            action = self._agreed_action()
            if action == 'stop':
                self.snapshot()
                raise KeyboardInterrupt(f'stopped at iteration {self.iter}')
            if action == 'snapshot' or p.snapshot and self.iter % p.snapshot == 0:
                self._try_snapshot()

    def _learn(self) -> None:
        """Run forward and backward, check and show the losses, and move the parameters."""
        p = self.param
        passes = self._forward_backward()
        loss = reduce(add, (one.loss for one in passes)) / len(passes)
        parallel.average([loss])
        self.losses.append(loss)
        self._unchecked.add(self.iter, passes, loss)
        if loss.device.type == 'cpu' or len(self._unchecked) >= _MAX_UNCHECKED:
            self.check_losses()
        if p.display and self.iter % p.display == 0:
            self._display()
        for _, after in self._callbacks:
            after()
        self.apply_update()

    def _get_in_step(self) -> None:
        """Copy rank 0's parameters to every rank, before the first step: random fillers differ."""
        if not self._in_step and parallel.solver_count() > 1:
            self.net.follow_device()
            parallel.broadcast([item.parameter.data for item in self.net.module.learnable])
            self.net.mark_params_stale()
        self._in_step = True

    def _agreed_action(self) -> str | None:
        """Return what requested_action() of any rank asks for."""
        actions = (None, 'snapshot', 'stop')
        return actions[parallel.take_largest(actions.index(self.requested_action()))]

    def _forward_backward(self) -> list[Pass]:
        """Run iter_size passes, which add up gradients."""
        net, last = self.net, len(self.net.layers) - 1
        passes = []
        for _ in range(self.param.iter_size):
            net.forward_range(0, last)
            passes.append(Pass(self._images(), net.loss()))
            early = self._may_move_early(passes[-1].loss)
            net.backward_range(last, 0, keep=False, learned=self._move_early if early else None)
        return passes

    def _may_move_early(self, loss: Tensor) -> bool:
        """Return whether a layer's params may be moved before the layers below have diffs.

        Then gradients take less memory. Nobody may look between backward and update.
        """
        return (
            plan.is_recomputing()
            and self._update.may_apply_early()
            and loss.device.type == 'cpu'
            and math.isfinite(loss)
            and not self._gradients_are_seen
            and getattr(self.apply_update, '__func__', None) is SGDSolver.apply_update
            and not (self.net.debug_info or parallel.solver_count() > 1)
        )

    def _move_early(self, node: Node) -> None:
        """Move the params of a layer whose backward is done, unless other layers have them too."""
        blobs = [blob for blob in node.op.param_blobs if blob.may_be_early]
        self._moved |= self._update.apply_early(blobs, self.rate(), self.iter)

    def _images(self) -> str:
        """Name the images in the net now, as far as its data layers tell."""
        layers = [node.python_layer for node in self.net.module.nodes]
        return ', '.join(str(layer.current) for layer in layers if hasattr(layer, 'current'))

    def rate(self) -> float:
        """Return the learning rate of this iteration, before lr_mult."""
        return learning_rate(self.param, self.iter, self.current_step, self.where)

    def _advance_step(self) -> None:
        """Count the stepvalues that this iteration has reached."""
        p = self.param
        while (
            p.lr_policy == 'multistep'
            and self.current_step < len(p.stepvalue)
            and self.iter >= p.stepvalue[self.current_step]
        ):
            self.current_step += 1
            LOG.info('MultiStep Status: Iteration %d, step = %d', self.iter, self.current_step)

    def apply_update(self) -> None:
        """Average the gradients over ranks, clip them and move the parameters; collective.

        Afterwards a parameter's diff holds what was subtracted from it, as in Caffe.
        """
        self._advance_step()
        moved, self._moved = self._moved, set()
        if not moved:
            for blob in self.net.module.param_blobs():
                blob.settle_grad()  # of an earlier step
        self.net.module.flush()
        self._update.apply(self.rate(), self.iter, moved)
        self.net.mark_params_stale()
        for net in (self.net, *self.test_nets):  # which have the same weights
            net.free_plans()

    # Losses, display and tests.

    @property
    def smoothed_loss(self) -> float:
        """The mean loss of the last average_loss iterations, and of all ranks.

        Deviates: Caffe starts the window anew with each call of step, and shows rank 0's.
        """
        # The device may have changed meanwhile.
        losses = [loss.to(mode.device()) for loss in self.losses]
        return float(torch.stack(losses).mean()) if losses else math.nan

    def check_losses(self) -> None:
        """Raise CaffeError if a loss since the last check is NaN or infinite on any rank.

        It waits for the device, so on a GPU it runs only at display, before snapshots and
        where many losses are unchecked.
        """
        self._unchecked.check(self.where, self._largest_change)

    def _largest_change(self) -> str:
        names = {id(p): node.name for node in self.net.module.nodes for p in node.op.blobs()}
        what, sizes = self._update.largest()
        changes = [(size, names[id(parameter)]) for size, parameter in sizes]
        broken = [name for change, name in changes if not math.isfinite(change)]
        if broken:
            return f'the {what} of {broken[0]} was not finite'
        if not changes:
            return 'no parameter had been changed yet'
        change, name = max(changes)
        return f'the largest {what} of a parameter was {change:.3g}, in {name}'

    def _display(self) -> None:
        self.check_losses()
        if parallel.solver_rank():
            return
        pace = self._pace.format(self.iter, time.monotonic())
        LOG.info('Iteration %d%s, loss = %.6g', self.iter, pace, self.smoothed_loss)
        values = {name: self.net.blobs[name].data for name in self.net.outputs}
        display.log_outputs('Train', self.net, values)
        LOG.info('Iteration %d, lr = %.6g', self.iter, self.rate())

    def test_all(self) -> None:
        """Run each test net test_iter times and log the means of its outputs, on rank 0 alone."""
        if parallel.solver_rank():
            return
        for number, (net, passes) in enumerate(zip(self.test_nets, self.param.test_iter)):
            LOG.info('Iteration %d, Testing net (#%d)', self.iter, number)
            net.share_with(self.net)
            display.test_and_log(net, passes, self.param.test_compute_loss)

    # Snapshots.

    def _try_snapshot(self) -> None:
        """Snapshot; where the disk refuses, log it and go on to the next interval."""
        try:
            self.snapshot()
        except WriteError as error:
            LOG.error('%s; training goes on, and the next snapshot tries again', error)

    def snapshot(self) -> Path:
        """Write <snapshot_prefix>_iter_<iter>.caffemodel and .solverstate (or .h5 twins).

        A third file, .memory.json, holds what Caffe forgets: data order, random streams,
        recent losses and `notes` (see resume). Each is there whole or not at all. With
        snapshot_diff the weights have their diffs beside them. All ranks take part, rank 0
        writes. Returns the state's path.
        """
        self.check_losses()
        kept = resume.collect(self)
        p = self.param
        model, state = snapshot.name_files(p, self.iter)
        if not parallel.solver_rank():
            LOG.info('Snapshotting to %s', model)
            snapshot.write(
                model, state, self.net, self._update, kept, self.current_step, p.snapshot_diff
            )
            LOG.info('Snapshotting solver state to %s', state)
        return state

    def restore(self, path: str | os.PathLike) -> None:
        """Take iteration, weights and history from a .solverstate, Caffe's or ours.

        Its weights are looked for beside it, so that a run may be moved, then where it names
        them. With the .memory.json that `snapshot` writes the run goes on to the bit as if it
        had not stopped; without it data order and random streams start anew, as in Caffe.
        Nothing changes on error.
        """
        found = snapshot.read(Path(path), self.net, self._update, self.type)
        before = resume.collect(self)
        if found.kept is None:
            LOG.info(
                '%s has no %s: data order and random streams start anew, as in Caffe',
                path,
                found.resume_file.name,
            )
        else:
            try:
                self.check_notes(found.kept['notes'])
            except CaffeError as error:
                raise CaffeError(f'{found.resume_file}: {error}') from error
            resume.apply(found.kept, self, found.resume_file)
        if found.model is not None:
            try:
                self.net.copy_from(found.model)
            except CaffeError:
                resume.apply(before, self, found.resume_file)
                raise
        self.iter, self.current_step = found.iter, found.current_step
        self._update.restore(found.history)
        self._pace = display.Pace(self.iter, time.monotonic())
        LOG.info('Restored iteration %d from %s', self.iter, path)
