"""A job: one run of an experiment, from its solver to its pictures."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import caffe_port as caffe
from caffe_port import parallel
from caffe_port.errors import CaffeError, WriteError, make_folder
from caffe_port.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_port.solving import resume
from solve.run import experiments, log, pictures, retention, symptoms, watch, workspace
from solve.run.counting import find_data_layers, find_tasks, predict
from solve.run.events import Events
from solve.run.loading import load_start, read_params
from solve.run.metrics import Scores, format_for_report, format_table
from solve.run.report import Extremes, ScoredPicture, write_report

LOG = logging.getLogger('caffe_port')
# As a file to resume from: the run's own newest whole snapshot.
LATEST = Path('latest')
# Files that a run writes into its folder, beside those that resuming goes on with.
FILES = ('caffe.log', 'curve.png', 'panel.png', 'report.html', 'report_geo.html')
PANEL_ROWS = 5
REPORT_PICTURES = 12


@dataclass
class Job:
    """One run of an experiment: its files, and what differs from the published constants.

    `images` are the ids that the test net's data layer feeds, in its order. Deviates: the
    release reads VOC's from data/segvalid11.txt, which is not the list's name or place,
    and scores NYUDv2 on an undefined `val`.
    """

    name: str
    folder: Path  # where snapshots, logs and pictures go
    weights: list[Path]  # to start from, usually one
    resume: Path | None = None  # a solver state, or LATEST
    net: dict[str, Any] = field(default_factory=dict)  # arguments of fcn()
    constants: dict[str, Any] = field(default_factory=dict)  # solver constants to replace
    iterations: int | None = None  # in all, if not as published
    step: int | None = None  # between scorings, if not as published
    prefix: Path = Path()  # of snapshots, by default snapshot/train in the folder
    keep: int = 0  # snapshots to keep besides the best, 0 for all
    skip_bad_images: bool = False  # train on the next image where one cannot be read
    tensorboard: bool = False  # write event files too
    images: list[str] = field(default_factory=list, init=False)
    _events: Events | None = field(default=None, init=False)
    # The last scores and class names of each task, by file-name suffix.
    _scored: dict[str, tuple[Scores, Sequence[str]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.prefix == Path():
            self.prefix = self.folder / 'snapshot' / 'train'

    def make_part(self, name: str, **changes: Any) -> Job:
        """Return the job of a part of this one, with `changes`, in a folder of its own.

        It goes on from its snapshots if this job resumes, and else it begins.

        Raises CaffeError if this job resumes a given state, which is of one part only.
        """
        if self.resume not in (None, LATEST):
            raise CaffeError(
                f'--resume {self.resume}: a run of several parts resumes `latest` only'
            )
        folder = make_folder(self.folder / name)
        prefix = self.prefix.parent / name / self.prefix.name
        resumes = (self.resume or parallel.is_restarted()) and retention.list_states(prefix)
        resume = LATEST if resumes else None
        part = replace(self, name=name, folder=folder, prefix=prefix, resume=resume)
        return replace(part, **changes)

    def make_solver(
        self, constants: dict[str, Any], fcn: Callable[..., NetParameter], train: str, test: str
    ) -> caffe.SGDSolver:
        """Make the solver, its nets by fcn(split), and log to the run's folder; collective.

        Raises CaffeError if another process works in the folder, or if the folder has another
        run's snapshots and this job does not resume.
        """
        parallel.call_on_first(self._take_folders)
        param = SolverParameter(**{**constants, **self.constants})
        param.ClearField('test_net')
        param.ClearField('train_net')
        param.train_net_param.CopyFrom(fcn(train, **self.net))
        param.test_net_param.add().CopyFrom(fcn(test, **self.net))
        param.snapshot_prefix = str(self.prefix)
        if self.iterations:
            param.max_iter = self.iterations
        solver = caffe.get_solver(param)
        find_data_layers(solver.net)[0].skip_bad = self.skip_bad_images
        self.images = find_data_layers(solver.test_nets[0])[0].ids
        watch.log_to(self.folder)
        return solver

    def _take_folders(self) -> None:
        """Make and lock the folders of the run; delete what a killed run left half-written."""
        if not self.resume and retention.list_states(self.prefix):
            raise CaffeError(
                f'{self.prefix}_iter_*: snapshots of another run; --resume latest '
                'goes on with it, --snapshot-prefix names another place'
            )
        workspace.take(self.folder)
        workspace.make(self.prefix.parent)
        if not workspace.is_held(self.prefix.parent):
            lock = self.prefix.parent / f'.{self.prefix.name}{workspace.LOCK}'
            workspace.hold(lock, 'place with --snapshot-prefix')
        retention.sweep(self.prefix)

    def restore(self, solver: caffe.SGDSolver) -> bool:
        """Restore the snapshot to resume and return True; return False if the job has none."""
        if not self.resume:
            return False
        state = self.resume
        if state == LATEST:
            state = parallel.call_on_first(lambda: retention.find_latest(self.prefix))
        print(f'Resuming from {state}', flush=True)
        solver.check_notes = _check_notes
        solver.restore(state)
        if not resume.name_resume_file(state).exists():
            watch.warn(
                f'{resume.name_resume_file(state).name} is missing: data order and random '
                'streams start anew, as in Caffe'
            )
        for path in parallel.call_on_first(lambda: retention.set_aside(self.prefix, solver.iter)):
            watch.warn(f'a snapshot beyond iteration {solver.iter} is now {path}')
        return True

    def load_weights(self, net: caffe.Net, *suffixes: str) -> None:
        """Load the weights to start from, or transplant them where shapes differ.

        With suffixes, the layers of each file go to the layers with its suffix behind their names.
        """
        for path, suffix in zip(self.weights, suffixes or ['']):
            load_start(net, path, suffix)

    def read_weights(self) -> SimpleNamespace:
        """Read the weights to start from as surgery sees a net: `params`, blobs by layer."""
        return read_params(self.weights[0])

    @contextmanager
    def watch(
        self,
        solver: caffe.SGDSolver,
        rounds: int,
        step: int,
        prune: Callable[[caffe.SGDSolver], None] | None = None,
    ) -> Iterator[list[int]]:
        """Watch the run (see Watch); yield how many iterations come before each scoring.

        The published run is `rounds` scorings, each after `step` iterations, whatever max_iter
        is. A sample ends at its own max_iter, and --iterations ends any run. A resumed run has
        the rounds that are left. Its first has 0 iterations if the run was stopped between a
        snapshot and the scoring of the same iteration.

        `prune(solver)` is called after each snapshot that is due between scorings.
        """
        end = self.iterations or self.constants.get('max_iter') or rounds * step
        step, start = self.step or step, solver.iter
        stops = [*range((start // step + 1) * step, end, step), end]
        left = [b - a for a, b in zip([start, *stops], stops) if b > a]
        unscored = start in (end, *range(step, end, step)) and solver.notes.get('scored') != start
        if self.tensorboard and not caffe.solver_rank():
            self._events = Events(self.folder, start)
        try:
            with watch.Watch(solver, stops, self._log, prune):
                yield [0] * unscored + left
        finally:
            if self._events:
                self._events.close()

    def _log(self, iteration: int, **values: float) -> None:
        """Add a line to the run's log, and to its event files."""
        log.append(self.folder, iteration, **values)
        if self._events:
            try:
                self._events.add(iteration, values)
            except OSError as error:
                LOG.error('event files: not written: %s', error.strerror)

    def record(
        self,
        solver: caffe.SGDSolver,
        scores: Scores,
        classes: Sequence[str],
        **others: tuple[Scores, Sequence[str]],
    ) -> None:
        """Print the scores per class, warn if they are at chance, and log them; collective.

        `others` are the scores and classes of a net's further tasks, by name. The first
        task's mean IU decides which iteration is the best. The snapshot of this iteration
        remembers that, and that it is scored.
        """
        print(format_table(scores, classes), flush=True)
        best = solver.notes.get('best')
        if best is None or scores.mean_iu > best['mean_iu']:
            solver.notes['best'] = {'iteration': solver.iter, 'mean_iu': scores.mean_iu}
        solver.notes['scored'] = solver.iter
        remembered = resume.collect(solver)
        if caffe.solver_rank():
            return
        if warning := symptoms.warn_accuracy_at_chance(scores):
            watch.warn(warning)
        line = _name_for_log(scores)
        for name, (other, names) in others.items():
            print(format_table(other, names), flush=True)
            line |= {f'{name}_{key}': value for key, value in _name_for_log(other).items()}
        self._log(solver.iter, **line)
        self._scored = {'': (scores, classes)}
        self._scored |= {f'_{name}': scored for name, scored in others.items()}
        state = retention.list_states(self.prefix).get(solver.iter)
        try:
            if state:  # there is none where the disk was full
                resume.write(resume.name_resume_file(state), remembered)
        except WriteError as error:
            LOG.error('scores of iteration %d are not in its snapshot: %s', solver.iter, error)

    def prune(self, solver: caffe.SGDSolver) -> None:
        """Delete all snapshots but the newest and the best one, if --keep says how many."""
        if self.keep and not caffe.solver_rank():
            best = solver.notes.get('best') or {}
            retention.prune(self.prefix, self.keep, best.get('iteration'))

    def save_and_report(self, solver: caffe.SGDSolver, **means: Sequence[float]) -> None:
        """Make sure that the end is saved, then draw and print the results; collective.

        If the disk has refused the last snapshot, this prunes and writes it once more. Drawn
        are the learning curve, a panel of predictions and report.html; images that were
        skipped are listed. `means` are the blobs with the pictures, by name, and what was
        subtracted from them.

        Raises WriteError if the disk refuses the snapshot again.
        """
        if parallel.call_on_first(lambda: solver.iter not in retention.list_states(self.prefix)):
            self.prune(solver)
            solver.snapshot()
        skipped: dict[str, str] = {}
        for of_rank in parallel.gather(find_data_layers(solver.net)[0].skipped):
            skipped.update(of_rank)
        if skipped:
            print(f'{len(skipped)} images were skipped:', *skipped.values(), sep='\n  ')
        parallel.call_on_first(lambda: self._draw(solver, means))

    def _draw(self, solver: caffe.SGDSolver, means: Mapping[str, Sequence[float]]) -> None:
        # Half a second that a start need not take.
        from solve.run.figures import draw_curve, draw_panel

        net = solver.test_nets[0]
        net.share_with(solver.net)  # as nothing may have been scored
        names = ['curve.png', 'panel.png']
        try:
            draw_curve([self.folder], self.folder / 'curve.png')
            titles, rows, scored = show_images(net, means, self.prefix)
            draw_panel(titles, rows, self.folder / 'panel.png')
            for (suffix, (scores, classes)), extremes in zip(self._scored.items(), scored):
                names.append(f'report{suffix}.html')
                write_report(
                    self.folder / names[-1],
                    f'{self.name}{suffix.replace("_", ", ")}',
                    {'iteration': str(solver.iter), **format_for_report(scores)},
                    classes,
                    scores.hist,
                    extremes.pictures,
                    log.read(self.folder),
                )
        except CaffeError as error:  # the run is done, and saved
            watch.warn(str(error))
        print(f'Snapshots: {self.prefix}_iter_*; pictures: {self.folder}/{", ".join(names)}')


