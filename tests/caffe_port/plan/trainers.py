"""A small net in training, by stretches or layer by layer, and what a step makes of it."""

from __future__ import annotations

import numpy as np

import caffe_port as caffe
from tests.caffe_port.plan.forced import assert_near, drawn

SIZE = 23, 17


def filled(net: caffe.Net, size=SIZE, seed=0) -> caffe.Net:
    rng = np.random.RandomState(seed)
    for name in net.inputs:
        shape = 1, net.blobs[name].channels, *size
        net.blobs[name].reshape(*shape)
        label = name == 'label'
        net.blobs[name].data[...] = rng.randint(0, 3, shape) if label else rng.randn(*shape) * 50
    return net


def trainer(name='voc_fcn32s', **widths) -> caffe.Net:
    return filled(drawn(name, 'val', caffe.TRAIN, drop=0.0, **widths))


def by_layer(act, *args):
    """Return act(a net that computes layer by layer)."""
    caffe.set_plan(False)
    try:
        return act(trainer(*args))
    finally:
        caffe.set_plan(True)


def forward_backward(net: caffe.Net) -> caffe.Net:
    net.clear_param_diffs()
    net.forward()
    net.backward()
    return net


def diffs_of(net: caffe.Net) -> dict[str, np.ndarray]:
    return {
        f'{layer} {i}': blob.diff.copy()
        for layer, blobs in net.params.items()
        for i, blob in enumerate(blobs)
    }


def assert_same_diffs(net: caffe.Net, expected: caffe.Net) -> None:
    for what, diff in diffs_of(expected).items():
        assert_near(diffs_of(net)[what], diff, 1e-4, what)
