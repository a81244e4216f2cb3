"""What a run of an experiment needs besides net and solver: places, rounds, keeping watch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import caffe_port as caffe
import surgery
from caffe_port import parallel
from caffe_port.errors import CaffeError, WriteError, make_folder
from caffe_port.files import caffemodel
from caffe_port.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_port.solving import resume
from solve.datasets.layer import SegDataLayer
from solve.run import counting, pictures, snapshots, symptoms
from solve.run.watch import Watch

LOG = logging.getLogger('caffe_port')
# As a file to resume from: the newest whole snapshot of the run's own.
LATEST = Path('latest')


@dataclass
class Job:
    """One run of an experiment: where things lie and what the sample changes."""

    name: str
    folder: Path  # where snapshots, logs and pictures go
    weights: list[Path]  # to start from, usually one
    resume: Path | None = None
    net: dict[str, Any] = field(default_factory=dict)  # arguments of fcn()
    constants: dict[str, Any] = field(default_factory=dict)  # solver constants to replace
    iterations: int | None = None  # in all, if not as published
    step: int | None = None  # between scorings, if not as published
    prefix: Path = Path()  # of snapshots; in the folder unless told otherwise
    keep: int = 0  # snapshots to keep besides the best, 0 for all
    skip_bad_images: bool = False  # in training go on with the next image

    def __post_init__(self) -> None:
        if self.prefix == Path():
            self.prefix = self.folder / 'snapshot' / 'train'

    def solver(
        self, constants: dict[str, Any], train: NetParameter, test: NetParameter
    ) -> caffe.SGDSolver:
        """A solver with the published constants, watched and able to stop cleanly."""
        param = solver_param({**constants, **self.constants})
        param.ClearField('test_net')
        param.ClearField('train_net')
        param.train_net_param.CopyFrom(train)
        param.test_net_param.add().CopyFrom(test)
        param.snapshot_prefix = str(self.prefix)
        if self.iterations:
            param.max_iter = self.iterations
        make_folder(self.prefix.parent)
        snapshots.sweep(self.prefix)
        solver = caffe.SGDSolver(param)
        _data_layer(solver.net).skip_bad = self.skip_bad_images
        self._watch = Watch(solver, self.folder)
        return solver

    def resumed(self, solver: caffe.SGDSolver) -> bool:
        """Restore the snapshot that --resume names; False where there is none to restore."""
        if self.resume is None or parallel.restarted() and not snapshots.states(self.prefix):
            if any(parallel.gather(bool(snapshots.states(self.prefix)))):
                raise CaffeError(
                    f'{self.prefix}_iter_*: snapshots of another run; --resume latest '
                    'goes on with it, --snapshot-prefix names another place'
                )
            return False
        state = self.resume
        if state == LATEST:
            state = parallel.first(lambda: snapshots.latest(self.prefix))
        print(f'Going on from {state}', flush=True)
        solver.check_notes = _check_notes
        solver.restore(state)
        if not resume.beside(state).exists():
            self._watch.warn(
                f'{resume.beside(state).name} is missing: data order and random '
                'streams start anew, as in Caffe'
            )
        for path in parallel.first(lambda: snapshots.set_aside(self.prefix, solver.iter)):
            self._watch.warn(f'a snapshot beyond iteration {solver.iter} is now {path}')
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
                solver.notes.get('scored') != solver.iter
            ):
                yield 0  # stopped after the snapshot, before or while scoring
            yield from (b - a for a, b in zip([solver.iter, *stops], stops) if b > a)

    def scored(
        self,
        solver: caffe.SGDSolver,
        scores: counting.Scores,
        classes: Sequence[str],
        **others: tuple[counting.Scores, Sequence[str]],
    ) -> None:
        """Print the tables per class and keep the scores for the learning curve.

        `others` are the scores and classes of a net's further tasks, by name; the first
        task's say which iteration is the best.
        """
        print(counting.table(scores, classes), flush=True)
        if (warning := symptoms.accuracy_at_chance(scores)) and not caffe.solver_rank():
            self._watch.warn(warning)
        best = solver.notes.get('best')
        if best is None or scores.mean_iu > best['mean_iu']:
            solver.notes['best'] = {'iteration': solver.iter, 'mean_iu': scores.mean_iu}
        solver.notes['scored'] = solver.iter
        remembered = resume.collect(solver)
        if caffe.solver_rank():
            return
        try:
            if solver.iter in snapshots.states(self.prefix):  # else the disk was full for it
                resume.save(resume.beside(snapshots.states(self.prefix)[solver.iter]), remembered)
        except WriteError as error:
            LOG.error('scores of iteration %d are not in its snapshot: %s', solver.iter, error)
        if self.keep:
            snapshots.prune(self.prefix, self.keep, solver.notes['best']['iteration'])
        lines = _measured(scores)
        for name, (other, names) in others.items():
            print(counting.table(other, names), flush=True)
            lines.update({f'{name}_{key}': value for key, value in _measured(other).items()})
        self._watch.note(**lines)

    def finish(self, solver: caffe.SGDSolver, **means: Sequence[float]) -> None:
        """Draw the learning curve and a panel of predictions, and say where all is.

        `means` are the blobs with the pictures, by name, and what was subtracted from them.

        Raises WriteError where the last snapshot, missing so far, is refused once more.
        """
        if parallel.first(lambda: solver.iter not in snapshots.states(self.prefix)):
            solver.snapshot()
        skipped: dict[str, str] = {}
        for of_rank in parallel.gather(_data_layer(solver.net).skipped):
            skipped.update(of_rank)
        if skipped:
            print(f'{len(skipped)} images were skipped:', *skipped.values(), sep='\n  ')
        parallel.first(lambda: self._draw(solver, means))

    def _draw(self, solver: caffe.SGDSolver, means: dict[str, Sequence[float]]) -> None:
        solver.test_nets[0].share_with(solver.net)  # as nothing may have been scored
        try:
            pictures.curve([self.folder], self.folder / 'curve.png')
            pictures.panel(solver.test_nets[0], means, self.folder / 'panel.png')
        except CaffeError as error:  # the run is done, and saved
            self._watch.warn(str(error))
        print(
            f'Snapshots: {solver.param.snapshot_prefix}_iter_*; '
            f'learning curve and panel: {self.folder}/curve.png, panel.png'
        )


def _measured(scores: counting.Scores) -> dict[str, float]:
    return dict(
        overall_accuracy=scores.overall_accuracy,
        test_loss=scores.loss,
        mean_accuracy=scores.mean_accuracy,
        mean_iu=scores.mean_iu,
        fwavacc=scores.fwavacc,
    )


def _check_notes(notes: dict) -> None:
    """Raise CaffeError unless `scored` and `best`, if there, are as `scored` leaves them."""
    best = notes.get('best', {'iteration': 0, 'mean_iu': 0.0})
    if type(notes.get('scored', 0)) is not int:
        raise CaffeError(f'notes of the snapshot: scored is {notes["scored"]!r:.40}, no iteration')
    if not (
        isinstance(best, dict)
        and type(best.get('iteration')) is int
        and type(best.get('mean_iu')) in (int, float)
    ):
        raise CaffeError(
            f'notes of the snapshot: best is {best!r:.80}, expected iteration and mean_iu'
        )


def ids(net: caffe.Net) -> list[str]:
    """The images that the net's data layer goes through, in its order."""
    return _data_layer(net).ids


def _data_layer(net: caffe.Net) -> SegDataLayer:
    """The layer that feeds an experiment's net: it is the first."""
    return net.module.nodes[0].op.layer


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
        raise CaffeError(
            f'{path}: no layer of this net in it; it has '
            + (', '.join(source.params) or 'no weights at all')
        )
    fits = not suffix and all(
        tuple(stored.shape) == blob.shape
        for name in known
        for stored, blob in zip(source.params[name], net.params[name])
    )
    if fits:
        net.copy_from(path)
        return
    try:
        surgery.transplant(net, source, suffix)
    except CaffeError as error:
        raise CaffeError(f'{path}: {error}') from error


def stored_net(path: Path) -> SimpleNamespace:
    """A weight file as surgery sees a net: `params`, blobs by layer."""
    return SimpleNamespace(
        params={layer.name: layer.blobs for layer in caffemodel.read(path) if layer.blobs}
    )
