"""What all command lines share: where they run, how they report errors, NET and WEIGHTS."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

import caffe_port as caffe
from caffe_port import parallel, plugins
from caffe_port.errors import CaffeError

ROOT = Path(__file__).resolve().parents[2]
GPU_HELP = 'number of the GPU (default: 0 if there is one, else the CPU)'


def option(place: str) -> str:
    """Return the option that names a folder which nets know as `place`."""
    return '--' + place.replace('_', '-')


def make_parser(name: str, description: str, epilog: str = '') -> argparse.ArgumentParser:
    """Make a parser whose help keeps its line breaks."""
    return argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def make_net_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """Make a parser for a command on a trained net: NET, WEIGHTS and --gpu."""
    parser = make_parser(name, description, epilog)
    parser.add_argument('net', metavar='NET', help='an experiment, as voc_fcn8s, or a .prototxt')
    parser.add_argument(
        'weights',
        metavar='WEIGHTS',
        type=Path,
        help='.caffemodel, .caffemodel.h5, .pth, .pt, .safetensors or .npz',
    )
    parser.add_argument('--gpu', type=int, metavar='N', help=GPU_HELP)
    return parser


def run_net_command(
    parser: argparse.ArgumentParser, act: Callable[[argparse.Namespace], None]
) -> None:
    """Parse a command line made by make_net_parser and run `act` on its device."""
    args = parser.parse_args()
    logging.getLogger('caffe_port').handlers.clear()
    with session():
        choose_device(args.gpu)
        # The net and the weights may be a stranger's (SECURITY.md).
        with plugins.registered_only():
            act(args)


@contextmanager
def session() -> Iterator[None]:
    """Join the ranks that torchrun started, and end the process as its commands do.

    Rank 0 alone prints. A CaffeError becomes one line and exit status 2, Ctrl-C status
    130; a reader that closed the pipe ends the command without an error.
    """
    try:
        parallel.join()
        with _silence_other_ranks():
            yield
        parallel.leave()
    except CaffeError as error:
        print(f'error: {error}', file=sys.stderr)
        parallel.end(2, str(error))
    except KeyboardInterrupt as stop:
        print(str(stop) or 'stopped', file=sys.stderr)
        parallel.end(130, str(stop) or 'stopped')
    except BrokenPipeError:
        # Python would complain once more as it flushes stdout at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _silence_other_ranks() -> Iterator[None]:
    if not parallel.solver_rank():
        yield
        return
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def choose_device(gpu: int | None) -> None:
    """Compute on GPU number `gpu`; without a number on the first, or on the CPU if there is none.

    Each of many ranks takes the GPU of its own number.
    """
    if gpu is not None and parallel.solver_count() > 1:
        raise CaffeError(
            f'GPU {gpu}: with many processes each takes the GPU of its own number; '
            'CUDA_VISIBLE_DEVICES says which there are'
        )
    if gpu is None and not torch.cuda.is_available():
        print('No GPU found: computing on the CPU.', file=sys.stderr)
        return
    caffe.set_device(parallel.local_rank() if gpu is None else gpu)
    caffe.set_mode_gpu()
