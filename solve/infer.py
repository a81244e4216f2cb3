"""Label every pixel of pictures with a trained net, at their own sizes."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from caffe_port import TEST, Net
from caffe_port.blob import shape_text
from caffe_port.errors import CaffeError, make_folder
from caffe_port.files import weights
from caffe_port.zoo import load_all
from solve.datasets import nyud, voc
from solve.datasets.images import bgr_blob, existing, read_rgb
from solve.run import experiments, options
from solve.run.counting import predict
from solve.run.pictures import save_labels, save_overlay

EXAMPLES = """
examples:
  infer.py voc_fcn8s fcn8s-heavy-pascal.caffemodel street.jpg dog.jpg --overlay
  infer.py siftflow_fcn16s siftflow.pth beach.jpg        (beach_sem.png and beach_geo.png)
  infer.py nyud_fcn32s_color_d nyud.caffemodel color.png depth.png
  infer.py deploy.prototxt weights.caffemodel picture.png --mean 104 117 123

Nets of two inputs take two files for every picture, in the order of their inputs: color and
depth (16-bit PNG, millimetres), or color and HHA. The labels take the first file's name.

exit status: 0, or 2 with one line `error: ...`, or 130 if stopped
"""

Read = Callable[[Path], np.ndarray]


def make_reader(net: str, top: str, mean_bgr: Sequence[float]) -> Read:
    """Return the function that reads a file as the input `top` of a net: 1 x C x H x W float32.

    As in the net's data layer, HHA's channels keep their order, depth becomes its logarithm,
    and all other pictures become BGR minus `mean_bgr`.
    """
    if top == 'depth':
        return lambda path: nyud.depth_blob(nyud.read_depth(path))
    if top == 'hha' or net == 'nyud_fcn32s_hha':
        return lambda path: bgr_blob(read_rgb(path)[:, :, ::-1], nyud.MEAN_HHA)
    return lambda path: bgr_blob(read_rgb(path), mean_bgr)


def infer(net: Net, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the best class of every pixel, H x W int64, by each output of the inputs' size.

    Raises CaffeError if the inputs do not have the net's channels and all one size, or no
    output has that size.
    """
    first = next(iter(inputs.values()))
    for top, array in inputs.items():
        expected = (1, net.blobs[top].channels, *first.shape[2:])
        if array.shape != expected:
            raise CaffeError(
                f'input {top}: expected {shape_text(expected)}, found {shape_text(array.shape)}'
            )
        net.blobs[top].reshape(*array.shape)
        net.blobs[top].data[...] = array
    with torch.no_grad():
        net.forward_range(0, len(net.layers) - 1)
    size = first.shape[2:]
    found = {name: predict(net, name) for name in net.outputs if net.blobs[name].shape[2:] == size}
    if not found:
        raise CaffeError(
            f'net "{net.name}": no output is of the image\'s size, '
            f'{shape_text(size)}; its outputs are {", ".join(net.outputs)}'
        )
    return found


def describe(best: np.ndarray, names: Sequence[str]) -> str:
    """List the classes in a prediction, the largest first, with their shares of the pixels."""
    numbers, counts = np.unique(best, return_counts=True)
    return ', '.join(
        f'{names[numbers[i]]} {counts[i] / best.size:.1%}'
        for i in np.argsort(-counts, kind='stable')
    )


def make_net(args: argparse.Namespace) -> Net:
    """Make the net that a command line names, with its weights."""
    layers = weights.read(args.weights)
    net = Net(experiments.make_net(args.net, 'deploy', layers), TEST)
    if not net.inputs:
        raise CaffeError(
            f'{args.net}: no Input layer to put a picture into; take the deploy '
            "prototxt, or an experiment's name"
        )
    load_all(net, args.weights, layers)
    return net


def group_files(net: Net, images: Sequence[Path], output: Path) -> list[tuple[Path, ...]]:
    """Group files by picture, one for each input of the net.

    Raises CaffeError if one is missing, or labels would overwrite a file or other labels.
    """
    per = len(net.inputs)
    if len(images) % per:
        raise CaffeError(
            f'{len(images)} files given, {per} needed for each picture: ' + ', '.join(net.inputs)
        )
    groups = list(zip(*[iter(images)] * per))
    stems = [first.stem for first, *_ in groups]
    for path in images:
        existing(path)
        if path.suffix.lower() == '.png' and path.resolve().parent == output.resolve():
            raise CaffeError(f'{path}: is in the output folder; name another with --output')
    for stem in stems:
        if stems.count(stem) > 1:
            raise CaffeError(f'two pictures named {stem}: one would replace the other in {output}')
    return groups


def label_pictures(args: argparse.Namespace) -> None:
    """Do what a command line asks: label its pictures and print what is in them."""
    data = experiments.find_data(args.net)
    mean = args.mean or getattr(data, 'MEAN', voc.MEAN)
    net = make_net(args)
    readers = {top: make_reader(args.net, top, mean) for top in net.inputs}
    groups = group_files(net, args.images, args.output)
    output = make_folder(args.output)
    written: set[Path] = set()
    for files in groups:
        try:
            best = infer(
                net, {top: read(path) for (top, read), path in zip(readers.items(), files)}
            )
        except CaffeError as error:
            raise CaffeError(f'{files[0]}: {error}') from error
        for name, labels in best.items():
            suffix = '_' + name.removeprefix('score_') if len(best) > 1 else ''
            path = output / f'{files[0].stem}{suffix}.png'
            over = path.with_stem(path.stem + '_overlay')
            for made in (path, over):
                if made in written:
                    raise CaffeError(
                        f"{files[0]}: {made} is another picture's already; rename "
                        'one, or name another folder with --output'
                    )
                written.add(made)
            save_labels(labels, path)
            if args.overlay:
                save_overlay(read_rgb(files[0]), labels, over)
            names = experiments.name_classes(data, net.blobs[name].channels, args.weights)
            print(f'{path}: {describe(labels, names)}', flush=True)


def main() -> None:
    parser = options.make_net_parser(
        'infer.py', 'Label every pixel of pictures with a trained net.', EXAMPLES
    )
    add = parser.add_argument
    add('images', metavar='IMAGE', nargs='+', type=Path, help='JPEG or PNG, of any size')
    add(
        '--output',
        type=Path,
        default=Path('predictions'),
        metavar='DIR',
        help='folder for the labels of each picture, NAME.png (default: predictions)',
    )
    add(
        '--overlay',
        action='store_true',
        help='also write NAME_overlay.png: half picture, half colours',
    )
    add(
        '--mean',
        type=float,
        nargs=3,
        metavar=('B', 'G', 'R'),
        help="mean to subtract (default: the experiment's; for a prototxt, VOC's)",
    )
    options.run_net_command(parser, label_pictures)


if __name__ == '__main__':
    main()
