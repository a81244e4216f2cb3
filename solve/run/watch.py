"""Watch a run: progress, logs, signals, and signs that it does not learn."""

from __future__ import annotations

import io
import logging
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import torch

import caffe_port as caffe
import surgery
from caffe_port import mode
from caffe_port.errors import CaffeError
from caffe_port.glog import GlogFile
from solve.run import retention, symptoms, terminal
from solve.run.counting import find_data_layers
from solve.run.progress import show_progress

LOG = logging.getLogger('caffe_port')
# In seconds. Under torchrun a signal to all processes comes twice: torchrun passes it on.
SAME_SIGNAL = 1


class RunLog(GlogFile):
    """caffe.log in glog's form; lines that the disk refuses are dropped."""

    def _open(self) -> io.TextIOWrapper:
        # Without a buffer, which would keep what was refused and raise again at the exit.
        return io.TextIOWrapper(
            io.FileIO(self.baseFilename, 'a'), encoding='utf-8', write_through=True
        )

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that lines are lost."""
        if not vars(self).setdefault('told', False):
            self.told = True
            print(f'\nWarning: caffe.log: not written: {sys.exc_info()[1]}', file=sys.stderr)


def log_to(folder: Path) -> None:
    """Log to caffe.log in `folder` from now on, in glog's form, and errors to stderr too.

    Rank 0 writes. Raises CaffeError if the file cannot be written.
    """
    LOG.handlers.clear()
    if caffe.solver_rank():
        return
    try:
        LOG.addHandler(RunLog(folder / 'caffe.log'))
    except OSError as error:
        raise CaffeError(f'{folder}: not written to: {error.strerror}') from error
    errors = logging.StreamHandler()
    errors.setLevel(logging.ERROR)
    errors.setFormatter(logging.Formatter('\nError: %(message)s'))
    LOG.addHandler(errors)
    terminal.tell_lost()


def warn(text: str) -> None:
    """Print a warning to stderr and to the log."""
    LOG.warning('%s', text)
    print(f'\nWarning: {text}', file=sys.stderr, flush=True)


class Watch:
    """Watch a solver within a `with` block.

    Shows progress, calls `append` with a line for the log at each display, warns if the loss
    stays at chance, and answers signals: SIGINT and SIGTERM stop after the iteration, with a
    snapshot; SIGHUP writes one. `stops` are the iterations at which the run is scored, the last
    one its end. A snapshot is written before each scoring, which may take long. `prune(solver)`
    is called after each snapshot that was due, written or refused.

    Raises CaffeError, on entering, for a net whose trunk or upsampling is all zero.
    """

    def __init__(
        self,
        solver: caffe.SGDSolver,
        stops: Sequence[int],
        append: Callable[..., None],
        prune: Callable[[caffe.SGDSolver], None] | None = None,
    ):
        self._solver, self._stops, self._append, self._prune = solver, stops, append, prune
        self._action: str | None = None
        self._asked = -math.inf  # when a signal last asked to stop
        self._void = False  # whether a label that is all void was warned of
        self._chance = symptoms.LossAtChance(solver.net)
        self._clock = time.monotonic(), solver.iter

    def __enter__(self) -> Watch:
        solver = self._solver
        surgery.check_filled(solver.net)
        self._bar = show_progress(
            total=self._stops[-1], initial=solver.iter, unit='it', desc='iteration'
        )
        # Caffe's log tools count seconds from this line.
        LOG.info('Solving %s', solver.net.name)
        solver.requested_action = self._take_action
        solver.add_watch(self._begin_iteration, self._end_iteration)
        handlers = {
            signal.SIGINT: self._stop,
            signal.SIGTERM: self._stop,
            signal.SIGHUP: self._ask_for_snapshot,
        }
        self._before = {number: signal.signal(number, act) for number, act in handlers.items()}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._bar.close()

    def _begin_iteration(self) -> None:
        every = self._solver.param.snapshot
        if self._prune and every and self._solver.iter % every == 0:
            self._prune(self._solver)
        if self._solver.iter in self._stops:
            self._clock = time.monotonic(), self._solver.iter  # scoring does not count

    def _end_iteration(self) -> None:
        solver = self._solver
        if caffe.solver_rank():
            return
        self._bar.update(1)
        self._warn_of_void()
        display = solver.param.display
        if display and solver.iter % display == 0:
            loss = solver.smoothed_loss
            then, at = self._clock
            images = (solver.iter + 1 - at) * solver.param.iter_size * caffe.solver_count()
            pace = images / (time.monotonic() - then)
            self._bar.set_postfix_str(f'loss {loss:.5g}, {pace:.3g} images/s')
            self._append(
                solver.iter,
                lr=solver.rate(),
                loss=float(solver.losses[-1]),
                smoothed_loss=loss,
                images_per_second=pace,
                memory_bytes=_measure_peak_memory(),
            )
            self._clock = time.monotonic(), solver.iter + 1
            if warning := self._chance.look(solver.iter):
                warn(warning)

    def _warn_of_void(self) -> None:
        """Warn once of labels that are all void."""
        found = [name for layer in find_data_layers(self._solver.net) for name in layer.all_void]
        if found and not self._void:
            self._void = True
            warn(
                f'image {found[0]}: all its labels are void, so it does not affect training '
                '(reported once)'
            )

    def _take_action(self) -> str | None:
        """Return what a signal asked for, or the snapshot that comes before scoring."""
        action, self._action = self._action, None
        return action or ('snapshot' if self._solver.iter in self._stops else None)

    def _stop(self, *_: object) -> None:
        before, self._asked = self._asked, time.monotonic()
        if self._asked - before < SAME_SIGNAL:
            return
        iteration = self._solver.iter
        if iteration in retention.list_states(Path(self._solver.param.snapshot_prefix)):
            raise KeyboardInterrupt(f'stopped after iteration {iteration}, which is saved')
        if self._action == 'stop':
            raise KeyboardInterrupt('stopped at once')
        self._action = 'stop'
        print(
            '\nStopping after this iteration, with a snapshot; again to stop at once.',
            file=sys.stderr,
        )

    def _ask_for_snapshot(self, *_: object) -> None:
        self._action = self._action or 'snapshot'


def _measure_peak_memory() -> int:
    """Return the most bytes used so far, of the GPU where there is one."""
    if mode.device().type == 'cuda':
        return torch.cuda.max_memory_allocated(mode.device())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
