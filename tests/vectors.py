"""Golden vectors recorded from Caffe, and how nets are compared with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import caffe_port as caffe
from caffe_port import prototxt

GOLDEN = Path(__file__).parent / 'golden'
FACTS = Path(__file__).parent / 'facts'


def load(path: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / path) as file:
        return dict(file)


def net_of(text: str, phase: int = caffe.TEST, force_backward: bool = False) -> caffe.Net:
    param = prototxt.parse_net(text)
    param.force_backward = param.force_backward or force_backward
    return caffe.Net(param, phase)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str = '') -> None:
    """Equal shapes, and equal values relative to the largest magnitude expected."""
    assert found.shape == expected.shape, what
    scale = np.abs(expected).max(initial=0)
    worst = np.abs(found.astype(np.float64) - expected).max(initial=0)
    assert worst <= tolerance * scale, f'{what}: {worst:.3g} apart at scale {scale:.3g}'


def check_layer(name: str, tolerance: float = 1e-5) -> None:
    """Compare forward, bottom diffs and param diffs of a one-layer net with Caffe's."""
    vector = load(f'layers/{name}.npz')
    phase = caffe.TRAIN if str(vector['phase']) == 'TRAIN' else caffe.TEST
    net = net_of(str(vector['prototxt']), phase)
    keyed = {key: key.split(':')[1:] for key in vector if ':' in key}
    for key, (blob, *rest) in keyed.items():
        if key.startswith('in:'):
            net.blobs[blob].data[...] = vector[key]
        if key.startswith('param:'):
            net.params[blob][int(rest[0])].data[...] = vector[key]
    net.forward()
    for key, (blob, *_) in keyed.items():
        if key.startswith('out:'):
            assert_close(net.blobs[blob].data, vector[key], tolerance, key)
        if key.startswith('topdiff:'):
            net.blobs[blob].diff[...] = vector[key]
    net.backward()
    for key, (blob, *rest) in keyed.items():
        if key.startswith('botdiff:'):
            assert_close(net.blobs[blob].diff, vector[key], tolerance, key)
        if key.startswith('pdiff:'):
            assert_close(net.params[blob][int(rest[0])].diff, vector[key], tolerance, key)
