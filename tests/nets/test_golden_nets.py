"""Full-width nets against Caffe's values and gradients, and all nets' shapes at every size."""

import importlib
import json
from collections.abc import Iterable

import numpy as np
import pytest
import torch

import caffe_port as caffe
from nets import voc_fcn32s
from tests.vectors import FACTS, GOLDEN, load

SHAPES = json.loads((GOLDEN / 'blob_shapes.json').read_text())


def bilinear(size: int) -> np.ndarray:
    """The kernel from its definition: a triangle of half-width `factor` around the centre."""
    factor = (size + 1) // 2
    center = (size - 1) / 2
    line = 1 - np.abs(np.arange(size) - center) / factor
    return np.outer(line, line)


def fed(name: str, draw) -> caffe.Net:
    """The val net of an experiment with Input layers for the tops that `draw` gives shapes to."""
    module = importlib.import_module('nets.' + name.replace('-', '_'))
    facts = json.loads((FACTS / 'official_nets.json').read_text())[name]
    split = facts['test_net'][0]['python_param']['param_str']['split']
    param = module.fcn(split)
    data = param.layer[0]
    data.type = 'Input'
    data.ClearField('python_param')
    for top in data.top:
        data.input_param.shape.add().dim.extend(draw(top))
    param.force_backward = True
    return caffe.Net(param, caffe.TEST)


def draw_weights(net: caffe.Net, rng: np.random.RandomState, drawn: Iterable[str] = ()) -> None:
    """The recipe of the recording: He weights, bilinear upsampling, fillers where scaled.

    Layers named in `drawn` have their weights already.
    """
    for name, blobs in net.params.items():
        if 'scale' in name or name in drawn:
            continue
        if 'up' in name:
            blobs[0].data[...] = 0
            diagonal = range(blobs[0].shape[0])
            blobs[0].data[diagonal, diagonal] = bilinear(blobs[0].shape[2])
            continue
        shape = blobs[0].shape
        blobs[0].data[...] = rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        blobs[1].data[...] = rng.randn(*blobs[1].shape) * 0.1


def assert_summary(array: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Hold a tensor against [L2 norm, first 4 values, last 4 values]."""
    flat = array.ravel()
    parts = (flat[i : i + (1 << 20)].astype(np.float64) for i in range(0, flat.size, 1 << 20))
    norm = np.sqrt(sum(np.dot(part, part) for part in parts))
    assert norm == pytest.approx(expected[0], rel=1e-4), what
    ends = np.concatenate([flat[:4], flat[-4:]]).astype(np.float64)
    largest = max(flat.max(), -flat.min())
    assert np.abs(ends - expected[1:]).max() <= 1e-4 * largest, what


@pytest.fixture(scope='module')
def trunk():
    """VGG16 up to fc7, with which all four recordings begin; the seed, and the stream after it."""
    param = voc_fcn32s.fcn('deploy')
    names = [layer.name for layer in param.layer]
    del param.layer[names.index('fc7') + 1 :]
    net, seed = caffe.Net(param, caffe.TEST), 1337
    rng = np.random.RandomState(seed)
    draw_weights(net, rng)
    return net, seed, rng.get_state()


def assert_scores(net: caffe.Net, vector) -> None:
    """Hold scores, classes and loss against Caffe's."""
    score = net.blobs['score'].data
    expected = vector['out:score']
    tolerance = 1e-4 * np.abs(expected).max()
    assert np.abs(score[:, :, ::7, ::7] - expected).max() <= tolerance
    argmax = score[0].argmax(0)
    best = np.sort(score[0], 0)
    near = best[-1] - best[-2] < 2 * tolerance
    assert ((argmax == vector['argmax:score']) | near).all()
    # Caffe adds up the loss in float32, pixel by pixel: 1e-4 covers it at this size.
    assert float(net.blobs['loss'].data) == pytest.approx(float(vector['out:loss']), rel=1e-4)


@pytest.mark.parametrize('name', ['voc-fcn32s', 'voc-fcn16s', 'voc-fcn8s', 'voc-fcn8s-atonce'])
def test_full_width_values_and_gradients_are_caffes(name, trunk):
    drawn, seed, state = trunk
    vector = load(f'nets/{name}.npz')
    height, width = vector['size']
    net = fed(name, lambda top: (1, 1 if top == 'label' else 3, height, width))
    assert seed == vector['seed']
    rng = np.random.RandomState()
    rng.set_state(state)
    net.share_with(drawn)
    draw_weights(net, rng, drawn.params)
    net.blobs['data'].data[...] = rng.randn(1, 3, height, width) * 50
    label = rng.randint(0, 21, (1, 1, height, width))
    label[rng.rand(1, 1, height, width) < 0.1] = 255
    net.blobs['label'].data[...] = label
    net.forward()
    assert_scores(net, vector)
    net.backward()
    for key in vector:
        kind, _, blob = key.partition(':')
        if kind == 'pdiff':
            layer, i = blob.split(':')
            assert_summary(net.params[layer][int(i)].diff, vector[key], key)
        elif kind == 'botdiff':
            assert_summary(net.blobs[blob].diff, vector[key], key)
    # Without gradients the whole net is computed by a plan.
    with torch.no_grad():
        net.forward()
    assert net.blobs['conv1_1'].is_postponed
    assert_scores(net, vector)


def without_split(blob: str, net: caffe.Net) -> str:
    """The blob that Caffe's `<blob>_<layer>_<top>_split_<i>` is a copy of."""
    if '_split_' not in blob:
        return blob
    return max((name for name in net.blobs if blob.startswith(name + '_')), key=len)


@pytest.mark.parametrize('name', sorted(SHAPES))
def test_blob_shapes_are_caffes_at_every_size(name):
    net = fed(
        name,
        lambda top: (
            (1, 1, 16, 29) if 'label' in top or top in ('sem', 'geo', 'depth') else (1, 3, 16, 29)
        ),
    )
    for size, blobs in SHAPES[name].items():
        for top in net.inputs:
            net.blobs[top].reshape(1, net.blobs[top].channels, int(size), int(size) + 13)
        net.reshape()
        for blob, shape in blobs.items():
            found = net.blobs[without_split(blob, net)].shape
            assert list(found[2:]) == shape, (size, blob)


@pytest.mark.parametrize('name', sorted(SHAPES))
def test_a_deployed_net_scores_every_pixel_of_an_image_of_any_size(name):
    module = importlib.import_module('nets.' + name.replace('-', '_'))
    net = caffe.Net(module.fcn('deploy', width=4, fc=4), caffe.TEST)
    draw_weights(net, np.random.RandomState(0))
    for size in (1, 1), (37, 70):
        for top in net.inputs:
            net.blobs[top].reshape(1, net.blobs[top].channels, *size)
            net.blobs[top].data[...] = 50
        scores = net.forward()
        assert all(name.startswith('score') for name in scores)
        assert all(
            values.shape[2:] == size and values.any((0, 1)).all() for values in scores.values()
        )
