"""Convert weights from one kind of file to another (a command).

The suffix says the kind (see weights.py): .caffemodel, .caffemodel.h5, .pth, .pt,
.safetensors and .npz. Values stay the same bit for bit. An .onnx or .pt2 has the net too
(see export.py).
"""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from caffe_port import command, export, plugins
from caffe_port.errors import CaffeError, printable
from caffe_port.files import weights
from caffe_port.files.named import ReadBlob
from caffe_port.files.stored import StoredBlob, StoredLayer
from caffe_port.files.table import format_layers, summarize
from caffe_port.files.torchvision import (
    TORCHVISION_MEAN_BGR,
    ZOO_MEAN_BGR,
    from_torchvision,
    mean_shift,
    to_torchvision,
)
from caffe_port.mode import TEST
from caffe_port.net import Net
from caffe_port.verify import verify
from caffe_port.zoo import make_deploy

# Files with more bytes of values than this show a progress bar.
BAR_FROM = 100_000_000

EXAMPLES = """\
examples:
  convert.py fcn8s-heavy-pascal.caffemodel --info    what is in a file
  convert.py fcn8s-heavy-pascal.caffemodel fcn8s.pth --net voc_fcn8s --verify
  convert.py trained.pth trained.caffemodel --prototxt deploy.prototxt
  convert.py fcn8s-heavy-pascal.caffemodel fcn8s.onnx --net voc_fcn8s --verify
  convert.py VGG_ILSVRC_16_layers.caffemodel conv.caffemodel --net vgg16 --fully-conv
  convert.py vgg16-397923af.pth vgg16.caffemodel --from-torchvision

Convert weights between Caffe and PyTorch, bit for bit, or a net for other engines.
"""
KINDS = """\
Kinds of files, by suffix: .caffemodel .h5 .pth .pt .pth.tar .ckpt .safetensors .npz; a blob is
called <layer>.weight and so on in all but the first two. DST may also be, net and all, with --net
or --prototxt, .onnx or .pt2 (torch.export), for images of any size. .h5 needs h5py, .safetensors
safetensors, .onnx onnxscript and, to verify, onnxruntime.

exit status: 0; 2 with one line `error: ...`, then nothing was written unless --verify failed;
130 if stopped by Ctrl-C
"""


def convert(options: argparse.Namespace) -> None:
    """Do what the command line asks. Raises CaffeError if anything prevents it."""
    _check_options(options)
    began, source, target = time.monotonic(), options.source, options.target
    layers = weights.read(source)
    wider = sum(blob.dtype.itemsize > 4 for layer in layers for blob in layer.blobs)
    if wider:
        print(f'note: {wider} blobs are stored as float64 and become float32, as in Caffe')
    if options.from_torchvision:
        layers = from_torchvision(layers)
    net = _net(options, layers)
    if net:
        layers = _fitted(layers, net, source, options.fully_conv, report=True)
    if net and export.is_export(target):
        _export(net, layers, options, began)
        return
    written = to_torchvision(layers) if options.to_torchvision else layers
    param, names = None, None
    if options.from_torchvision or options.to_torchvision:
        _print_mean(layers, options.mean or ZOO_MEAN_BGR)
    elif not net and weights.kind_of(target) == '.caffemodel':
        param = weights.read_net(source)
    if net and not options.to_torchvision:
        param = net.module.param
        names = {node.name: node.op.blob_names for node in net.module.nodes}
    with _bar(written) as read:
        weights.write(target, written, param, names, read)
    print(f'{target}: {summarize(written)}, {time.monotonic() - began:.1f} s')
    if net and options.verify:
        back = weights.read(target)
        back = from_torchvision(back) if options.to_torchvision else back
        # torchvision's fully connected layers may have been convolutions.
        back = _fitted(back, net, target, fully_conv=options.to_torchvision)
        plain = target.endswith(('.pth', '.pt')) and not options.to_torchvision
        for line in verify(net, layers, back, target if plain else None):
            print(line)


def _export(
    net: Net, layers: Sequence[StoredLayer], options: argparse.Namespace, began: float
) -> None:
    """Write the net with the weights of `layers` for other engines."""
    net.load_layers(layers)
    least = export.export(net, options.target)
    sizes = 'sizes fixed, as in the net' if least is None else f'images from {least} x {least} on'
    print(f'{options.target}: {summarize(layers)}, {sizes}, {time.monotonic() - began:.1f} s')
    if options.verify:
        for line in export.verify_export(net, options.target, least):
            print(line)


def print_layers(options: argparse.Namespace) -> None:
    """Print the table of a file's layers. Raises CaffeError if it cannot be read."""
    layers = weights.read(options.source)
    with _bar(layers) as read:
        for line in format_layers(layers, read):
            print(line)


