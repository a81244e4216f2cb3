"""Make the job of an experiment from its script's command line."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from caffe_port import parallel
from caffe_port.errors import CaffeError
from solve.run import command_names, events, log, retention, workspace
from solve.run.job import FILES, LATEST, Job
from solve.run.options import (
    ROOT,
    ROOT_NAME,
    STATUS,
    add_computing,
    add_gpu,
    add_recompute,
    make_parser,
    name_option,
    session,
    start_training,
)
from solve.run.precision import FOR_TRAINING
from solve.samples import recipes


def run(
    solve: Callable[[Job], None],
    doc: str | None,
    data: ModuleType,
    *weights: str,
    after: Sequence[ModuleType] = (),
    files: Sequence[str] = FILES,
) -> None:
    """Run an experiment's script: parse its options, make the job and `solve` it.

    `data` is the module of its data set; its PLACES are the default folders, by the
    names that nets know them by. `weights` are the files to start from by default. Both
    are relative to the project. `after` are the scripts whose nets it starts from, in
    order: its sample trains theirs first. `files` are those it writes into its folder.
    """
    name = Path(sys.argv[0]).stem
    args = _make_parser(doc or '', name, data, weights).parse_intermixed_args()
    # The progress line takes the place of Caffe's log lines, which go to a file.
    logging.getLogger('caffe_port').handlers.clear()
    with session(lasting=True), resumable(args):
        start_training(args)
        solve(parallel.call_on_first(lambda: _make_job(args, name, data, weights, after, files)))


@contextmanager
def resumable(args: argparse.Namespace) -> Iterator[None]:
    """Add to the message of a stop the command that resumes the run."""
    try:
        yield
    except KeyboardInterrupt as stop:
        words, folder = str(stop) or 'stopped', args.output
        if folder and not parallel.solver_rank():
            prefix = getattr(args, 'snapshot_prefix', None) or folder / 'snapshot/train'
            saved = recipes.is_in(folder) or has_snapshots(prefix)
            words += '; to go on: ' if saved else '; nothing is saved; to begin again: '
            words += _name_command(folder, saved)
        raise KeyboardInterrupt(words) from None


def _name_command(folder: Path, resume: bool) -> str:
    """Return this command line, changed to begin or to `resume` the run in `folder`."""
    left, given = [], iter(sys.argv[1:])
    for argument in given:
        if argument in ('--resume', '--output'):
            next(given, None)
        elif not argument.startswith(('--resume=', '--output=')):
            left.append(argument)
    start = command_names.list_start()
    if parallel.run_id():
        start[:1] = ['torchrun', '...'] + ['--no-python', *start[:1]] * command_names.is_installed()
    resumed = ['--resume', str(LATEST)] if resume else []
    return shlex.join([*start, *left, *resumed, '--output', str(folder)])


def _make_parser(
    doc: str, name: str, data: ModuleType, weights: Sequence[str]
) -> argparse.ArgumentParser:
    script = f'python solve/{name}.py'
    example = f"""examples:
  {script}                     a small sample, without data and weights
  {script} 0 --keep 3          on GPU 0, from the default folders
  {script} --resume latest     resume the last run"""
    parser = make_parser(
        f'{name}.py',
        f'{example}\n\n{doc.strip()}',
        f'{STATUS}\nOn SIGHUP (a closed terminal) the run writes a snapshot and goes on.',
        usage='%(prog)s [GPU] [options]',
    )
    add = parser.add_argument
    add_gpu(parser, positional=True)
    add_computing(parser, FOR_TRAINING)
    add_recompute(parser)
    for place, folder in data.PLACES.items():
        add(name_option(place), type=Path, metavar='DIR', help=f'default: {folder} in {ROOT_NAME}')
    add(
        '--weights',
        type=Path,
        metavar='FILE',
        nargs=len(weights),
        help=f'weights to start from (default: {", ".join(weights)})',
    )
    add('--iterations', type=int, metavar='N', help='stop after N (default: as published)')
    add(
        '--resume',
        type=Path,
        metavar='FILE',
        help='a .solverstate, or `latest` for the newest snapshot',
    )
    add(
        '--keep',
        type=int,
        default=0,
        metavar='N',
        help='keep the newest N snapshots and the best one (default: all)',
    )
    add(
        '--skip-bad-images',
        action='store_true',
        help='skip unreadable images, list them at the end',
    )
    add('--tensorboard', action='store_true', help="write TensorBoard's event files too")
    add(
        '--output', type=Path, metavar='DIR', help=f'for logs and pictures (default: output/{name})'
    )
    add(
        '--snapshot-prefix',
        type=Path,
        metavar='PREFIX',
        help='prefix of snapshots (default: snapshot/train in the output folder)',
    )
    return parser


def _make_job(
    args: argparse.Namespace,
    name: str,
    data: ModuleType,
    weights: Sequence[str],
    after: Sequence[ModuleType],
    files: Sequence[str],
) -> Job:
    if args.iterations is not None and args.iterations < 1:
        raise CaffeError(f'--iterations {args.iterations}: must be positive')
    if args.resume not in (None, LATEST) and not args.resume.is_file():
        raise CaffeError(f'{args.resume}: no such file; --resume takes a .solverstate or `latest`')
    if args.keep < 0:
        raise CaffeError(f'--keep {args.keep}: must not be negative')
    if args.tensorboard:
        events.require()
    named = any(getattr(args, each) for each in (*data.PLACES, 'weights'))
    if args.resume:
        defaults = [Path('output') / name] + ([] if named else [recipes.folder_of(name)])
        args.output = find_run(args.resume, args.output, defaults)
    if _wants_sample(args, name, data, weights, named):
        job = _make_sample_job(args, name, data, after, files)
    else:
        job = _make_real_job(args, name, data, weights, files)
    job.prefix, job.keep = args.snapshot_prefix or job.prefix, args.keep
    job.iterations = args.iterations or job.iterations
    job.skip_bad_images, job.tensorboard = args.skip_bad_images, args.tensorboard
    if parallel.is_restarted() and retention.list_states(job.prefix):
        job.resume = LATEST
    return job


def _wants_sample(
    args: argparse.Namespace, name: str, data: ModuleType, weights: Sequence[str], named: bool
) -> bool:
    """Say whether the sample is to run: no data, no weights, no other run to resume."""
    found = any((ROOT / path).exists() for path in (*data.PLACES.values(), *weights))
    of_sample = recipes.is_in(args.output or recipes.folder_of(name))
    return not named and not found and (not args.resume or of_sample)


def _make_real_job(
    args: argparse.Namespace,
    name: str,
    data: ModuleType,
    weights: Sequence[str],
    files: Sequence[str],
) -> Job:
    places = {place: getattr(args, place) or ROOT / folder for place, folder in data.PLACES.items()}
    for place, folder in places.items():
        if not folder.is_dir():
            raise CaffeError(f'{folder}: no such folder; {name_option(place)} says where it is')
    start = args.weights or [ROOT / path for path in weights]
    for path in start:
        if not args.resume and not path.is_file():
            raise CaffeError(
                f'{path}: no such file; --weights takes what this experiment starts '
                'from, see --help'
            )
    folder = args.output = make_run_folder(args.output or Path('output') / name, args.resume, files)
    net = {place: str(path) for place, path in places.items()}
    if 'sbdd_dir' in net:  # VOC's own folder has no list of seg11valid: it follows from SBD's
        net['seg11valid_from'] = net['sbdd_dir']
    for remark in getattr(data, 'remarks', lambda **_: ())(**places):
        print(f'Note: {remark}', file=sys.stderr)
    return Job(name, folder, start, args.resume, net)


def _make_sample_job(
    args: argparse.Namespace,
    name: str,
    data: ModuleType,
    after: Sequence[ModuleType],
    files: Sequence[str],
) -> Job:
    print(
        f'No data and no weights found, so this runs a small sample of {name}, drawn on the '
        'spot.\nThe real experiment needs '
        f'{", ".join(map(name_option, data.PLACES))} and --weights; see --help.'
    )
    folder = args.output = make_run_folder(
        args.output or recipes.folder_of(name), args.resume, files
    )
    print(f'Output folder: {folder}', flush=True)
    resume = args.resume
    if resume == LATEST and not has_snapshots(args.snapshot_prefix or folder / 'snapshot/train'):
        print('Nothing is saved there yet: the sample starts again.', flush=True)
        resume = None
    sample = recipes.prepare_sample(name, folder, after, start=not resume)
    return Job(name, folder, resume=resume, **sample)


def has_snapshots(prefix: Path) -> bool:
    """Return whether a run, or a stage of a chain, has left snapshots under a prefix."""
    stages = (path / prefix.name for path in prefix.parent.glob('*/'))
    return any(retention.list_states(each) for each in (prefix, *stages))


def find_run(resume: Path, output: Path | None, defaults: Sequence[Path]) -> Path:
    """Return the folder of the run to resume: `output`, the state's own, or the last one used."""
    if output:
        if resume == LATEST and not output.is_dir():
            raise CaffeError(f'{output}: no such folder, so there is nothing to resume')
        return output
    if resume != LATEST:
        folder = resume.parent.parent
        if not (folder / log.NAME).is_file():
            raise CaffeError(
                f'{resume}: not in the folder of a run; --output names the folder to go on in'
            )
        return folder
    found = [
        folder
        for default in defaults
        for folder in [default, *default.parent.glob(f'{default.name}-[0-9]*')]
    ]
    used = {path.stat().st_mtime: folder for folder in found for path in log.find(folder)}
    # A sample that was stopped before its first iteration has no log.
    used = used or {folder.stat().st_mtime: folder for folder in found if recipes.is_in(folder)}
    if not used:
        raise CaffeError(
            f'{" and ".join(map(str, defaults))}: no run there to resume; --output '
            'names another folder'
        )
    return used[max(used)]