def _name_for_log(scores: Scores) -> dict[str, float]:
    """Return the numbers that are printed; the loss is `test_loss` beside the training's."""
    line = scores.printed()
    return {'test_loss': line.pop('loss'), **line}


def show_images(
    net: caffe.Net, means: Mapping[str, Sequence[float]], weights: Path
) -> tuple[list[str], list[list[np.ndarray | pictures.Labelled]], list[Extremes]]:
    """Run a test net on its next images; return titles, a row of pictures for each, and scores.

    A row has what is in the blobs of `means`, the mean added, then the labels and
    predictions that each loss of the net compares; the first PANEL_ROWS images have one. A
    classes.txt beside `weights` names the classes. The
    scores are the best and worst of REPORT_PICTURES images, or of all if there are fewer, by task.
    """
    tasks, layer = find_tasks(net), find_data_layers(net)[0]
    data = sys.modules[type(layer).__module__]
    titles = ['image' if name == 'data' else name for name in means]
    for task in tasks:
        titles += [task.gt, 'prediction' if len(tasks) == 1 else f'{task.gt}, prediction']
    rows: list[list[np.ndarray | pictures.Labelled]] = []
    extremes = [Extremes() for _ in tasks]
    few = min(REPORT_PICTURES, len(layer.ids))
    panel_rows = min(PANEL_ROWS, len(layer.ids))
    for number in range(max(panel_rows, few)):
        with torch.no_grad():
            net.forward()
        images = [
            pictures.to_picture(net.blobs[name].data[0], mean) for name, mean in means.items()
        ]
        row: list[np.ndarray | pictures.Labelled] = [*images]
        for task, kept in zip(tasks, extremes):
            names = experiments.name_classes(data, net.blobs[task.layer].channels, weights)
            label, best = net.blobs[task.gt].data[0, 0].copy(), predict(net, task.layer)
            row.append(pictures.Labelled(label, names))
            row.append(pictures.Labelled(best, names, label))
            if number < few:
                kept.add(ScoredPicture.of(str(layer.current), images[0], label, best))
        if number < panel_rows:
            rows.append(row)
    return titles, rows, extremes


def _check_notes(notes: dict) -> None:
    """Raise CaffeError unless `scored` and `best`, if present, are as `record` writes them."""
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
