"""What the commands score.py and infer.py share: a net by name or prototxt, and its weights."""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nets
from caffe_port import Net, prototxt
from caffe_port.errors import CaffeError
from caffe_port.files.stored import StoredLayer
from caffe_port.files.weights import fit
from caffe_port.proto.caffe_pb2 import NetParameter
from solve.datasets import nyud, pascalcontext, siftflow, voc
from solve.run import options

EXPERIMENTS = tuple(
    each.name for each in pkgutil.iter_modules(nets.__path__) if '_fcn' in each.name
)
DATA = {'voc': voc, 'nyud': nyud, 'siftflow': siftflow, 'pascalcontext': pascalcontext}


def parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """The command line that both commands begin with."""
    made = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument('net', metavar='NET', help='an experiment, as voc_fcn8s, or a .prototxt')
    made.add_argument(
        'weights',
        metavar='WEIGHTS',
        type=Path,
        help='.caffemodel, .caffemodel.h5, .pth, .pt, .safetensors or .npz',
    )
    made.add_argument(
        '--gpu',
        type=int,
        metavar='N',
        help='number of the GPU (default: 0 if there is one, else the CPU)',
    )
    return made


def run(parser: argparse.ArgumentParser, act: Callable[[argparse.Namespace], None]) -> None:
    """Do what a command line asks; errors in one line, exit status 2, or 130 if stopped."""
    args = parser.parse_args()
    logging.getLogger('caffe_port').handlers.clear()
    try:
        with options.session():
            options.choose_device(args.gpu)
            act(args)
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def data_of(net: str) -> ModuleType | None:
    """The module of an experiment's data set; None for a prototxt."""
    return DATA[net.split('_')[0]] if net in EXPERIMENTS else None


def described(net: str, split: str | None, layers: Sequence[StoredLayer]) -> NetParameter:
    """The net of an experiment for `split`, as narrow as its weights, or that of a prototxt."""
    if net in EXPERIMENTS:
        fcn = importlib.import_module(f'nets.{net}').fcn
        return fcn(split, **_widths(fcn, layers))
    if not Path(net).is_file():
        raise CaffeError(
            f'{net}: no such file, nor an experiment; those are ' + ', '.join(EXPERIMENTS)
        )
    return prototxt.read_net(net)


def _widths(fcn: Callable[..., NetParameter], layers: Sequence[StoredLayer]) -> dict[str, Any]:
    """The widths of the weights' first and sixth layers, at most the official ones."""
    found = {}
    for argument, start in (('width', 'conv1'), ('fc', 'fc6')):
        official = inspect.signature(fcn).parameters[argument].default
        for layer in layers:
            if layer.name.startswith(start) and layer.blobs[0].shape:
                # No file may ask for the memory of a net wider than the one that is named.
                found[argument] = min(layer.blobs[0].shape[0], official)
                break
    return found


def load(net: Net, path: Path, layers: Sequence[StoredLayer]) -> None:
    """Load every weight of `net` from the layers of the file `path`.

    Raises CaffeError if the file lacks a layer of the net, or has one of another shape.
    """
    found = fit(layers, net.layer_dict)
    wrong = found.missing + found.mismatched
    if wrong:
        raise CaffeError(
            f'{path}: does not fit the net: {len(found.missing)} layers missing, '
            f'{len(found.mismatched)} mismatched, first {wrong[0]}'
        )
    for layer in found.layers:
        for stored, blob in zip(layer.blobs, net.params[layer.name]):
            blob.load(stored)


def class_names(data: ModuleType | None, count: int) -> list[str]:
    """The names of a data set's `count` classes, or their numbers where it has no names."""
    for known in ('CLASSES', 'SEMANTIC', 'GEOMETRIC'):
        names = getattr(data, known, ())
        if len(names) == count:
            return list(names)
    return [str(number) for number in range(count)]
