"""Label every pixel of pictures with a trained net, at their own sizes.

python solve/infer.py NET WEIGHTS IMAGE... writes the classes as palette PNGs.
"""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from caffe_port import TEST, Net
from caffe_port.blob import shape_text
from caffe_port.errors import CaffeError, make_folder, replacing
from caffe_port.files import weights
from solve.datasets import nyud, voc
from solve.datasets.images import bgr_blob, existing, read_rgb
from solve.run import trained
from solve.run.counting import predict, save_prediction

EXAMPLES = """
examples:
  infer.py voc_fcn8s fcn8s-heavy-pascal.caffemodel street.jpg dog.jpg --overlay
  infer.py siftflow_fcn16s siftflow.pth beach.jpg        (beach_sem.png and beach_geo.png)
  infer.py nyud_fcn32s_color_d nyud.caffemodel color.png depth.png
  infer.py deploy.prototxt weights.caffemodel picture.png --mean 104 117 123

Nets of two inputs take two files for every picture, in the order of their inputs: color and
depth (16-bit PNG, millimetres), or color and HHA. What is written bears the first one's name.

exit status: 0, or 2 with one line `error: ...`, or 130 if stopped
"""

Read = Callable[[Path], np.ndarray]


def reader(net: str, top: str, mean_bgr: Sequence[float]) -> Read:
    """How a file becomes the input `top` of a net: 1 x C x H x W float32, as its data layer does.

    HHA's channels stay as they are stored; all other pictures become BGR minus `mean_bgr`.
    """
    if top == 'depth':
        return lambda path: nyud.depth_blob(nyud.read_depth(path))
    if top == 'hha' or net == 'nyud_fcn32s_hha':
        return lambda path: bgr_blob(read_rgb(path)[:, :, ::-1], nyud.MEAN_HHA)
    return lambda path: bgr_blob(read_rgb(path), mean_bgr)


def infer(net: Net, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The best class of every pixel, H x W int64, by output that is of the inputs' size.

    Raises CaffeError for inputs that are not of the net's channels and all of one size.
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


def overlay(rgb: np.ndarray, best: np.ndarray, path: Path) -> None:
    """Write a picture (H x W x 3 uint8) with the classes' colours over it, half and half."""
    mixed = (rgb.astype(np.uint16) + voc.palette()[best]) // 2
    with replacing(path) as temporary:
        Image.fromarray(mixed.astype(np.uint8)).save(temporary, format='PNG')


def said(best: np.ndarray, names: Sequence[str]) -> str:
    """The classes that are there, the largest first, with their shares of the pixels."""
    numbers, counts = np.unique(best, return_counts=True)
    return ', '.join(
        f'{names[numbers[i]]} {counts[i] / best.size:.1%}'
        for i in np.argsort(-counts, kind='stable')
    )


def _net(args: argparse.Namespace) -> Net:
    layers = weights.read(args.weights)
    net = Net(trained.described(args.net, 'deploy', layers), TEST)
    if not net.inputs:
        raise CaffeError(
            f'{args.net}: no Input layer to put a picture into; take the deploy '
            "prototxt, or an experiment's name"
        )
    trained.load(net, args.weights, layers)
    return net


def _pictures(net: Net, images: Sequence[Path], output: Path) -> list[tuple[Path, ...]]:
    """The files of each picture; raises CaffeError before anything is computed."""
    per = len(net.inputs)
    if len(images) % per:
        raise CaffeError(
            f'{len(images)} files given, {per} needed for each picture: ' + ', '.join(net.inputs)
        )
    pictures = list(zip(*[iter(images)] * per))
    stems = [first.stem for first, *_ in pictures]
    for path in images:
        existing(path)
        if path.suffix.lower() == '.png' and path.resolve().parent == output.resolve():
            raise CaffeError(f'{path}: lies in the output folder; name another with --output')
    for stem in stems:
        if stems.count(stem) > 1:
            raise CaffeError(f'two pictures named {stem}: one would replace the other in {output}')
    return pictures


def _infer(args: argparse.Namespace) -> None:
    data = trained.data_of(args.net)
    mean = args.mean or getattr(data, 'MEAN', voc.MEAN)
    net = _net(args)
    pictures = _pictures(net, args.images, args.output)
    output, written = make_folder(args.output), set()
    for files in pictures:
        try:
            best = infer(
                net,
                {top: reader(args.net, top, mean)(path) for top, path in zip(net.inputs, files)},
            )
        except CaffeError as error:
            raise CaffeError(f'{files[0]}: {error}') from error
        for name, labels in best.items():
            suffix = '_' + name.removeprefix('score_') if len(best) > 1 else ''
            path = output / f'{files[0].stem}{suffix}.png'
            for made in (path, path.with_stem(path.stem + '_overlay')):
                if made in written:
                    raise CaffeError(
                        f"{files[0]}: {made} is another picture's already; rename "
                        'one, or name another folder with --output'
                    )
                written.add(made)
            save_prediction(labels, path)
            if args.overlay:
                overlay(read_rgb(files[0]), labels, path.with_stem(path.stem + '_overlay'))
            names = trained.class_names(data, net.blobs[name].channels)
            print(f'{path}: {said(labels, names)}', flush=True)


def main() -> None:
    parser = trained.parser(
        'infer.py', 'Label every pixel of pictures with a trained net.', EXAMPLES
    )
    add = parser.add_argument
    add('images', metavar='IMAGE', nargs='+', type=Path, help='JPEG or PNG, of any size')
    add(
        '--output',
        type=Path,
        default=Path('predictions'),
        metavar='DIR',
        help='where NAME.png goes for each picture (default: predictions)',
    )
    add(
        '--overlay',
        action='store_true',
        help='also write NAME_overlay.png, the colours over the picture',
    )
    add(
        '--mean',
        type=float,
        nargs=3,
        metavar=('B', 'G', 'R'),
        help="of the images trained on (default: the experiment's; for a prototxt, VOC's)",
    )
    trained.run(parser, _infer)


if __name__ == '__main__':
    main()
