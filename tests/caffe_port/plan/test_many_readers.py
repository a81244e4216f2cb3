"""Blobs that two layers read, of which one may write over its bottom: by plan as layer by layer.

Caffe's Split layers hand each reader a copy, so that the order of the layers in the prototxt
decides what each of them reads.
"""

import numpy as np
import pytest
import torch

import caffe_port as caffe
from tests.caffe_port.plan.forced import assert_near, force
from tests.caffe_port.plan.small import conv, in_place, layer, net_of


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    force(monkeypatch)


A, RELU_A, DROP_A = conv('a', 'data'), in_place('ReLU', 'a'), in_place('Dropout', 'a')
NETS = {
    'ReLU, reader': A + RELU_A + conv('b', 'a') + layer('Eltwise', 'c', 'a', 'b'),
    'reader, ReLU': A + conv('b', 'a') + RELU_A + layer('Eltwise', 'c', 'a', 'b'),
    'reader, ReLU, reader': A
    + conv('b', 'a')
    + RELU_A
    + conv('d', 'a')
    + layer('Eltwise', 'c', 'd', 'b'),
    'inside': conv('z', 'data')
    + in_place('ReLU', 'z')
    + conv('a', 'z')
    + conv('b', 'a')
    + in_place('ReLU', 'b')
    + RELU_A
    + layer('Eltwise', 'c', 'a', 'b'),
    'ReLU, reader, Dropout': A + RELU_A + conv('b', 'a') + DROP_A + layer('Eltwise', 'c', 'a', 'b'),
    'reader, ReLU, Dropout': A + conv('b', 'a') + RELU_A + DROP_A + layer('Eltwise', 'c', 'a', 'b'),
    'across': A
    + conv('b', 'a')
    + RELU_A
    + conv('d', 'b')
    + in_place('ReLU', 'd')
    + layer('Eltwise', 'c', 'a', 'd'),
    'twice': A + RELU_A + RELU_A + conv('c', 'a'),
    'of the data': A
    + in_place('ReLU', 'data')
    + conv('b', 'data')
    + layer('Eltwise', 'c', 'a', 'b'),
}


def run(layers: str, phase: int, held: list[str]) -> dict[str, np.ndarray]:
    """Return what all blobs and params hold after a step, while arrays of some are held."""
    net = net_of(layers + conv('top', 'c', 1), phase)
    arrays = [net.blobs[name].data for name in held]
    caffe.set_random_seed(4)
    net.forward()
    net.blobs['top'].diff[...] = np.random.RandomState(6).randn(*net.blobs['top'].shape)
    net.backward()
    found = {f'{name} {i}': b.diff for name, bs in net.params.items() for i, b in enumerate(bs)}
    for name, blob in net.blobs.items():
        found.update({name: blob.data, f'diff of {name}': blob.diff})
    for name, array in zip(held, arrays):
        assert net.blobs[name].data is array
    return {what: array.copy() for what, array in found.items()}


@pytest.mark.parametrize('phase', [caffe.TRAIN, caffe.TEST])
@pytest.mark.parametrize('layers', NETS.values(), ids=NETS)
def test_steps_are_those_of_the_layers_whoever_holds_arrays(layers, phase):
    caffe.set_plan(False)
    expected = run(layers, phase, [])
    for on in (False, True):
        caffe.set_plan(on)
        for held in ([], ['a'], ['data', 'c']):
            found = run(layers, phase, held)
            for what, array in expected.items():
                assert_near(found[what], array, 1e-4 if 'diff' in what else 1e-5, what)


@pytest.mark.parametrize('layers', NETS.values(), ids=NETS)
def test_outputs_are_those_of_the_layers(layers):
    net = net_of(layers + conv('top', 'c', 1), caffe.TEST)
    data = torch.randn(2, 3, 12, 11, generator=torch.Generator().manual_seed(5))
    found = []
    for on in (False, True):
        caffe.set_plan(on)
        with torch.no_grad():
            found.append(net.module(data=data.clone())['top'])
    assert_near(found[1], found[0])
