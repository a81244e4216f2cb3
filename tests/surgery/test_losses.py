"""The loss with options: plain, it is SoftmaxWithLoss; sampled, it is patchwise training."""

import numpy as np
import pytest

import caffe_port as caffe
from caffe_port import NetSpec
from caffe_port import layers as L
from nets.atoms import pixel_loss, sampled_loss

CLASSES, STRIDE, WINDOW = 3, 4, 10


def trunk(n):
    """Two convolutions and a pooling: stride 4, and a window of 10 pixels."""
    filler = dict(weight_filler=dict(type='msra'), bias_filler=dict(type='gaussian', std=0.1))
    n.conv1 = L.Convolution(n.data, num_output=4, kernel_size=3, **filler)
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, kernel_size=2, stride=2)
    n.conv2 = L.Convolution(n.pool1, num_output=CLASSES, kernel_size=4, stride=2, **filler)
    return n.conv2


def coarse_net(height, width, loss=None):
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, height, width]))
    cells = ((side - WINDOW) // STRIDE + 1 for side in (height, width))
    n.label = L.Input(shape=dict(dim=[1, 1, *cells]))
    scores = trunk(n)
    n.loss = loss(n, scores) if loss else pixel_loss(scores, n.label)
    caffe.set_random_seed(3)
    return caffe.Net(n.to_proto(), caffe.TEST)


def gradients(net, image, label):
    net.blobs['data'].data[...] = image
    net.blobs['label'].data[...] = label
    net.clear_param_diffs()
    loss = float(net.forward()['loss'])
    net.backward()
    return loss, {
        (name, i): blob.diff.astype(np.float64)
        for name, blobs in net.params.items()
        for i, blob in enumerate(blobs)
    }


def drawn(height=26, width=34):
    random = np.random.RandomState(0)
    cells = [(side - WINDOW) // STRIDE + 1 for side in (height, width)]
    image = random.randn(1, 3, height, width).astype(np.float32)
    return image, random.choice([0, 0, 0, 1, 2, 255], (1, 1, *cells)).astype(np.float32)


def test_the_gradient_of_a_whole_image_is_the_sum_over_its_patches():
    image, label = drawn()
    whole = coarse_net(*image.shape[2:])
    loss, found = gradients(whole, image, label)
    patch = coarse_net(WINDOW, WINDOW)
    patch.share_with(whole)
    total, summed = 0.0, {key: np.zeros_like(value) for key, value in found.items()}
    for y, x in np.ndindex(*label.shape[2:]):
        window = image[:, :, STRIDE * y :, STRIDE * x :][:, :, :WINDOW, :WINDOW]
        of_patch, its = gradients(patch, window, label[:, :, y : y + 1, x : x + 1])
        total += of_patch
        for key in summed:
            summed[key] += its[key]
    assert loss == pytest.approx(total, rel=1e-6)
    for key, value in found.items():
        # Rounding of float32: some 35 cells, each right to 6e-8.
        assert np.abs(value - summed[key]).max() <= 2e-6 * np.abs(value).max(), key


@pytest.mark.parametrize('normalize', [False, True])
def test_without_options_it_is_softmax_with_loss(normalize):
    image, label = drawn()
    ours = coarse_net(
        *image.shape[2:], lambda n, s: sampled_loss(s, n.label, s, normalize=normalize)
    )
    caffes = coarse_net(*image.shape[2:], lambda n, s: pixel_loss(s, n.label, normalize=normalize))
    (loss, found), (expected_loss, expected) = (
        gradients(net, image, label) for net in (ours, caffes)
    )
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for key, value in expected.items():
        assert np.abs(found[key] - value).max() <= 1e-6 * np.abs(value).max(), key


def layer_of(param_str, channels=CLASSES):
    n = NetSpec()
    n.scores = L.Input(shape=dict(dim=[1, channels, 64, 64]))
    n.label = L.Input(shape=dict(dim=[1, 1, 64, 64]))
    n.loss = L.Python(
        n.scores, n.label, module='surgery.losses', layer='PixelLoss', loss_weight=1,
        param_str=repr(param_str),
    )  # fmt: skip
    net = caffe.Net(n.to_proto(), caffe.TRAIN)
    return net, net.module.nodes[-1].op.layer


def test_cells_are_kept_whole_with_probability_p_and_drawn_again_from_one_seed():
    _, layer = layer_of(dict(keep=0.25, cells=(4, 2), seed=1337))
    label = np.zeros((1, 1, 402, 402), np.float32)
    state = layer.state()
    chosen = layer.choose(label)
    cells = chosen[0, 2:, 2:].reshape(100, 4, 100, 4)
    assert (cells.all((1, 3)) == cells.any((1, 3))).all()
    assert cells[:, 0, :, 0].mean() == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / 1e4) ** 0.5)
    assert not np.array_equal(layer.choose(label), chosen)
    layer.set_state(state)
    assert np.array_equal(layer.choose(label), chosen)
    with pytest.raises(caffe.CaffeError, match='not a state'):
        layer.set_state([3, [1], None])


def test_a_ratio_keeps_so_many_background_pixels_for_each_other():
    _, layer = layer_of(dict(ratio=3, seed=1))
    label = np.zeros((1, 1, 20, 20), np.float32)
    label[..., :2, :5], label[..., 19, :] = 1, 255
    chosen = layer.choose(label)
    assert (chosen & (label[:, 0] == 0)).sum() == 30
    assert chosen[label[:, 0] == 1].all() and not chosen[label[:, 0] == 255].any()


def test_weights_multiply_the_loss_of_their_class_and_its_gradient():
    random = np.random.RandomState(2)
    scores, label = random.randn(1, CLASSES, 64, 64), random.randint(0, CLASSES, (1, 1, 64, 64))
    found = []
    for weights in ([2, 0, 0], [0, 3, 0], [0, 0, 0.5], [1, 1, 1]):
        net, _ = layer_of(dict(weights=weights))
        net.blobs['scores'].data[...], net.blobs['label'].data[...] = scores, label
        found.append(float(net.forward()['loss']))
    assert found[0] / 2 + found[1] / 3 + found[2] / 0.5 == pytest.approx(found[3], rel=1e-5)


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(keep=0), 'keep 0.0: expected more than 0'),
        (dict(weights=[1, 2]), '2 weights for 3 classes'),
        (dict(ratio=-1), 'ratio -1: expected more'),
        (dict(other=1), 'expected cells, keep'),
    ],
)
def test_options_that_make_no_sense_are_named(options, words):
    with pytest.raises(caffe.CaffeError, match=words):
        layer_of(options)
