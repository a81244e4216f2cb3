"""Classifiers and their fully convolutional forms compute the same; so does what surgery begins."""

import functools
import importlib

import numpy as np
import pytest

import caffe_port as caffe
import surgery
from caffe_port.proto.caffe_pb2 import NetParameter, V1LayerParameter
from nets import caffenet, googlenet, vgg16
from tests.conversion import run
from tests.vectors import assert_close

# How narrow each net is; its size in training; the blob its classifying layers begin at,
# the first of them, and the window of that blob which they see.
VGG16 = (vgg16, dict(width=2, fc=8), 224, 'pool5', 'fc6', 7)
CAFFENET = (caffenet, dict(width=6, fc=8), 227, 'pool5', 'fc6', 6)
GOOGLENET = (googlenet, {}, 224, 'inception_5b/output', 'pool5/7x7_s1', 7)


def drawn(param: NetParameter, seed: int = 0) -> caffe.Net:
    """The net with weights that keep the spread of what flows through it, and biases."""
    net, random = caffe.Net(param, caffe.TEST), np.random.RandomState(seed)
    for blobs in net.params.values():
        shape = blobs[0].shape
        blobs[0].data[...] = random.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        for bias in blobs[1:]:
            bias.data[...] = random.randn(*bias.shape) * 0.1
    return net


