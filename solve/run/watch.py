"""Keeping an eye on a run: progress, a log, signals, and signs that it does not learn."""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import caffe_port as caffe
from caffe_port import mode
from caffe_port.errors import CaffeError
from solve.run import snapshots, symptoms
from solve.run.progress import progress

LOG = logging.getLogger('caffe_port')


class Watch:
    """The progress line, the log in the run's folder, and the answer to signals."""

    def __init__(self, solver: caffe.SGDSolver, folder: Path):
        self.solver, self.folder = solver, folder
        self.bar = None
        self._action: str | None = None
        self._stops: set[int] = set()
        self._chance = symptoms.LossAtChance(solver.net)
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
        # What went wrong also shows where the user looks.
        errors = logging.StreamHandler()
        errors.setLevel(logging.ERROR)
        errors.setFormatter(logging.Formatter('\nError: %(message)s'))
        LOG.addHandler(errors)

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
            with open(self.folder / 'log.jsonl', 'a+b') as log:
                log.seek(max(log.tell() - 1, 0))
                torn = log.read(1) not in (b'', b'\n')  # by a disk that was full
                log.write(b'\n' * torn + json.dumps(line).encode() + b'\n')
        except OSError as error:  # a full disk must not end the run
            LOG.error('log.jsonl: not written: %s', error.strerror)
        self._clock = time.monotonic(), self.solver.iter

    def warn(self, text: str) -> None:
        """Tell the user and the log of what may be wrong with the run."""
        LOG.warning('%s', text)
        print(f'\nWarning: {text}', file=sys.stderr, flush=True)

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
            self.note(
                lr=solver.rate(),
                loss=float(solver.losses[-1]),
                smoothed_loss=loss,
                images_per_second=pace,
                memory_bytes=_peak_memory(),
            )
            if warning := self._chance.look(solver.iter):
                self.warn(warning)

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
        print(
            '\nStopping after this iteration, with a snapshot; again to stop at once.',
            file=sys.stderr,
        )

    def _snapshot(self, *_) -> None:
        self._action = self._action or 'snapshot'


def _peak_memory() -> int:
    """The most memory used so far, of the GPU where there is one, in bytes."""
    if mode.device().type == 'cuda':
        return torch.cuda.max_memory_allocated(mode.device())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
