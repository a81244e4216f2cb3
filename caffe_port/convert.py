"""The command that carries weights from one kind of file to another.

Kinds go by suffix (see weights.py): .caffemodel, .caffemodel.h5, .pth, .pt, .safetensors
and .npz. Values are carried over bit for bit.
"""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout

import argparse
import importlib
import math
import os
import pkgutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from caffe_port.errors import CaffeError
from caffe_port.files import named, weights
from caffe_port.files.fit import Fit, fit
from caffe_port.files.stored import LayerBlobs, StoredBlob
from caffe_port.files.table import printable, summary, table
from caffe_port.files.torchvision import (
    TORCHVISION_MEAN_BGR,
    ZOO_MEAN_BGR,
    from_torchvision,
    mean_shift,
    to_torchvision,
)
from caffe_port.mode import TEST
from caffe_port.net import Net
from caffe_port.proto.caffe_pb2 import NetParameter
from caffe_port.verify import verify

# Above this many bytes of values a bar shows how far it is.
BAR_FROM = 100_000_000

EXAMPLES = """
kinds of files, by suffix:
  .caffemodel .caffemodel.h5 .pth .pt .safetensors .npz
  (.caffemodel.h5 needs h5py; in .pth and the like a blob is called <layer>.weight and so on)

examples:
  what is in a file:
    convert.py fcn8s-heavy-pascal.caffemodel --info
  Caffe to PyTorch, held against the net, with proof that nothing changed:
    convert.py fcn8s-heavy-pascal.caffemodel fcn8s.pth --net voc_fcn8s --verify
  back again, for a net of one's own:
    convert.py trained.pth trained.caffemodel --prototxt deploy.prototxt
  the VGG16 classifier for an FCN, fc6 and fc7 made convolutional:
    convert.py VGG_ILSVRC_16_layers.caffemodel vgg16-conv.caffemodel \\
        --net vgg16 --fully-conv
  torchvision's VGG16 in Caffe's names, BGR and 0 to 255:
    convert.py vgg16-397923af.pth vgg16.caffemodel --from-torchvision

exit status: 0, or 2 with one line `error: ...`; then nothing has been written, unless it was
--verify that found DST wanting.
"""


@dataclass
class Work:
    """SRC's layers as Caffe's, as what is to be written, and the net, if one was given."""

    layers: list[LayerBlobs]
    written: list[LayerBlobs]
    net: Net | None


def convert(options: argparse.Namespace) -> None:
    """Do what the command line asks. Raises CaffeError for whatever stands against it."""
    _check_target(options)
    began = time.monotonic()
    work = _prepared(options)
    param, names = None, None
    if work.net and not options.to_torchvision:
        param = work.net.module.param
        names = {node.name: node.op.blob_names for node in work.net.module.nodes}
    elif weights.kind_of(options.target) == '.caffemodel' and not (
        options.from_torchvision or options.to_torchvision
    ):
        param = weights.read_net(options.source)
    with _bar(work.written) as read:
        weights.write(options.target, work.written, param, names, read)
    print(f'{options.target}: {summary(work.written)}, {time.monotonic() - began:.1f} s')
    if options.verify:
        back = weights.read(options.target)
        back = from_torchvision(back) if options.to_torchvision else back
        # torchvision's fully connected layers may come from convolutions.
        back = _fitted(back, work.net, options.target, options.to_torchvision).layers
        plain = options.target.endswith(('.pth', '.pt')) and not options.to_torchvision
        for line in verify(work.net, work.layers, back, options.target if plain else None):
            print(line)


def info(options: argparse.Namespace) -> None:
    """Print the table of a file's layers. Raises CaffeError if it can't be read."""
    layers = weights.read(options.source)
    with _bar(layers) as read:
        for line in table(layers, read):
            print(line)


def _check_target(options: argparse.Namespace) -> None:
    if options.target is None:
        raise CaffeError('DST is not given (to look at SRC alone: --info)')
    weights.kind_of(options.source)
    weights.kind_of(options.target)
    if os.path.isdir(options.target):
        raise CaffeError(f'{options.target}: expected a file, found a directory')
    if os.path.exists(options.target) and not options.force:
        raise CaffeError(f'{options.target}: exists; --force replaces it')
    if (options.fully_conv or options.verify) and not (options.prototxt or options.net):
        raise CaffeError(
            f'{"--fully-conv" if options.fully_conv else "--verify"} needs the net: '
            '--prototxt FILE or --net NAME'
        )
    if options.mean and not (options.from_torchvision or options.to_torchvision):
        raise CaffeError('--mean goes with --from-torchvision or --to-torchvision')


def _prepared(options: argparse.Namespace) -> Work:
    """Read SRC and bring it into the names, shapes and colours asked for."""
    layers = weights.read(options.source)
    _note_wider(layers)
    if options.from_torchvision:
        layers = from_torchvision(layers)
    net = None
    if options.prototxt or options.net:
        net = _net(options)
        layers = _fitted(layers, net, options.source, options.fully_conv, tell=True).layers
    written = to_torchvision(layers) if options.to_torchvision else layers
    if options.from_torchvision or options.to_torchvision:
        _note_mean(layers, options.mean or ZOO_MEAN_BGR)
    return Work(layers, written, net)


def _net(options: argparse.Namespace) -> Net:
    """The net to check against: that of --prototxt or --net."""
    if options.net:
        return Net(net_by_name(options.net, options.fully_conv), TEST)
    try:
        return Net(options.prototxt, TEST)
    except CaffeError as error:
        if '(Python)' not in str(error):
            raise
        raise CaffeError(
            f'{error}; to check names and shapes take the deploy prototxt, or --net '
            "with an experiment's name"
        ) from error


