"""What all command lines share: devices, errors, and the arguments NET and WEIGHTS."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

import caffe_port as caffe
from caffe_port import mode, parallel, plugins
from caffe_port.errors import CaffeError, ignore_closed_pipe, printable
from solve.run import command_names, precision, terminal, workspace

_CHECKOUT = Path(__file__).resolve().parents[2]
IS_CHECKOUT = (_CHECKOUT / 'setup.cfg').is_file()
# Default places are in here, and help texts say so.
ROOT = _CHECKOUT if IS_CHECKOUT else Path.cwd()
ROOT_NAME = 'the project' if IS_CHECKOUT else 'the working directory'
STATUS = 'exit status: 0; 2 with one line `error: ...`; 130 if stopped by Ctrl-C or SIGTERM'
GPU_HELP = 'number of the GPU (default: 0 if there is one, else the CPU)'


def name_option(place: str) -> str:
    """Return the option that names a folder which nets know as `place`."""
    return '--' + place.replace('_', '-')


def make_parser(
    name: str, description: str, epilog: str = '', usage: str | None = None
) -> argparse.ArgumentParser:
    """Make a parser whose help keeps its line breaks and has a line for most options."""
    return command_names.Parser(
        prog=command_names.as_called(name),
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=28, width=100
        ),
    )


def add_gpu(parser: argparse.ArgumentParser, positional: bool) -> None:
    """Add the option --gpu, and with `positional` the argument GPU, which says the same."""
    parser.add_argument('--gpu', type=int, metavar='N', action=OneGpu, help=GPU_HELP)
    if positional:
        parser.add_argument(
            'gpu', nargs='?', type=int, metavar='GPU', action=OneGpu, help='as --gpu'
        )


def add_computing(parser: argparse.ArgumentParser, precisions: Sequence[str]) -> None:
    """Add the options --no-plan and --precision."""
    parser.add_argument(
        '--no-plan', dest='plan', action='store_false', help='compute layer by layer, slower'
    )
    precision.add_option(parser, precisions)


def add_recompute(parser: argparse.ArgumentParser) -> None:
    """Add the option --recompute."""
    parser.add_argument(
        '--recompute',
        action='store_true',
        help='keep fewer blobs for backward: less memory, more time (on the CPU)',
    )


class OneGpu(argparse.Action):
    """Take a GPU's number from --gpu or from its place, not two numbers that differ."""

    def __call__(self, parser, namespace, value, option=None) -> None:
        if value is None:  # the place is empty
            return
        if getattr(namespace, 'gpu', None) not in (None, value):
            parser.error(f'GPU {namespace.gpu} and GPU {value}: one expected')
        namespace.gpu = value


def make_net_parser(
    name: str, description: str, epilog: str, positional_gpu: bool = False
) -> argparse.ArgumentParser:
    """Make a parser for a command on a trained net: NET, WEIGHTS, --gpu and how to compute."""
    parser = make_parser(name, description, epilog)
    parser.add_argument('net', metavar='NET', help='an experiment, as voc_fcn8s, or a .prototxt')
    parser.add_argument(
        'weights',
        metavar='WEIGHTS',
        type=Path,
        help='.caffemodel, .caffemodel.h5, .pth, .pt, .safetensors or .npz',
    )
    add_gpu(parser, positional_gpu)
    add_computing(parser, mode.PRECISIONS)
    return parser


def run_net_command(
    parser: argparse.ArgumentParser, act: Callable[[argparse.Namespace], None]
) -> None:
    """Parse a command line made by make_net_parser and run `act` on its device.

    It begins in fp32, so that `act` can say how another precision differs.
    """
    args = parser.parse_intermixed_args()
    logging.getLogger('caffe_port').handlers.clear()
    with session(lasting=True):
        choose_device(args.gpu)
        caffe.set_plan(args.plan)
        caffe.set_precision(mode.FP32)
        precision.check(args.precision)
        # The net and the weights may be a stranger's (SECURITY.md).
        with plugins.import_registered_only():
            act(args)


@contextmanager
def session(lasting: bool = False) -> Iterator[None]:
    """Join the ranks that torchrun started, and end the process as its commands do.

    Rank 0 alone prints. A CaffeError, or an OSError about a file, becomes one line and exit
    status 2; SIGINT (Ctrl-C) and SIGTERM stop the command, with status 130. A reader that
    closes the pipe ends the command without an error. A `lasting` command leaves files: it
    goes on without output that cannot be written, and ignores SIGHUP, which a terminal sends
    as it closes. Output folders are released at the end.
    """
    with terminal.drop_unwritable() if lasting else nullcontext(), _signals(lasting):
        try:
            with ignore_closed_pipe():
                parallel.join()
                with _silence_other_ranks():
                    yield
                parallel.leave()
        except CaffeError as error:
            _fail(str(error))
        except KeyboardInterrupt as stop:
            print(str(stop) or 'stopped', file=sys.stderr)
            workspace.release()
            parallel.end(130, str(stop) or 'stopped')
        except OSError as error:
            if error.filename is None:
                raise
            _fail(f'{os.fsdecode(error.filename)}: {error.strerror}')
        finally:
            workspace.release()


def _fail(words: str) -> None:
    print(f'error: {printable(words)}', file=sys.stderr)
    workspace.release()
    parallel.end(2, words)


@contextmanager
def _signals(lasting: bool) -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, and a `lasting` command ignore SIGHUP."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler)}
    if lasting:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _silence_other_ranks() -> Iterator[None]:
    if not parallel.solver_rank():
        yield
        return
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def start_training(args: argparse.Namespace) -> None:
    """Compute as the options of add_gpu and add_computing say."""
    choose_device(args.gpu)
    caffe.set_plan(args.plan)
    caffe.set_recompute(args.recompute)
    precision.set_for_training(args.precision)


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
