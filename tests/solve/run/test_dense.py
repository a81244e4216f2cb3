"""Scores for every few pixels in place of a net's upsampling, and infer.py --dense."""

import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

import caffe_port as caffe
import surgery
from nets import (
    nyud_fcn32s_color_hha,
    siftflow_fcn32s,
    voc_fcn8s,
    voc_fcn16s,
    voc_fcn32s,
    voc_fcn_alexnet,
    voc_fcn_googlenet,
)
from solve import infer
from solve.datasets import voc
from solve.run import dense, labelling
from tests.solve.feeding import noise
from tests.solve.scored import NARROW, call


@functools.cache
def make(module, **widths):
    """A narrow net of random weights, and with bilinear upsampling."""
    caffe.set_random_seed(0)
    net, rng = caffe.Net(module.fcn('deploy', **(widths or NARROW)), caffe.TEST), drawn_from(8)
    for name, blobs in net.params.items():
        for blob in blobs if 'up' not in name else ():
            fan_in = max(blob.count // blob.shape[0], 1)
            blob.data[...] = rng.randn(*blob.shape) * np.sqrt(2 / fan_in)
    surgery.interp(net, [name for name in net.params if 'up' in name])
    return net


def drawn_from(seed):
    return np.random.RandomState(seed)


def drawn(height, width, channels=3, seed=0):
    image = drawn_from(seed).randn(1, channels, height, width) * 50
    return image.astype(np.float32)


def own(net, image, name='score'):
    net.blobs['data'].reshape(*image.shape)
    net.blobs['data'].data[...] = image
    return net.forward()[name].copy()


def apart(found, expected):
    return float(abs(found - expected).max() / abs(expected).max())


@pytest.mark.parametrize(
    'module, widths',
    [(voc_fcn32s, {}), (voc_fcn_alexnet, {}), (voc_fcn_googlenet, dict(width=4))],
    ids=['32s', 'alexnet', 'googlenet'],
)
def test_at_the_nets_own_stride_it_is_the_nets_own_upsampling(module, widths):
    net, image = make(module, **widths), drawn(70, 101)
    expected = own(net, image)
    for way in dense.WAYS:
        made = dense.Dense(net, ['score'], 32, way)
        found = made.compute({'data': torch.from_numpy(image)})['score'].numpy()
        # Beyond the centres of the outermost scores Caffe's fade, alike for all classes.
        coarse = net.blobs['score_fr'].shape[2:]
        top, left = (max(math.ceil(first), 0) for first in made.centre)
        bottom, right = (int(c + 32 * (count - 1)) for c, count in zip(made.centre, coarse))
        inner = np.s_[..., top : bottom + 1, left : right + 1]
        assert found[inner].size and apart(found[inner], expected[inner]) < 1e-5
        assert np.array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize('module, border', [(voc_fcn32s, 102), (voc_fcn_alexnet, 78)])
def test_both_ways_agree_where_no_padding_but_the_first_is_seen(module, border):
    """A score sees 202 pixels to each side (AlexNet's 177); the first layer pads by 100."""
    net, image = make(module), drawn(236, 261)
    rarefied, stitched = (
        dense.Dense(net, ['score'], 8, way)
        .compute({'data': torch.from_numpy(image)})['score']
        .numpy()
        for way in dense.WAYS
    )
    inner = np.s_[..., border:-border, border:-border]
    assert rarefied[inner].size and apart(rarefied[inner], stitched[inner]) < 1e-5
    assert apart(rarefied, stitched) > 1e-3, 'the border is where they differ'
    assert apart(rarefied[inner], own(net, image)[inner]) > 1e-3, 'finer than the net itself'


def test_nets_of_two_outputs_and_of_two_inputs_are_dense_too():
    net, image = make(siftflow_fcn32s), torch.from_numpy(drawn(40, 52))
    found = dense.Dense(net, ['score_sem', 'score_geo'], 16, 'rarefy').compute({'data': image})
    assert {name: tuple(top.shape) for name, top in found.items()} == {
        'score_sem': (1, 33, 40, 52),
        'score_geo': (1, 3, 40, 52),
    }
    net = make(nyud_fcn32s_color_hha)
    made = dense.Dense(net, ['score'], 16, 'stitch')
    inputs = {name: torch.from_numpy(drawn(40, 52, seed=i)) for i, name in enumerate(net.inputs)}
    first = made.compute(inputs)['score']
    assert first.shape == (1, 40, 40, 52)
    inputs['hha'] = inputs['hha'] + 30
    assert not torch.equal(made.compute(inputs)['score'], first)


def test_interpolation_is_linear_between_centres_and_constant_beyond():
    coarse = torch.tensor([[1.0, 5.0, 4.0], [3.0, 7.0, 6.0]])[None, None]
    found = dense.interpolate(coarse, 4, (Fraction(-1), Fraction(3, 2)), (5, 12))[0, 0]
    across = np.interp(np.arange(12), [1.5, 5.5, 9.5], [1, 5, 4])
    down = np.interp(np.arange(5), [-1, 3], [0, 2])
    np.testing.assert_allclose(found.numpy(), down[:, None] + across, rtol=1e-6)


def test_nets_that_cannot_be_dense_are_refused_by_name():
    for module, layers in (
        (voc_fcn16s, 'upscore2, upscore16'),
        (voc_fcn8s, 'upscore2, upscore_pool4, upscore8'),
    ):
        with pytest.raises(caffe.CaffeError, match=f'a net that upsamples once.*by {layers}$'):
            dense.Dense(make(module), ['score'], 8, 'rarefy')
    net = make(voc_fcn32s)
    for stride in (0, -8, 5, 64):
        for way in dense.WAYS:
            with pytest.raises(
                caffe.CaffeError, match=f'--dense {stride}: expected a divisor.* 32'
            ):
                dense.Dense(net, ['score'], stride, way)
    with pytest.raises(caffe.CaffeError, match=r'Deconvolution at the end.*score_fr \(Convolution'):
        dense.find_coarse(net.module.param, 'score_fr')


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise('a', 90, 131, 3)).save('a.png')
    return tmp_path