def make_run_folder(folder: Path, resume: Path | None, files: Sequence[str] = FILES) -> Path:
    """Make the output folder; append a number to its name if that folder has a run's log.

    Raises CaffeError if it is not that of a run and has one of the `files` that this run writes.
    """
    chosen, number = folder, 2
    while not resume and not _is_of_this_torchrun(chosen) and log.find(chosen):
        chosen, number = folder.with_name(f'{folder.name}-{number}'), number + 1
    ours = _has_record(chosen, resume)
    workspace.refuse_foreign(chosen, files, ours, 'a run', '--output names another folder')
    workspace.take(chosen)
    with suppress(OSError):  # on a full disk
        (chosen / workspace.MARK).write_text(parallel.run_id() or '')
    return chosen


def _has_record(folder: Path, resume: Path | None) -> bool:
    """Return whether a run has worked in a folder."""
    # A run of an earlier version that was stopped early has left nothing but its lock.
    marks = [workspace.MARK, *([workspace.LOCK] if resume == LATEST else [])]
    return (
        any(os.path.lexists(folder / mark) for mark in marks)
        or bool(log.find(folder))
        or has_snapshots(folder / 'snapshot/train')
    )


def _is_of_this_torchrun(folder: Path) -> bool:
    mark = folder / workspace.MARK
    return mark.is_file() and mark.read_text() == parallel.run_id()
