"""Shared by the tests of data layers: run a layer as a net does, and make files to feed it."""

import json
from pathlib import Path

import numpy as np

import caffe_port as caffe
from caffe_port import Blob
from nets import vgg16
from tests.vectors import FACTS

GIF = b'GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;'
BROKEN = {
    'empty': lambda whole: b'',
    'truncated': lambda whole: whole[: len(whole) * 3 // 5],
    'head only': lambda whole: whole[:20],
    'random': lambda whole: np.random.RandomState(0).bytes(len(whole)),
    'of another kind': lambda whole: GIF,
}


def make(layer_class, count, /, **params):
    """Set up a layer of `count` tops as a net does: setup, then one reshape."""
    layer, blobs = layer_class(), [Blob() for _ in range(count)]
    layer.param_str = repr(params)
    layer.setup([], blobs)
    layer.reshape([], blobs)
    return layer, blobs


def step(layer, blobs):
    """Run one forward pass; return the id that was fed."""
    layer.reshape([], blobs)
    layer.forward([], blobs)
    return layer.current


def fed(layer, blobs, count):
    return [step(layer, blobs) for _ in range(count)]


def noise(name, *shape):
    """Return uint8 noise, the same for the same id."""
    seed = sum(map(ord, name))
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def facts(data_set):
    return json.loads((FACTS / 'datasets.json').read_text())[data_set]


def official_params(module):
    """Return param_str and number of tops of every official layer of a module."""
    nets = json.loads((FACTS / 'official_nets.json').read_text())
    return [
        (dict(layer['python_param']['param_str']), len(layer['top']))
        for net in nets.values()
        for phase in ('train_net', 'test_net')
        for layer in net[phase]
        if layer['type'] == 'Python' and layer['python_param']['module'] == module
    ]


def random_classifier(path: Path, width: int = 2, fc: int = 8) -> Path:
    """Save a narrow VGG16 classifier of random weights."""
    random, net = (
        np.random.RandomState(3),
        caffe.Net(vgg16.classifier(21, width, fc, size=193, batch=1), caffe.TEST),
    )
    for weight, _ in net.params.values():
        fan_in = np.prod(weight.shape[1:])
        weight.data[...] = random.randn(*weight.shape) * np.sqrt(2 / fan_in)
    net.save(path)
    return path