def _check_options(options: argparse.Namespace) -> None:
    target = options.target
    if target is None:
        raise CaffeError('DST is missing (to look at SRC alone: --info)')
    weights.kind_of(options.source)
    if not export.is_export(target):
        weights.kind_of(target)
    elif not (options.prototxt or options.net):
        raise CaffeError(f'{target} needs the net: --prototxt FILE or --net NAME')
    elif options.to_torchvision:
        raise CaffeError(f'--to-torchvision writes weights alone, not {target}')
    else:
        export.check_libraries(target, options.verify)
    if os.path.isdir(target):
        raise CaffeError(f'{target}: expected a file, found a directory')
    if os.path.exists(target) and not options.force:
        raise CaffeError(f'{target}: exists; --force replaces it')
    if (options.fully_conv or options.verify) and not (options.prototxt or options.net):
        option = '--fully-conv' if options.fully_conv else '--verify'
        raise CaffeError(f'{option} needs the net: --prototxt FILE or --net NAME')
    if options.mean and not (options.from_torchvision or options.to_torchvision):
        raise CaffeError('--mean goes with --from-torchvision or --to-torchvision')


def _net(options: argparse.Namespace, layers: Sequence[StoredLayer]) -> Net | None:
    """Make the net of --prototxt, or of --net at the widths of the weights, if one is given."""
    if options.net:
        try:
            param = make_deploy(options.net, layers, options.fully_conv)
        except CaffeError as error:
            raise CaffeError(f'--net {error}') from error
        return Net(param, TEST)
    try:
        return Net(options.prototxt, TEST) if options.prototxt else None
    except CaffeError as error:
        hint = '; check names and shapes against the deploy prototxt, or --net EXPERIMENT'
        raise CaffeError(f'{error}{hint}') if '(Python)' in str(error) else error from error


def _fitted(
    layers: Sequence[StoredLayer],
    net: Net,
    path: str,
    fully_conv: bool = False,
    report: bool = False,
) -> list[StoredLayer]:
    """Fit layers to the net; with `report`, first print what does not fit."""
    found = weights.fit(layers, net.find_owners(path), fully_conv)
    if report:
        for what, lines in (
            ('cast', found.cast),
            ('left over, not written', found.left_over),
            ('missing', found.missing),
            ('mismatched', found.mismatched),
        ):
            for line in lines:
                print(f'{what}: {printable(line)}')
    found.check(path)
    return found.layers


def _print_mean(layers: Sequence[StoredLayer], mean_bgr: Sequence[float]) -> None:
    """Print on which images the two nets agree (see files/torchvision.py)."""
    print(
        "Caffe's side is exactly torchvision's net on BGR images, 0 to 255, less the mean "
        + _numbers(TORCHVISION_MEAN_BGR)
    )
    shift = mean_shift(layers, mean_bgr)
    if shift:
        apart = np.subtract(mean_bgr, TORCHVISION_MEAN_BGR).tolist()
        print(
            f'less {_numbers(mean_bgr)} they are darker by {_numbers(apart)}: conv1_1 moves by '
            f'{shift:.3g} at most; no bias can correct it, as it would change the padding too'
        )


def _numbers(values: Sequence[float]) -> str:
    return ','.join(f'{round(float(value), 3):g}' for value in values)


@contextmanager
def _bar(layers: Sequence[StoredLayer]) -> Iterator[ReadBlob]:
    """Yield the function that reads a blob; it moves a progress bar if there are many bytes."""
    total = weights.count_bytes(layers)
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


class _Parser(argparse.ArgumentParser):
    """A parser whose help names the command as it is called: convert.py, or fcn-convert."""

    def format_help(self) -> str:
        called = os.path.basename(sys.argv[0])
        text = super().format_help()
        return text.replace('convert.py', called) if called == 'fcn-convert' else text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog='convert.py',
        usage='convert.py SRC [DST] [--net NAME | --prototxt FILE] [options]',
        description=EXAMPLES,
        epilog=KINDS,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=28, width=100
        ),
    )
    add = parser.add_argument
    add('source', metavar='SRC', help='the weight file to read')
    add('target', metavar='DST', nargs='?', help='the file to write')
    add('--force', action='store_true', help='replace DST if it exists')
    add('--info', action='store_true', help="print a table of SRC's layers; no DST")
    net = parser.add_mutually_exclusive_group()
    net.add_argument(
        '--prototxt', metavar='FILE', help='hold every layer against this net, in TEST'
    )
    net.add_argument(
        '--net', metavar='NAME', help='against a named net, as narrow as SRC: voc_fcn8s'
    )
    add(
        '--fully-conv',
        action='store_true',
        help='turn fully connected layers into the convolutions of the net',
    )
    add(
        '--verify',
        action='store_true',
        help="run the net with SRC's weights and DST's, and compare",
    )
    colours = parser.add_mutually_exclusive_group()
    colours.add_argument(
        '--from-torchvision',
        action='store_true',
        help="SRC is torchvision's vgg16; convert colours and scale in conv1_1",
    )
    colours.add_argument(
        '--to-torchvision', action='store_true', help="write DST as torchvision's vgg16"
    )
    add(
        '--mean',
        type=_mean,
        metavar='B,G,R',
        help=f'of those two, to print what it changes (default: {_numbers(ZOO_MEAN_BGR)})',
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert or look at a weight file; return the exit status."""
    options = _parser().parse_args(arguments)
    return command.run(lambda: _act(options), 'stopped; nothing was written')


def _act(options: argparse.Namespace) -> None:
    if options.info and (options.target is not None or options.net or options.prototxt):
        raise CaffeError('--info looks at SRC alone: leave out DST, --net and --prototxt')
    with plugins.import_registered_only():
        print_layers(options) if options.info else convert(options)


if __name__ == '__main__':
    sys.exit(main())
