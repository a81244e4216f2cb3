"""The layers that net files share. Decisions stay in the net files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from caffe_port import command, prototxt
from caffe_port.coord_map import coord_map_from_to
from caffe_port.errors import CaffeError, make_folder
from caffe_port.net_spec import Top
from caffe_port.net_spec import layers as L
from caffe_port.net_spec import params as P
from caffe_port.proto import caffe_pb2

# Weights learn at the solver's rate, biases at twice that and without decay.
LEARNT = [dict(lr_mult=1, decay_mult=1), dict(lr_mult=2, decay_mult=0)]
FIXED = [dict(lr_mult=0)]


def conv_relu(
    bottom: Top, nout: int, ks: int = 3, stride: int = 1, pad: int = 1
) -> tuple[Top, Top]:
    """Make a learnt convolution and its ReLU in place."""
    conv = L.Convolution(
        bottom, kernel_size=ks, stride=stride, num_output=nout, pad=pad, param=LEARNT
    )
    return conv, L.ReLU(conv, in_place=True)


def max_pool(bottom: Top, ks: int = 2, stride: int = 2) -> Top:
    return L.Pooling(bottom, pool=P.Pooling.MAX, kernel_size=ks, stride=stride)


def lrn(bottom: Top) -> Top:
    """Normalise responses over five channels, as CaffeNet, AlexNet and GoogLeNet do."""
    return L.LRN(bottom, local_size=5, alpha=0.0001, beta=0.75)


def dropout(bottom: Top, ratio: float = 0.5) -> Top:
    """Drop a share of the elements, in place."""
    return L.Dropout(bottom, dropout_ratio=ratio, in_place=True)


def score(bottom: Top, classes: int) -> Top:
    """Make a learnt 1 x 1 convolution to one channel per class."""
    return L.Convolution(bottom, num_output=classes, kernel_size=1, pad=0, param=LEARNT)


def upsample(bottom: Top, classes: int, ks: int, stride: int) -> Top:
    """Make a fixed deconvolution; surgery.interp fills in the bilinear kernel."""
    return L.Deconvolution(
        bottom,
        param=FIXED,
        convolution_param=dict(num_output=classes, kernel_size=ks, stride=stride, bias_term=False),
    )


def scale(bottom: Top, factor: float) -> Top:
    """Multiply by a fixed factor."""
    return L.Scale(bottom, filler=dict(type='constant', value=factor), param=FIXED)


def add(first: Top, second: Top) -> Top:
    return L.Eltwise(first, second, operation=P.Eltwise.SUM)


def pixel_loss(scores: Top, label: Top, normalize: bool = False) -> Top:
    """Make the softmax loss over all pixels whose label is not 255."""
    return L.SoftmaxWithLoss(scores, label, loss_param=dict(normalize=normalize, ignore_label=255))


def sampled_loss(
    scores: Top, label: Top, coarse: Top, normalize: bool = False, **options: Any
) -> Top:
    """Make surgery.losses.PixelLoss: the pixel loss with the options that the papers tried.

    Its cells are the pixels of `coarse`, each with the pixels of `scores` that are nearest to it.
    """
    _, scale, shift = coord_map_from_to(scores, coarse)
    stride = int(1 / scale[0])
    # Pixel x is nearest to the cell round(scale * x + shift).
    start = int((stride * shift[0] + stride / 2) // 1)
    settings = dict(normalize=normalize, cells=(stride, start), **options)
    return L.Python(
        scores,
        label,
        module='surgery.losses',
        layer='PixelLoss',
        loss_weight=1,
        param_str=repr(settings),
    )


def write_prototxts(fcn: Callable[[str], caffe_pb2.NetParameter], **splits: str) -> None:
    """Run a net file as a script: write `<name>.prototxt` for each name=split, and the deploy net.

    --output names their folder, by default the current one. Files that are there are replaced
    with --force alone; without it nothing is written.
    """
    splits = {**splits, 'deploy': 'deploy'}
    files = [f'{name}.prototxt' for name in splits]
    script = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(
        description=f'examples:\n  python nets/{script}\n'
        f'  python nets/{script} --output there --force\n\n'
        f'Write {", ".join(files[:-1])} and {files[-1]}.',
        epilog=command.STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--output', type=Path, default=Path('.'), metavar='DIR', help='where to (default: here)'
    )
    parser.add_argument('--force', action='store_true', help='replace files that are there')
    options = parser.parse_args()

    def write() -> None:
        folder = make_folder(options.output)
        there = [str(folder / file) for file in files if (folder / file).exists()]
        if there and not options.force:
            verb = (
                'exists; --force replaces it' if len(there) == 1 else 'exist; --force replaces them'
            )
            raise CaffeError(f'{", ".join(there)} {verb}')
        for name, split in splits.items():
            prototxt.write(fcn(split), folder / f'{name}.prototxt')

    if status := command.run(write):
        sys.exit(status)
