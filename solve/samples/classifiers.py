"""Narrow classifiers for samples to start from, trained on windows of drawn scenes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import caffe_port as caffe
from caffe_port.proto.caffe_pb2 import NetParameter, SolverParameter
from nets import caffenet, googlenet, vgg16
from solve.datasets import voc
from solve.run.progress import show_progress
from solve.samples.windows import WindowSampler

# By name: the net, the smallest image whose last pooling has the size that the layer behind it
# needs (Caffe's pooling rounds up), its widths, and how many batches it is trained on.
CLASSIFIER_NETS: dict[str, tuple[Callable[..., NetParameter], int, dict[str, int], int]] = {
    'vgg16': (vgg16.classifier, 193, dict(width=8, fc=512), 130),
    'caffenet': (caffenet.classifier, 199, dict(width=24, fc=512), 150),
    'googlenet': (googlenet.classifier, 223, dict(width=16), 200),
}
# Layers between pixels and scores, where not all are one behind the other.
DEPTHS = {'googlenet': 22}
# Dropout takes a fifth of so few units: with a half the classifier learned more slowly.
DROP = 0.2
SCENES, BATCH = 300, 8
SOLVER: dict[str, Any] = dict(
    base_lr=0.01,
    lr_policy='poly',
    power=1,
    momentum=0.9,
    weight_decay=0.0005,
    clip_gradients=4,
    average_loss=20,
)
# About the size of a pixel's value; scores should be about 1.
PIXEL = 60


def make_net_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of fcn() that give an FCN the widths of a classifier of NETS."""
    return dict(CLASSIFIER_NETS[name][2], drop=DROP)


def train_classifier(name: str, weights: Path, seed: int) -> None:
    """Train a classifier of NETS to name the object in the middle and save it as a caffemodel."""
    net, size, widths, rounds = CLASSIFIER_NETS[name]
    caffe.set_random_seed(seed)
    windows = WindowSampler(SCENES, size, seed)
    param = SolverParameter(max_iter=rounds, **SOLVER)
    param.train_net_param.CopyFrom(_to_train(net(len(voc.CLASSES), **widths), size))
    solver = caffe.SGDSolver(param)
    # msra keeps a signal's size through a layer. Here each layer takes an equal share of the
    # way from pixels to scores, which also balances the layers' gradients.
    gain = PIXEL ** (-1 / DEPTHS.get(name, len(solver.net.params)))
    for weight, _ in solver.net.params.values():
        weight.data[...] *= gain
    with show_progress(range(rounds), desc=f'narrow {name} classifier', leave=False) as bar:
        for _ in bar:
            (solver.net.blobs['data'].data[...], solver.net.blobs['label'].data[...]) = (
                windows.batch(BATCH)
            )
            solver.step(1)
    solver.net.save(weights)
    print(f'Classifier trained: loss {solver.smoothed_loss:.3f}, saved to {weights}')


def _to_train(net: NetParameter, size: int) -> NetParameter:
    """Give a deploy net batches of images and labels, random fillers and a loss."""
    net.layer[0].input_param.shape[0].dim[:] = [BATCH, 3, size, size]
    for layer in net.layer:
        for kind in ('convolution_param', 'inner_product_param'):
            if layer.HasField(kind):
                getattr(layer, kind).weight_filler.type = 'msra'
        if layer.HasField('dropout_param'):
            layer.dropout_param.dropout_ratio = DROP
    scores = net.layer[-2].top[0]
    del net.layer[-1]  # the probabilities
    label = net.layer.add(name='label', type='Input', top=['label'])
    label.input_param.shape.add(dim=[BATCH])
    net.layer.add(name='loss', type='SoftmaxWithLoss', bottom=[scores, 'label'], top=['loss'])
    return net
