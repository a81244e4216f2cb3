"""What the experiments' scripts share: options, the sample, starting weights, keeping watch."""

from __future__ import annotations

import argparse
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
from typing import Any, Callable, Iterator, Sequence

import torch

import caffe_port as caffe
import surgery
from caffe_port import caffemodel, memory
from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import NetParameter, SolverParameter
from solve import plot, sample, score, snapshots
from solve.progress import progress

ROOT = Path(__file__).resolve().parent.parent
# Where data and weights lie in the project, unless options say otherwise.
PLACES = {'sbdd_dir': 'data/sbdd/dataset', 'voc_dir': 'data/pascal/VOC2011'}
WEIGHTS = 'data/ilsvrc-nets/vgg16-fcn.caffemodel'
LOG = logging.getLogger('caffe_port')


@dataclass
class Job:
    """One run of an experiment: where things lie and what the sample changes."""

    name: str
    folder: Path                     # where snapshots, logs and pictures go
    weights: Path | None
    resume: Path | None = None
    net: dict[str, Any] = field(default_factory=dict)        # arguments of fcn()
    constants: dict[str, Any] = field(default_factory=dict)  # solver constants to replace
    iterations: int | None = None    # in all, if not as published
    step: int | None = None          # between scorings, if not as published
    prefix: Path = Path()            # of snapshots; in the folder unless told otherwise
    keep: int = 0                    # snapshots to keep besides the best, 0 for all
    sample: bool = False

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
        snapshots.sweep(self.prefix)
        solver = caffe.SGDSolver(param)
        self._watch = _Watch(solver, self.folder)
        return solver

    def resumed(self, solver: caffe.SGDSolver) -> bool:
        """Restore the snapshot that --resume names; False where there is none to restore."""
        if self.resume is None:
            return False
        state = snapshots.latest(self.prefix) if self.resume == Path('latest') else self.resume
        solver.restore(state)
        return True

    def rounds(self, solver: caffe.SGDSolver, count: int, step: int) -> Iterator[int]:
        """How many iterations lie before each scoring that is still to come.

        As published they are `count` times `step`. Between the first and the last of
        them the run is watched.
        """
        end, step = self.iterations or count * step, self.step or step
        stops = [*range((solver.iter // step + 1) * step, end, step), end]
        with self._watch.over(end):
            if solver.iter in (end, *range(step, end, step)) and (
                    solver.notes.get('scored') != solver.iter):
                yield 0  # stopped after the snapshot, before or while scoring
            yield from (b - a for a, b in zip([solver.iter, *stops], stops) if b > a)

    def scored(self, solver: caffe.SGDSolver, scores: score.Scores,
               classes: Sequence[str]) -> None:
        """Print the table per class and keep the scores for the learning curve."""
        print(score.table(scores, classes), flush=True)
        best = solver.notes.get('best')
        if best is None or scores.mean_iu > best['mean_iu']:
            solver.notes['best'] = {'iteration': solver.iter, 'mean_iu': scores.mean_iu}
        solver.notes['scored'] = solver.iter
        if solver.iter in (states := snapshots.states(self.prefix)):
            memory.save(memory.beside(states[solver.iter]), solver)
        if self.keep:
            snapshots.prune(self.prefix, self.keep, solver.notes['best']['iteration'])
        self._watch.note(overall_accuracy=scores.overall_accuracy, test_loss=scores.loss,
                         mean_accuracy=scores.mean_accuracy, mean_iu=scores.mean_iu,
                         fwavacc=scores.fwavacc)

    def finish(self, solver: caffe.SGDSolver, mean_bgr: Sequence[float]) -> None:
        """Draw the learning curve and a panel of predictions, and say where all is."""
        plot.curve([self.folder], self.folder / 'curve.png')
        plot.panel(solver.test_nets[0], mean_bgr, self.folder / 'panel.png')
        print(f'Snapshots: {solver.param.snapshot_prefix}_iter_*; '
              f'learning curve and panel: {self.folder}/curve.png, panel.png')


def _peak_memory() -> int:
    """The most memory used so far, of the GPU where there is one, in bytes."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ids(net: caffe.Net) -> list[str]:
    """The images that the net's data layer goes through, in its order."""
    return net.module.nodes[0].op.layer.ids


def solver_param(constants: dict[str, Any]) -> SolverParameter:
    """Solver constants as the message that a solver.prototxt holds."""
    return SolverParameter(**constants)


def load_weights(net: caffe.Net, path: Path) -> None:
    """Copy weights from a file that fits, or transplant them from a classifier's.

    Fully connected layers of the classifier become convolutions (fc6 4096 x 25088
    to 4096 x 512 x 7 x 7); layers that the net does not have are dropped.
    """
    layers = [layer for layer in caffemodel.read(path) if layer.blobs]
    known = [layer for layer in layers if layer.name in net.params]
    if not known:
        raise CaffeError(f'{path}: no layer of this net in it; it has '
                         + (', '.join(layer.name for layer in layers) or 'no weights at all'))
    fits = all(tuple(stored.shape) == blob.shape for layer in known
               for stored, blob in zip(layer.blobs, net.params[layer.name]))
    if fits:
        net.copy_from(path)
    else:
        try:
            surgery.transplant(net, SimpleNamespace(params={l.name: l.blobs for l in layers}))
        except CaffeError as error:
            raise CaffeError(f'{path}: {error}') from error


class _Watch:
    """The progress line, the log in the run's folder, and the answer to signals."""

    def __init__(self, solver: caffe.SGDSolver, folder: Path):
        self.solver, self.folder = solver, folder
        self.bar = None
        self._action: str | None = None
        solver.requested_action = self._take_action
        solver.add_callback(lambda: None, self._iteration)
        for handler in list(LOG.handlers):
            LOG.removeHandler(handler)
        handler = logging.FileHandler(folder / 'caffe.log')
        handler.setFormatter(logging.Formatter('%(asctime)s %(message)s'))
        LOG.addHandler(handler)

    @contextmanager
    def over(self, end: int) -> Iterator[None]:
        """Watch the run until iteration `end`."""
        self.bar = progress(total=end, initial=self.solver.iter, unit='it', desc='iteration')
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
        """Add a line to log.jsonl."""
        line = {'iteration': self.solver.iter, 'time': time.time(), **values}
        with open(self.folder / 'log.jsonl', 'a') as log:
            log.write(json.dumps(line) + '\n')

    def _iteration(self) -> None:
        solver = self.solver
        self.bar.update(1)
        display = solver.param.display
        if display and solver.iter % display == 0:
            loss = solver.smoothed_loss
            then, at = self._clock
            pace = (solver.iter - at) * solver.param.iter_size / (time.monotonic() - then)
            self._clock = time.monotonic(), solver.iter
            self.bar.set_postfix_str(f'loss {loss:.5g}, {pace:.3g} images/s')
            self.note(lr=solver.rate(), loss=float(solver.net.loss()), smoothed_loss=loss,
                      images_per_second=pace, memory_bytes=_peak_memory())

    def _take_action(self) -> str | None:
        action, self._action = self._action, None
        return action

    def _stop(self, *_) -> None:
        if self._action == 'stop':
            raise KeyboardInterrupt('stopped at once')
        self._action = 'stop'
        print('\nStopping after this iteration, with a snapshot; again to stop at once.',
              file=sys.stderr)

    def _snapshot(self, *_) -> None:
        self._action = self._action or 'snapshot'


# From the command line to a Job.

def main(solve: Callable[[Job], None], doc: str, name: str) -> None:
    """Run an experiment's script: options, then `solve`; errors in one line, exit status 2."""
    args = _parser(doc, name).parse_args()
    try:
        _choose_device(args.gpu)
        solve(_job(args, name))
    except CaffeError as error:
        sys.exit(_tell(error))
    except KeyboardInterrupt as stop:
        print(stop or 'stopped', file=sys.stderr)
        sys.exit(130)


def _tell(error: CaffeError) -> int:
    print(f'error: {error}', file=sys.stderr)
    return 2


def _parser(doc: str, name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('gpu', nargs='?', type=int, metavar='GPU',
        help='number of the GPU (default: 0 if there is one, else the CPU)')
    for option, folder in PLACES.items():
        add('--' + option.replace('_', '-'), type=Path, metavar='DIR',
            help=f'default: {folder} in the project')
    add('--weights', type=Path, metavar='FILE',
        help=f'.caffemodel to start from (default: {WEIGHTS} in the project)')
    add('--iterations', type=int, metavar='N', help='stop after N (default: as published)')
    add('--resume', type=Path, metavar='FILE',
        help='.solverstate to go on from, or `latest` for the newest whole one of --output')
    add('--keep', type=int, default=0, metavar='N',
        help='keep the newest N snapshots and the best one (default: all)')
    add('--output', type=Path, metavar='DIR',
        help=f'where logs and pictures go (default: output/{name})')
    add('--snapshot-prefix', type=Path, metavar='PREFIX',
        help='default: snapshot/train in the output folder')
    return parser


def _choose_device(gpu: int | None) -> None:
    if gpu is None and not torch.cuda.is_available():
        print('No GPU found: computing on the CPU.', file=sys.stderr)
        return
    caffe.set_device(gpu or 0)
    caffe.set_mode_gpu()


def _job(args: argparse.Namespace, name: str) -> Job:
    if args.iterations is not None and args.iterations < 1:
        raise CaffeError(f'--iterations {args.iterations}: must be positive')
    given = [getattr(args, option) for option in (*PLACES, 'weights', 'resume')]
    defaults = [ROOT / folder for folder in (*PLACES.values(), WEIGHTS)]
    if not any(given) and not any(path.exists() for path in defaults):
        job = _sample_job(args, name)
    else:
        job = _real_job(args, name)
    job.prefix, job.keep = args.snapshot_prefix or job.prefix, args.keep
    job.iterations = args.iterations or job.iterations
    return job


def _real_job(args: argparse.Namespace, name: str) -> Job:
    places = {option: getattr(args, option) or ROOT / folder
              for option, folder in PLACES.items()}
    for option, folder in places.items():
        if not folder.is_dir():
            raise CaffeError(f'{folder}: no such folder; --{option.replace("_", "-")} says '
                             'where it is')
    weights = args.weights or ROOT / WEIGHTS
    if args.resume and args.resume != Path('latest') and not args.resume.is_file():
        raise CaffeError(f'{args.resume}: no such file; --resume takes a .solverstate')
    if not args.resume and not weights.is_file():
        raise CaffeError(f'{weights}: no such file; --weights takes vgg16-fcn.caffemodel or the '
                         'VGG16 classifier\'s')
    net = {option: str(folder) for option, folder in places.items()}
    return Job(name, _fresh_folder(args.output or Path('output') / name, args.resume), weights,
               args.resume, {**net, 'seg11valid_from': net['sbdd_dir']})


def _sample_job(args: argparse.Namespace, name: str) -> Job:
    print(f'No data and no weights found, so this runs a small sample of {name}, drawn on the '
          'spot.\nThe real experiment needs '
          + ', '.join(f'--{option.replace("_", "-")}' for option in PLACES)
          + ' and --weights (vgg16-fcn.caffemodel or VGG16\'s); see --help.')
    folder = _fresh_folder(args.output or Path('output') / f'{name}-sample', None)
    print(f'Output folder: {folder}', flush=True)
    return Job(name, folder, sample=True, **sample.prepare(folder))


def _fresh_folder(folder: Path, resume: Path | None) -> Path:
    """Make the output folder; another number where a run has left its log already."""
    chosen, number = folder, 2
    while resume is None and (chosen / 'log.jsonl').exists():
        chosen, number = folder.with_name(f'{folder.name}-{number}'), number + 1
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaffeError(f'{chosen}: cannot be made: {error.strerror}') from error
    return chosen