def net_by_name(name: str, fully_conv: bool = False) -> NetParameter:
    """The deployed net of nets/<name>.py: an experiment, or a classifier as `vgg16`.

    With `fully_conv` a classifier's fully connected layers are convolutions.

    The package `nets` is imported here and nowhere else in caffe_port, which works
    without it. Raises CaffeError if there is no such net.
    """
    try:
        package = importlib.import_module('nets')
        known = [each.name for each in pkgutil.iter_modules(package.__path__)]
        module = importlib.import_module(f'nets.{name}') if name in known else None
    except ImportError as error:
        raise CaffeError(f'--net {name}: {error}') from error
    if hasattr(module, 'fcn'):
        return module.fcn('deploy')
    if hasattr(module, 'classifier'):
        return module.fully_conv() if fully_conv else module.classifier()
    raise CaffeError(
        f'--net {name}: no such net; there are '
        + ', '.join(each for each in known if each not in ('atoms', 'data'))
    )


def _fitted(
    layers: Sequence[LayerBlobs], net: Net, path: str, fully_conv: bool = False, tell: bool = False
) -> Fit:
    """The layers fitted to the net; with `tell`, what does not fit is printed first."""
    found = fit(layers, net, fully_conv)
    if tell:
        for what, lines in (
            ('cast', found.cast),
            ('left over, not written', found.left_over),
            ('missing', found.missing),
            ('mismatched', found.mismatched),
        ):
            for line in lines:
                print(f'{what}: {printable(line)}')
    if found.missing or found.mismatched:
        first = (found.missing + found.mismatched)[0]
        raise CaffeError(
            f'{path}: does not fit the net: {len(found.missing)} layers missing, '
            f'{len(found.mismatched)} mismatched, first {first}'
        )
    return found


def _note_wider(layers: Sequence[LayerBlobs]) -> None:
    wider = [layer.name for layer in layers for blob in layer.blobs if blob.dtype.itemsize > 4]
    if wider:
        print(f'note: {len(wider)} blobs are stored as float64 and become float32, as in Caffe')


def _note_mean(layers: Sequence[LayerBlobs], mean_bgr: Sequence[float]) -> None:
    """Say on which images the two nets are one (see vgg_torchvision)."""
    print(
        "Caffe's side is exactly torchvision's net on BGR images, 0 to 255, less the mean "
        + _numbers(TORCHVISION_MEAN_BGR)
    )
    shift = mean_shift(layers, mean_bgr)
    if shift:
        apart = np.subtract(mean_bgr, TORCHVISION_MEAN_BGR)
        print(
            f'less {_numbers(mean_bgr)} they are darker by {_numbers(apart)}: conv1_1 moves by '
            f'{shift:.3g} at most; no bias makes up for it, as padding would get it too'
        )


def _numbers(values: Sequence[float]) -> str:
    return ','.join(f'{round(float(value), 3):g}' for value in values)


@contextmanager
def _bar(layers: Sequence[LayerBlobs]) -> Iterator[named.Read]:
    """The function that reads a blob; where there is much to read it moves a bar on stderr."""
    total = weights.nbytes(layers)
    with tqdm(total=total, unit='B', unit_scale=True, disable=total < BAR_FROM) as bar:

        def read(blob: StoredBlob) -> np.ndarray:
            values = blob.array()
            bar.update(values.nbytes)
            return values

        yield read


def _mean(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(','))
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f'expected B,G,R, three numbers, found {text!r}')
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='convert.py',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Convert weights between Caffe and PyTorch, bit for bit.',
    )
    parser.add_argument('source', metavar='SRC', help='the weight file to read')
    parser.add_argument('target', metavar='DST', nargs='?', help='the weight file to write')
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    parser.add_argument(
        '--info', action='store_true', help="print a table of SRC's layers; takes no DST"
    )
    net = parser.add_mutually_exclusive_group()
    net.add_argument(
        '--prototxt',
        metavar='FILE',
        help="hold every layer's name and shape against this net (in phase TEST)",
    )
    net.add_argument(
        '--net',
        metavar='NAME',
        help='the same against nets/NAME.py, as deployed: voc_fcn8s, vgg16, ...',
    )
    parser.add_argument(
        '--fully-conv',
        action='store_true',
        help='make fully connected layers the convolutions that the net has',
    )
    parser.add_argument(
        '--verify',
        action='store_true',
        help="run the net with SRC's weights and with DST's, and compare",
    )
    colours = parser.add_mutually_exclusive_group()
    colours.add_argument(
        '--from-torchvision',
        action='store_true',
        help="SRC is torchvision's vgg16; fold its colours and scale in",
    )
    colours.add_argument(
        '--to-torchvision', action='store_true', help="DST is to be torchvision's vgg16"
    )
    parser.add_argument(
        '--mean',
        type=_mean,
        metavar='B,G,R',
        help="the mean that Caffe's images are less, to tell what it changes "
        f'(default: {_numbers(ZOO_MEAN_BGR)})',
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert or look at a weight file; the exit status: 0, or 2 where it can't be done."""
    options = _parser().parse_args(arguments)
    try:
        if options.info and (options.target is not None or options.net or options.prototxt):
            raise CaffeError('--info looks at SRC alone: leave out DST, --net and --prototxt')
        info(options) if options.info else convert(options)
    except CaffeError as error:
        print(f'error: {printable(str(error))}', file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the table has seen enough; Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == '__main__':
    sys.exit(main())
