"""From an experiment's command line to its Job."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import torch

import caffe_port as caffe
from caffe_port import parallel
from caffe_port.errors import CaffeError
from caffe_port.files.table import printable
from solve.run import snapshots
from solve.run.experiment import LATEST, Job
from solve.samples import recipes

ROOT = Path(__file__).resolve().parents[2]
# Marks an output folder as that of one call of torchrun, which may restart the script.
MARK = '.torchrun'


def run(solve: Callable[[Job], None], doc: str, data: ModuleType, *weights: str) -> None:
    """Run an experiment's script: options, then `solve`; errors in one line, exit status 2.

    `data` is the module of its data set, whose PLACES are the default folders by the
    names that nets know them by; `weights` are the files it starts from by default.
    Both are relative to the project.
    """
    name = Path(sys.argv[0]).stem
    args = _parser(doc, name, data, weights).parse_args()
    # The progress line takes the place of Caffe's log lines, which go to a file.
    logging.getLogger('caffe_port').handlers.clear()
    with session():
        choose_device(args.gpu)
        solve(parallel.first(lambda: _job(args, name, data, weights)))


@contextmanager
def session() -> Iterator[None]:
    """Join torchrun's ranks, of which only 0 is heard; errors in one line, exit status 2.

    Or 130 where it was stopped.
    """
    try:
        parallel.join()
        with _rank_0_speaks():
            yield
        parallel.leave()
    except CaffeError as error:
        print(f'error: {printable(str(error))}', file=sys.stderr)
        parallel.end(2, str(error))
    except KeyboardInterrupt as stop:
        print(str(stop) or 'stopped', file=sys.stderr)
        parallel.end(130, str(stop) or 'stopped')


@contextmanager
def _rank_0_speaks() -> Iterator[None]:
    if not parallel.solver_rank():
        yield
        return
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def option(place: str) -> str:
    """The option by which a command line names a folder that nets know as `place`."""
    return '--' + place.replace('_', '-')


def _parser(
    doc: str, name: str, data: ModuleType, weights: tuple[str, ...]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f'{name}.py', description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        'gpu',
        nargs='?',
        type=int,
        metavar='GPU',
        help='number of the GPU (default: 0 if there is one, else the CPU)',
    )
    for place, folder in data.PLACES.items():
        add(option(place), type=Path, metavar='DIR', help=f'default: {folder} in the project')
    add(
        '--weights',
        type=Path,
        metavar='FILE',
        nargs=len(weights),
        help=f'.caffemodel to start from (default: {", ".join(weights)} in the project)',
    )
    add('--iterations', type=int, metavar='N', help='stop after N (default: as published)')
    add(
        '--resume',
        type=Path,
        metavar='FILE',
        help='.solverstate to go on from, or `latest` for the newest whole one of --output',
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
        help='train on the next image where one cannot be read, and list these at the end',
    )
    add(
        '--output',
        type=Path,
        metavar='DIR',
        help=f'where logs and pictures go (default: output/{name})',
    )
    add(
        '--snapshot-prefix',
        type=Path,
        metavar='PREFIX',
        help='default: snapshot/train in the output folder',
    )
    return parser


def choose_device(gpu: int | None) -> None:
    """Compute on the GPU of that number, on the first one, or on the CPU where there is none."""
    if gpu is not None and parallel.solver_count() > 1:
        raise CaffeError(
            f'GPU {gpu}: of many processes each takes the GPU of its own number; '
            'CUDA_VISIBLE_DEVICES says which there are'
        )
    if gpu is None and not torch.cuda.is_available():
        print('No GPU found: computing on the CPU.', file=sys.stderr)
        return
    caffe.set_device(parallel.local_rank() if gpu is None else gpu)
    caffe.set_mode_gpu()


def _job(args: argparse.Namespace, name: str, data: ModuleType, weights: tuple[str, ...]) -> Job:
    if args.iterations is not None and args.iterations < 1:
        raise CaffeError(f'--iterations {args.iterations}: must be positive')
    if args.resume not in (None, LATEST) and not args.resume.is_file():
        raise CaffeError(f'{args.resume}: no such file; --resume takes a .solverstate or `latest`')
    if args.keep < 0:
        raise CaffeError(f'--keep {args.keep}: must not be negative')
    named = [getattr(args, each) for each in (*data.PLACES, 'weights')]
    if args.resume:
        args.output = _resumed_folder(
            args, [Path('output') / name] + ([] if any(named) else [recipes.folder_of(name)])
        )
    defaults = [ROOT / path for path in (*data.PLACES.values(), *weights)]
    resumed_sample = args.resume and recipes.is_in(args.output or recipes.folder_of(name))
    if (
        any(named)
        or any(path.exists() for path in defaults)
        or (args.resume and not resumed_sample)
    ):
        job = _real_job(args, name, data, weights)
    else:
        job = _sample_job(args, name, data)
    job.prefix, job.keep = args.snapshot_prefix or job.prefix, args.keep
    job.iterations = args.iterations or job.iterations
    job.skip_bad_images = args.skip_bad_images
    if parallel.restarted() and (job.resume is None or snapshots.states(job.prefix)):
        job.resume = LATEST
    return job


def _real_job(
    args: argparse.Namespace, name: str, data: ModuleType, weights: tuple[str, ...]
) -> Job:
    places = {place: getattr(args, place) or ROOT / folder for place, folder in data.PLACES.items()}
    for place, folder in places.items():
        if not folder.is_dir():
            raise CaffeError(f'{folder}: no such folder; {option(place)} says where it is')
    start = args.weights or [ROOT / path for path in weights]
    for path in start:
        if not args.resume and not path.is_file():
            raise CaffeError(
                f'{path}: no such file; --weights takes what this experiment starts '
                'from, see --help'
            )
    folder = _fresh_folder(args.output or Path('output') / name, args.resume)
    net = {place: str(path) for place, path in places.items()}
    if 'sbdd_dir' in net:  # VOC's own folder has no list of seg11valid: it follows from SBD's
        net['seg11valid_from'] = net['sbdd_dir']
    for remark in getattr(data, 'remarks', lambda **_: ())(**places):
        print(f'Note: {remark}', file=sys.stderr)
    return Job(name, folder, start, args.resume, net)


def _sample_job(args: argparse.Namespace, name: str, data: ModuleType) -> Job:
    print(
        f'No data and no weights found, so this runs a small sample of {name}, drawn on the '
        'spot.\nThe real experiment needs '
        f'{", ".join(map(option, data.PLACES))} and --weights; see --help.'
    )
    folder = _fresh_folder(args.output or recipes.folder_of(name), args.resume)
    print(f'Output folder: {folder}', flush=True)
    return Job(
        name, folder, resume=args.resume, **recipes.prepare(name, folder, start=not args.resume)
    )


def _resumed_folder(args: argparse.Namespace, defaults: list[Path]) -> Path:
    """The folder of the run to go on with: as told, the state's own, or the last one used."""
    if args.output:
        if args.resume == LATEST and not args.output.is_dir():
            raise CaffeError(f'{args.output}: no such folder, so there is nothing to resume')
        return args.output
    if args.resume != LATEST:
        folder = args.resume.parent.parent
        if not (folder / 'log.jsonl').is_file():
            raise CaffeError(
                f'{args.resume}: not in the folder of a run; --output names the folder to go on in'
            )
        return folder
    logs = {
        log.stat().st_mtime: folder
        for default in defaults
        for folder in [default, *default.parent.glob(f'{default.name}-[0-9]*')]
        for log in _logs(folder)
    }
    if not logs:
        raise CaffeError(
            f'{" and ".join(map(str, defaults))}: no run there to resume; --output '
            'names another folder'
        )
    return logs[max(logs)]


def _logs(folder: Path) -> list[Path]:
    """The logs of a run, or of the runs of a chain."""
    return [*folder.glob('log.jsonl'), *folder.glob('*/log.jsonl')]


def _fresh_folder(folder: Path, resume: Path | None) -> Path:
    """Make the output folder; another number where a run, or one of a chain, has left its log."""
    chosen, number = folder, 2
    while resume is None and not _of_this_torchrun(chosen) and _logs(chosen):
        chosen, number = folder.with_name(f'{folder.name}-{number}'), number + 1
    try:
        chosen.mkdir(parents=True, exist_ok=True)
        if parallel.run_id():
            (chosen / MARK).write_text(parallel.run_id())
    except OSError as error:
        raise CaffeError(f'{chosen}: cannot be made: {error.strerror}') from error
    return chosen


def _of_this_torchrun(folder: Path) -> bool:
    mark = folder / MARK
    return mark.is_file() and mark.read_text() == parallel.run_id()
