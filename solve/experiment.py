"""What a run of an experiment needs besides net and solver: places, rounds, keeping watch."""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, Sequence

import torch

import caffe_port as caffe
import surgery
from caffe_port import caffemodel, memory, mode, parallel
from caffe_port.errors import CaffeError, WriteError
from caffe_port.proto.caffe_pb2 import NetParameter, SolverParameter
from solve import plot, score, snapshots
from solve.progress import progress

LOG = logging.getLogger('caffe_port')
# As a file to resume from: the newest whole snapshot of the run's own.
LATEST = Path('latest')


@dataclass
class Job:
    """One run of an experiment: where things lie and what the sample changes."""

    name: str
    folder: Path                     # where snapshots, logs and pictures go
    weights: list[Path]              # to start from, usually one
    resume: Path | None = None
    net: dict[str, Any] = field(default_factory=dict)        # arguments of fcn()
    constants: dict[str, Any] = field(default_factory=dict)  # solver constants to replace
    iterations: int | None = None    # in all, if not as published
    step: int | None = None          # between scorings, if not as published
    prefix: Path = Path()            # of snapshots; in the folder unless told otherwise
    keep: int = 0                    # snapshots to keep besides the best, 0 for all

    def __post_init__(self) -> None:
        if self.prefix == Path():
            self.prefix = self.folder / 'snapshot' / 'train'

    def solver(self, constants: dict[str, Any], train: NetParameter,
               test: NetParameter) -> caffe.SGDSolver:
        """A solver with the published constants, watched and able to stop cleanly."""
        param = solver_param({**constants, **self.constants})
        param.ClearField('test_net')
        param.ClearField('train_net')
        param.train_net_param.CopyFrom(train)
        param.test_net_param.add().CopyFrom(test)
        param.snapshot_prefix = str(self.prefix)
        if self.iterations:
            param.max_iter = self.iterations
        snapshots.sweep(self.prefix)
        solver = caffe.SGDSolver(param)
        self._watch = _Watch(solver, self.folder)
        return solver

    def resumed(self, solver: caffe.SGDSolver) -> bool:
        """Restore the snapshot that --resume names; False where there is none to restore."""
        if self.resume is None or parallel.restarted() and not snapshots.states(self.prefix):
            return False
        state = self.resume
        if state == LATEST:
            state = parallel.first(lambda: snapshots.latest(self.prefix))
        print(f'Going on from {state}', flush=True)
        solver.restore(state)
        return True

    def rounds(self, solver: caffe.SGDSolver, count: int, step: int) -> Iterator[int]:
        """How many iterations lie before each scoring that is still to come.

        As published they are `count` times `step`. Between the first and the last of
        them the run is watched.
        """
        end = self.iterations or self.constants.get('max_iter') or count * step
        step = self.step or step
        stops = [*range((solver.iter // step + 1) * step, end, step), end]
        with self._watch.over(stops):
            if solver.iter in (end, *range(step, end, step)) and (
                    solver.notes.get('scored') != solver.iter):
                yield 0  # stopped after the snapshot, before or while scoring
            yield from (b - a for a, b in zip([solver.iter, *stops], stops) if b > a)

    def scored(self, solver: caffe.SGDSolver, scores: score.Scores,
               classes: Sequence[str], **others: tuple[score.Scores, Sequence[str]]) -> None:
        """Print the tables per class and keep the scores for the learning curve.

        `others` are the scores and classes of a net's further tasks, by name; the first
        task's say which iteration is the best.
        """
        print(score.table(scores, classes), flush=True)
        best = solver.notes.get('best')
        if best is None or scores.mean_iu > best['mean_iu']:
            solver.notes['best'] = {'iteration': solver.iter, 'mean_iu': scores.mean_iu}
        solver.notes['scored'] = solver.iter
        remembered = memory.collect(solver)
        if caffe.solver_rank():
            return
        try:
            memory.save(memory.beside(snapshots.states(self.prefix)[solver.iter]), remembered)
        except (KeyError, WriteError) as error:  # the disk is full, or was for the snapshot
            LOG.error('scores of iteration %d are not in its snapshot: %s', solver.iter, error)
        if self.keep:
            snapshots.prune(self.prefix, self.keep, solver.notes['best']['iteration'])
        lines = _measured(scores)
        for name, (other, names) in others.items():
            print(score.table(other, names), flush=True)
            lines.update({f'{name}_{key}': value for key, value in _measured(other).items()})
        self._watch.note(**lines)

    def finish(self, solver: caffe.SGDSolver, **means: Sequence[float]) -> None:
        """Draw the learning curve and a panel of predictions, and say where all is.

        `means` are the blobs with the pictures, by name, and what was subtracted from them.
        """
        parallel.first(lambda: self._draw(solver, means))

    def _draw(self, solver: caffe.SGDSolver, means: dict[str, Sequence[float]]) -> None:
        plot.curve([self.folder], self.folder / 'curve.png')
        plot.panel(solver.test_nets[0], means, self.folder / 'panel.png')
        print(f'Snapshots: {solver.param.snapshot_prefix}_iter_*; '
              f'learning curve and panel: {self.folder}/curve.png, panel.png')


def _measured(scores: score.Scores) -> dict[str, float]:
    return dict(overall_accuracy=scores.overall_accuracy, test_loss=scores.loss,
                mean_accuracy=scores.mean_accuracy, mean_iu=scores.mean_iu,
                fwavacc=scores.fwavacc)


def _peak_memory() -> int:
    """The most memory used so far, of the GPU where there is one, in bytes."""
    if mode.device().type == 'cuda':
        return torch.cuda.max_memory_allocated(mode.device())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ids(net: caffe.Net) -> list[str]:
    """The images that the net's data layer goes through, in its order."""
    return net.module.nodes[0].op.layer.ids


def solver_param(constants: dict[str, Any]) -> SolverParameter:
    """Solver constants as the message that a solver.prototxt holds."""
    return SolverParameter(**constants)


def load_weights(net: caffe.Net, path: Path, suffix: str = '') -> None:
    """Copy weights from a file that fits, or transplant them from a classifier's.

    Fully connected layers of the classifier become convolutions (fc6 4096 x 25088
    to 4096 x 512 x 7 x 7); layers that the net does not have are dropped. `suffix` is
    what the net's names have behind the file's.

    Raises CaffeError if the file has no layer of the net, or one of another count.
    """
    source = stored_net(path)
    known = [name for name in source.params if name + suffix in net.params]
    if not known:
        raise CaffeError(f'{path}: no layer of this net in it; it has '
                         + (', '.join(source.params) or 'no weights at all'))
    fits = not suffix and all(tuple(stored.shape) == blob.shape for name in known
                              for stored, blob in zip(source.params[name], net.params[name]))
    if fits:
        net.copy_from(path)
        return
    try:
        surgery.transplant(net, source, suffix)
    except CaffeError as error:
        raise CaffeError(f'{path}: {error}') from error


def stored_net(path: Path) -> SimpleNamespace:
    """A weight file as surgery sees a net: `params`, blobs by layer."""
    return SimpleNamespace(params={layer.name: layer.blobs for layer in caffemodel.read(path)
                                   if layer.blobs})


class _Watch:
    """The progress line, the log in the run's folder, and the answer to signals."""

    def __init__(self, solver: caffe.SGDSolver, folder: Path):
        self.solver, self.folder = solver, folder
        self.bar = None
        self._action: str | None = None
        self._stops: set[int] = set()
        solver.requested_action = self._take_action
        solver.add_callback(lambda: None, self._iteration)
        LOG.handlers.clear()
        if caffe.solver_rank():
            return
        try:
            handler = logging.FileHandler(folder / 'caffe.log')
        except OSError as error:
            raise CaffeError(f'{folder}: not written to: {error.strerror}') from error
        handler.setFormatter(logging.Formatter('%(asctime)s %(message)s'))
        LOG.addHandler(handler)

    @contextmanager
    def over(self, stops: Sequence[int]) -> Iterator[None]:
        """Watch the run until the last of `stops`, the iterations at which it is scored."""
        self._stops = set(stops)
        self.bar = progress(total=stops[-1], initial=self.solver.iter, unit='it', desc='iteration')
        self._clock = time.monotonic(), self.solver.iter
        handlers = {signal.SIGINT: self._stop}
        if hasattr(signal, 'SIGHUP'):
            handlers[signal.SIGHUP] = self._snapshot
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.bar.close()

    def note(self, **values: float) -> None:
        """Add a line to log.jsonl, and count the time from here for images per second."""
        line = {'iteration': self.solver.iter, 'time': time.time(), **values}
        try:
            with open(self.folder / 'log.jsonl', 'a') as log:
                log.write(json.dumps(line) + '\n')
        except OSError as error:  # a full disk must not end the run
            LOG.error('log.jsonl: not written: %s', error.strerror)
        self._clock = time.monotonic(), self.solver.iter

    def _iteration(self) -> None:
        solver = self.solver
        if caffe.solver_rank():
            return
        self.bar.update(1)
        display = solver.param.display
        if display and solver.iter % display == 0:
            loss = solver.smoothed_loss
            then, at = self._clock
            images = (solver.iter - at) * solver.param.iter_size * caffe.solver_count()
            pace = images / (time.monotonic() - then)
            self.bar.set_postfix_str(f'loss {loss:.5g}, {pace:.3g} images/s')
            self.note(lr=solver.rate(), loss=float(solver.losses[-1]), smoothed_loss=loss,
                      images_per_second=pace, memory_bytes=_peak_memory())

    def _take_action(self) -> str | None:
        """What a signal asked for; a snapshot where scoring comes next, which may take long."""
        action, self._action = self._action, None
        return action or ('snapshot' if self.solver.iter in self._stops else None)

    def _stop(self, *_) -> None:
        iteration = self.solver.iter
        if iteration in snapshots.states(Path(self.solver.param.snapshot_prefix)):
            raise KeyboardInterrupt(f'stopped after iteration {iteration}, which is saved')
        if self._action == 'stop':
            raise KeyboardInterrupt('stopped at once')
        self._action = 'stop'
        print('\nStopping after this iteration, with a snapshot; again to stop at once.',
              file=sys.stderr)

    def _snapshot(self, *_) -> None:
        self._action = self._action or 'snapshot'