def infer_pictures(monkeypatch, *options):
    status = call(monkeypatch, infer.main, 'voc_fcn32s', 'w.caffemodel', 'a.png', *options)
    return status, np.array(Image.open('predictions/a_labels.png')) if not status else None


def test_infer_labels_by_dense_scores_and_keeps_no_others_results(pictures, monkeypatch, capsys):
    net = make(voc_fcn32s)
    net.save('w.caffemodel')
    image = labelling.make_reader('voc_fcn32s', 'data', voc.MEAN)(pictures / 'a.png')
    found = {(): infer_pictures(monkeypatch)[1]}
    for way in dense.WAYS:
        options = ('--dense', 8, '--dense-by', way)
        status, found[way] = infer_pictures(monkeypatch, *options)
        scores = dense.Dense(net, ['score'], 8, way).compute({'data': torch.from_numpy(image)})
        assert status == 0 and np.array_equal(found[way], scores['score'][0].argmax(0))
        assert 'kept' not in capsys.readouterr().err
        infer_pictures(monkeypatch, *options)
        assert '1 kept from before' in capsys.readouterr().err
    assert not np.array_equal(found[()], found['rarefy'])
    assert not np.array_equal(found['stitch'], found['rarefy'])


@pytest.mark.parametrize(
    'options, words',
    [
        (['--dense', 7], '--dense 7: expected a divisor of the stride of the scores, 32'),
        (['--dense-by', 'stitch'], '--dense-by stitch: --dense says how far apart'),
        (['--dense', 8, '--max-memory', '1M'], 'a.png: a picture of 90 x 131 takes about'),
    ],
)
def test_infer_says_what_it_cannot_do_densely(options, words, pictures, monkeypatch, capsys):
    make(voc_fcn32s).save('w.caffemodel')
    assert infer_pictures(monkeypatch, *options)[0]
    assert f'error: {words}' in capsys.readouterr().err


def test_a_score_that_is_not_finite_names_its_layer():
    net = make.__wrapped__(voc_fcn32s)  # its own
    net.params['fc7'][1].data[0] = np.inf
    picture = {'data': torch.from_numpy(drawn(30, 40))}
    for way in dense.WAYS:
        with pytest.raises(caffe.CaffeError, match=r'first layer with such values is fc7'):
            dense.Dense(net, ['score'], 16, way).label(picture).fetch()