def image(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(1).randn(1, 3, height, width).astype(np.float32)


def forward(net: caffe.Net, values: np.ndarray, blob: str) -> np.ndarray:
    """What the net computes in `blob` for an image of any size."""
    net.blobs['data'].reshape(*values.shape)
    net.blobs['data'].data[...] = values
    net.forward()
    return net.blobs[blob].data.copy()


def both(classifier: NetParameter, fully_conv: NetParameter) -> tuple[caffe.Net, caffe.Net, str]:
    """A drawn classifier, its weights in its convolutional form, and the blob of the scores."""
    net, convolutional = drawn(classifier), caffe.Net(fully_conv, caffe.TEST)
    done = surgery.transplant(convolutional, net)
    scores = list(net.params)[-1]
    assert not done.dropped and done.coerced[-1].layer == scores
    return net, convolutional, scores


def assert_every_position(scores: np.ndarray, classify) -> None:
    """Hold 1 x K x h x w scores against `classify(y, x)`, K scores each; they must differ."""
    found = scores[0].transpose(1, 2, 0)
    expected = np.stack(
        [[classify(y, x) for x in range(found.shape[1])] for y in range(found.shape[0])]
    )
    assert np.ptp(expected, (0, 1)).max() > 1e-2 * np.abs(expected).max()
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize('module, narrow, size, pool5, first, window', [VGG16, CAFFENET, GOOGLENET])
def test_at_its_training_size_the_fully_convolutional_form_gives_the_classifiers_scores(
    module, narrow, size, pool5, first, window
):
    net, convolutional, scores = both(
        module.classifier(7, **narrow), module.fully_conv(7, **narrow)
    )
    for blob in (scores, 'prob'):
        found, expected = (forward(each, image(size, size), blob) for each in (convolutional, net))
        assert_close(found, expected[:, :, None, None], 1e-5)


@pytest.mark.parametrize('module, narrow, size, pool5, first, window', [VGG16, CAFFENET, GOOGLENET])
def test_on_a_larger_image_every_position_is_the_classifier_on_that_window_of_pool5(
    module, narrow, size, pool5, first, window
):
    """With the convolutions' padding, which a crop has and the image has not, this much holds."""
    net, convolutional, scores = both(
        module.classifier(7, **narrow), module.fully_conv(7, **narrow)
    )
    found = forward(convolutional, image(size + 64, size + 32), scores)
    pooled = convolutional.blobs[pool5].data
    net.blobs['data'].reshape(1, 3, size, size)
    net.reshape()

    def classify(y, x):
        net.blobs[pool5].data[...] = pooled[:, :, y : y + window, x : x + window]
        net.forward(start=first)
        return net.blobs[scores].data[0].copy()

    assert found.shape == (1, 7, 3, 2)
    assert_every_position(found, classify)


def unpadded(param: NetParameter) -> NetParameter:
    for layer in param.layer:
        layer.convolution_param.ClearField('pad')
    return param


@pytest.mark.parametrize(
    'module, classifier, narrow, size',
    [
        # At these sizes pool5 without padding is what fc6 takes, and every pooling is even.
        (vgg16, functools.partial(vgg16.classifier, size=404), VGG16[1], 404),
        (caffenet, caffenet.classifier, CAFFENET[1], 355),
    ],
)
def test_without_padding_every_position_of_a_larger_image_is_the_classifier_on_that_crop(
    module, classifier, narrow, size
):
    param = unpadded(classifier(7, **narrow))
    param.layer[0].input_param.shape[0].dim[:] = [1, 3, size, size]
    net, convolutional, scores = both(param, unpadded(module.fully_conv(7, **narrow)))
    large = image(size + 64, size + 32)
    found = forward(convolutional, large, scores)
    assert found.shape == (1, 7, 3, 2)
    assert_every_position(
        found,
        lambda y, x: forward(
            net, large[:, :, 32 * y : 32 * y + size, 32 * x : 32 * x + size], scores
        )[0],
    )


def write_v1(path, net: caffe.Net) -> None:
    """The net's weights as files of 2014 have them: V1 layers, all shapes padded to 4 axes."""
    old, types = (
        NetParameter(),
        dict(Convolution=V1LayerParameter.CONVOLUTION, InnerProduct=V1LayerParameter.INNER_PRODUCT),
    )
    for name, blobs in net.params.items():
        layer = old.layers.add(name=name, type=types[net.layer_dict[name].type])
        for blob in blobs:
            shape = (1,) * (4 - len(blob.shape)) + tuple(blob.shape)
            layer.blobs.add(
                data=blob.data.ravel(), **dict(zip(('num', 'channels', 'height', 'width'), shape))
            )
    path.write_bytes(old.SerializeToString())


@pytest.mark.parametrize(
    'write', [write_v1, lambda path, net: net.save(path)], ids=['V1', 'current']
)
@pytest.mark.parametrize(
    'name, module, narrow, size, window', [('vgg16', *VGG16[:3], 7), ('caffenet', *CAFFENET[:3], 6)]
)
def test_a_classifiers_file_becomes_fully_convolutional_by_surgery_and_by_the_command(
    tmp_path, monkeypatch, capsys, write, name, module, narrow, size, window
):
    param = module.classifier(7, **narrow)
    monkeypatch.setattr(module, 'fully_conv', functools.partial(module.fully_conv, 7, **narrow))
    classifier = drawn(param)
    write(tmp_path / 'a.caffemodel', classifier)
    expected = forward(classifier, image(size, size), 'fc8')

    one = caffe.Net(module.fully_conv(), caffe.TEST)
    done = surgery.transplant(one, caffe.Net(param, tmp_path / 'a.caffemodel', caffe.TEST))
    assert [(moved.layer, moved.new_shape[2:]) for moved in done.coerced] == [
        ('fc6', (window, window)),
        ('fc7', (1, 1)),
        ('fc8', (1, 1)),
    ]
    assert (
        run(tmp_path / 'a.caffemodel', tmp_path / 'b.caffemodel', '--net', name, '--fully-conv')
        == 0
    )
    said = capsys.readouterr().out
    assert 'cast: fc6: ' in said and f' x {window} x {window}, 8' in said
    two = caffe.Net(module.fully_conv(), tmp_path / 'b.caffemodel', caffe.TEST)
    for net in (one, two):
        assert_close(forward(net, image(size, size), 'fc8')[:, :, 0, 0], expected, 1e-5)


# The nets on color, depth and HHA.


def nyud(modality: str) -> NetParameter:
    return importlib.import_module(f'nets.nyud_fcn32s_{modality}').fcn('deploy', width=2, fc=4)


def test_the_two_streams_compute_what_the_nets_they_come_from_do():
    both, images = caffe.Net(nyud('color_hha'), caffe.TEST), {}
    for seed, suffix in enumerate(('color', 'hha')):
        net, images[suffix] = drawn(nyud(suffix), seed), image(40 + seed, 50)[:, :, :40]
        done = surgery.transplant(both, net, suffix)
        assert len(done.copied) == 2 * 16 and [gone.layer for gone in done.dropped] == ['upscore']
        images[suffix, 'scores'] = forward(net, images[suffix], 'score_fr')
    for suffix in ('color', 'hha'):
        both.blobs[suffix].reshape(*images[suffix].shape)
        both.blobs[suffix].data[...] = images[suffix]
    both.forward()
    for suffix in ('color', 'hha'):
        assert_close(both.blobs[f'score_fr{suffix}'].data, images[suffix, 'scores'], 1e-5)


def test_depth_does_to_scores_what_a_third_of_it_in_every_color_did():
    color, new = drawn(nyud('color')), caffe.Net(nyud('color_d'), caffe.TEST)
    assert [gone.layer for gone in surgery.transplant(new, color).dropped] == ['conv1_1', 'conv1_1']
    surgery.color_to_color_depth(new, 'conv1_1_bgrd', color, 'conv1_1')
    values, depth = image(40, 50), image(41, 50)[:, :1, :40]
    for blob, given in (('color', values), ('depth', depth)):
        new.blobs[blob].reshape(*given.shape)
        new.blobs[blob].data[...] = given
    new.forward()
    assert_close(new.blobs['score_fr'].data, forward(color, values + depth / 3, 'score_fr'), 1e-5)
