"""Adapt the release's training to other data: learning rate, iterations, initial weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import surgery
from caffe_port import Net
from caffe_port.errors import CaffeError
from caffe_port.files import weights
from caffe_port.proto.caffe_pb2 import NetParameter
from solve.run.loading import FileBlob

# What a picture of SBD, which the official nets of VOC train on, has: 500 x 375 pixels.
VOC_PIXELS, VOC_IMAGES, VOC_ITERATIONS = 500 * 375, 8498, 100000
FEWEST, ROUNDS = 4000, 10
# The release trains score_pool4 at 1e-12 (FCN-16s) and score_pool3 at 1e-14 (FCN-8s), where
# score_fr learns at 1e-10: these features are larger.
FINER = {'score_pool4': 1e-2, 'score_pool3': 1e-4}


@dataclass(frozen=True)
class ScaledConstants:
    """Solver constants, and the lines that say why they are so."""

    constants: dict[str, Any]
    why: list[str]


def scale_constants(
    published: Mapping[str, Any],
    summed: bool,
    images: int,
    pixels: float,
    iterations: int | None = None,
    base_lr: float | None = None,
) -> ScaledConstants:
    """Scale `published` solver constants to `images` with `pixels` labelled pixels each.

    A `summed` loss grows with the pixels, so that its rate must fall with them.
    """
    lr, momentum = published['base_lr'], published['momentum']
    batch = published['iter_size']
    if base_lr is not None:
        rate, reason = base_lr, 'as --base-lr says'
    elif summed:
        rate = lr * VOC_PIXELS / max(pixels, 1)
        reason = (
            f'the release has {lr:g} for pictures of 500 x 375; the loss is a sum over pixels, '
            f'and these pictures have {pixels:,.0f} labelled ones'
        )
    else:
        rate, reason = lr, 'as published: the loss is a mean over pixels'
    passes = VOC_ITERATIONS / VOC_IMAGES
    count = iterations or min(max(round(passes * images), FEWEST), VOC_ITERATIONS)
    step = max(-(-count // ROUNDS), 1)
    effective = batch / (1 - momentum)
    constants = {
        **published,
        'base_lr': rate,
        'max_iter': count,
        'snapshot': step,
        'display': min(published['display'], step),
    }
    why = [
        f'rate        {rate:.3g}: {reason}',
        f'momentum    {momentum:g}, {batch} image{"s" * (batch > 1)} an iteration: a step '
        f'averages over about the last {effective:,.0f} images'
        + (f', more than the {images} there are' if effective > images else ''),
        f'iterations  {count}, {count * batch / images:.1f} times over {images} images'
        + (f' (the release: {passes:.1f} times; at least {FEWEST})' if not iterations else '')
        + f'; scored and saved every {step}',
    ]
    return ScaledConstants(constants, why)


def find_class_layers(
    fcn: Callable[..., NetParameter], classes: int
) -> tuple[list[str], list[str]]:
    """Return the names of a net's score layers, and of its upsampling.

    They are the convolutions and deconvolutions whose outputs change with the classes.
    """
    nets = [fcn('deploy', classes=count).layer for count in (classes, classes + 1)]
    changed = [
        one
        for one, other in zip(*nets)
        if one.convolution_param.num_output != other.convolution_param.num_output
    ]
    return (
        [layer.name for layer in changed if layer.type == 'Convolution'],
        [layer.name for layer in changed if layer.type == 'Deconvolution'],
    )


def start_from(
    net: Net, path: Path, scores: Sequence[str], ups: Sequence[str], keep_classes: bool
) -> None:
    """Carry the weights of a file over to a net with other classes.

    All layers are transplanted but `scores`, which stay 0 as the release starts them or, with
    `keep_classes`, get the file's classes as their first ones, and `ups`, which become bilinear.

    Raises CaffeError, naming `path`, if the file lacks a layer of the trunk, or a layer of
    another size has the name of one of the net.
    """
    params = {
        layer.name: [FileBlob(blob) for blob in layer.blobs]
        for layer in weights.read(path)
        if layer.name in net.params
    }
    anew = {*scores, *ups}
    lacking = [
        name for name in net.params if name.startswith(('conv', 'fc')) and name not in params
    ]
    if lacking:
        raise CaffeError(f'{path}: lacks {", ".join(lacking)} of the net')
    if keep_classes and not any(name in params for name in scores):
        raise CaffeError(f'{path}: no classes to keep: it lacks {", ".join(scores)}')
    source = SimpleNamespace(params=params)
    try:
        surgery.transplant(
            net, SimpleNamespace(params={name: v for name, v in params.items() if name not in anew})
        )
        kept = [name for name in scores if keep_classes and name in params]
        for name in kept:
            surgery.expand_score(net, name, source, name)
    except CaffeError as error:
        raise CaffeError(f'{path}: {error}') from error
    surgery.interp(net, ups)
    for names, how in (
        (kept, 'start with the old classes first, new ones at 0'),
        ([name for name in scores if name not in kept], 'start at 0'),
        (ups, 'are bilinear'),
    ):
        if names:
            print(f'{", ".join(names)} {how}')
