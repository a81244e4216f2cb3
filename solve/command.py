"""From an experiment's command line to its Job."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Callable

import torch

import caffe_port as caffe
from caffe_port.errors import CaffeError
from solve import sample
from solve.experiment import LATEST, Job

ROOT = Path(__file__).resolve().parent.parent


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
    try:
        _choose_device(args.gpu)
        solve(_job(args, name, data, weights))
    except CaffeError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(str(stop) or 'stopped', file=sys.stderr)
        sys.exit(130)


def _option(place: str) -> str:
    return '--' + place.replace('_', '-')


def _parser(doc: str, name: str, data: ModuleType,
            weights: tuple[str, ...]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f'{name}.py', description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('gpu', nargs='?', type=int, metavar='GPU',
        help='number of the GPU (default: 0 if there is one, else the CPU)')
    for place, folder in data.PLACES.items():
        add(_option(place), type=Path, metavar='DIR', help=f'default: {folder} in the project')
    add('--weights', type=Path, metavar='FILE', nargs=len(weights),
        help=f'.caffemodel to start from (default: {", ".join(weights)} in the project)')
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


def _job(args: argparse.Namespace, name: str, data: ModuleType, weights: tuple[str, ...]) -> Job:
    if args.iterations is not None and args.iterations < 1:
        raise CaffeError(f'--iterations {args.iterations}: must be positive')
    if args.resume not in (None, LATEST) and not args.resume.is_file():
        raise CaffeError(f'{args.resume}: no such file; --resume takes a .solverstate or `latest`')
    if args.keep < 0:
        raise CaffeError(f'--keep {args.keep}: must not be negative')
    named = [getattr(args, option) for option in (*data.PLACES, 'weights')]
    defaults = [ROOT / path for path in (*data.PLACES.values(), *weights)]
    resumed_sample = args.resume and sample.is_in(args.output or _sample_folder(name))
    if any(named) or any(path.exists() for path in defaults) or (
            args.resume and not resumed_sample):
        job = _real_job(args, name, data, weights)
    else:
        job = _sample_job(args, name, data)
    job.prefix, job.keep = args.snapshot_prefix or job.prefix, args.keep
    job.iterations = args.iterations or job.iterations
    return job


def _real_job(args: argparse.Namespace, name: str, data: ModuleType,
              weights: tuple[str, ...]) -> Job:
    places = {place: getattr(args, place) or ROOT / folder
              for place, folder in data.PLACES.items()}
    for place, folder in places.items():
        if not folder.is_dir():
            raise CaffeError(f'{folder}: no such folder; {_option(place)} says where it is')
    start = args.weights or [ROOT / path for path in weights]
    for path in start:
        if not args.resume and not path.is_file():
            raise CaffeError(f'{path}: no such file; --weights takes what this experiment starts '
                             'from, see --help')
    folder = _fresh_folder(args.output or Path('output') / name, args.resume)
    net = {place: str(path) for place, path in places.items()}
    if 'sbdd_dir' in net:  # VOC's own folder has no list of seg11valid: it follows from SBD's
        net['seg11valid_from'] = net['sbdd_dir']
    for remark in getattr(data, 'remarks', lambda **_: ())(**places):
        print(f'Note: {remark}', file=sys.stderr)
    return Job(name, folder, start, args.resume, net)


def _sample_job(args: argparse.Namespace, name: str, data: ModuleType) -> Job:
    if name not in sample.EXPERIMENTS:
        options = ', '.join(map(_option, data.PLACES))
        raise CaffeError(f'no data and no weights found: give {options} and --weights, see '
                         f'--help; only {", ".join(sample.EXPERIMENTS)} has a sample')
    print(f'No data and no weights found, so this runs a small sample of {name}, drawn on the '
          'spot.\nThe real experiment needs '
          f'{", ".join(map(_option, data.PLACES))} and --weights; see --help.')
    folder = _fresh_folder(args.output or _sample_folder(name), args.resume)
    print(f'Output folder: {folder}', flush=True)
    return Job(name, folder, resume=args.resume, **sample.prepare(folder))


def _sample_folder(name: str) -> Path:
    return Path('output') / f'{name}-sample'


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
