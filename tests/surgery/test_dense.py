"""Shift-and-stitch is rarefaction, cell by cell."""

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port import layers as L
from caffe_port import params as P
from caffe_port import summary
from nets import vgg16
from surgery.dense import rarefy, shift_and_stitch

TOLERANCE = 1e-5


def conv(bottom, nout, ks, **settings):
    return L.Convolution(
        bottom, num_output=nout, kernel_size=ks, weight_filler=dict(type='msra'),
        bias_filler=dict(type='gaussian', std=0.1), **settings,
    )  # fmt: skip


def net_of(pad=0, pool=P.Pooling.MAX, last='score'):
    """Two stages of convolution and pooling, stride 6 in all, with LRN between them."""
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, 40, 40]))
    n.conv1 = conv(n.data, 4, 3, stride=1, pad=pad)
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, pool=pool, kernel_size=2, stride=2)
    n.norm1 = L.LRN(n.pool1, local_size=3)
    n.conv2 = conv(n.norm1, 5, 3, stride=1, pad=pad)
    n.pool2 = L.Pooling(n.conv2, pool=pool, kernel_size=3, stride=3)
    n.conv3 = conv(n.pool2, 6, 2, pad=0)
    n.score = conv(n.conv3, 2, 1)
    return n.to_proto()


def both(net, stride, factor, image, output='score'):
    """The output of the rarefied net, and that of shift-and-stitch with the same weights."""
    caffe.set_random_seed(5)
    plain = caffe.Net(net, caffe.TEST)
    dense = caffe.Net(rarefy(net, stride), caffe.TEST)
    dense.share_with(plain)
    dense.blobs['data'].reshape(*image.shape)
    dense.blobs['data'].data[...] = image
    dense.reshape()
    dense.forward()
    with torch.no_grad():
        stitched = shift_and_stitch(
            lambda inputs: plain.module(**inputs), {'data': torch.from_numpy(image)}, factor
        )
    return dense.blobs[output].data.copy(), stitched[output].numpy()


def drawn(height, width):
    return np.random.RandomState(1).randn(1, 3, height, width).astype(np.float32)


@pytest.mark.parametrize('pool', [P.Pooling.MAX, P.Pooling.AVE])
@pytest.mark.parametrize('size', [(40, 40), (43, 50)])
def test_rarefied_to_stride_1_every_cell_is_that_of_a_shift(pool, size):
    rarefied, stitched = both(net_of(pool=pool), 1, 6, drawn(*size))
    height, width = rarefied.shape[2:]
    # Caffe's pooling rounds up: behind the last whole window the plain net has clipped ones.
    assert height <= stitched.shape[2] and width <= stitched.shape[3]
    scale = abs(stitched).max()
    worst = abs(rarefied - stitched[:, :, :height, :width]).max()
    assert worst <= TOLERANCE * scale, f'{worst / scale:.2g}'


def test_rarefied_to_an_inner_stride_every_cell_is_that_of_a_shift_by_it():
    """Strides 2 and 3: kept to 2, the outputs are those at every second pixel of stride 1."""
    image = drawn(46, 42)
    whole, stitched = both(net_of(), 2, 6, image)
    height, width = whole.shape[2:]
    assert (height, width) == ((46 - 18) // 2 + 1, (42 - 18) // 2 + 1)
    scale = abs(stitched).max()
    expected = stitched[:, :, ::2, ::2][:, :, :height, :width]
    assert abs(whole[:, :, : expected.shape[2], : expected.shape[3]] - expected).max() <= (
        TOLERANCE * scale
    )


def test_padding_but_the_first_interferes_where_it_is_seen_and_no_further():
    rarefied, stitched = both(net_of(pad=1), 1, 6, drawn(60, 60))
    height, width = (min(a, b) for a, b in zip(rarefied.shape[2:], stitched.shape[2:]))
    apart = abs(rarefied[:, :, :height, :width] - stitched[:, :, :height, :width])
    # The window of cell 0 begins 3 pixels before the image: conv1 pads one, conv2 one of two. The
    # first is 0 in a shifted image too; the second lies elsewhere there, and cells 0 and 1 see it.
    inner = apart[:, :, 2 : height - 2, 2 : width - 2]
    scale = abs(stitched).max()
    assert inner.size and inner.max() <= TOLERANCE * scale
    for cell in (0, 1):
        assert apart[:, :, cell].max() > 100 * TOLERANCE * scale


def count_multiply_adds(net, height, width):
    found = summary.rows(net.module, {'data': (1, 3, height, width)})
    return {row.name: row.multiply_adds for row in found if row.type == 'Convolution'}


def test_rarefaction_pays_for_the_strides_behind_and_stitching_for_each_layer():
    """Strides of 2 and 3: conv1 comes before both, conv2 between them, the others behind."""
    side, net = 306, caffe.Net(net_of(), caffe.TEST)
    plain = count_multiply_adds(net, side, side)
    rarefied = count_multiply_adds(caffe.Net(rarefy(net_of(), 1), caffe.TEST), side, side)
    for name, times in dict(conv1=1, conv2=4, conv3=36, score=36).items():
        assert rarefied[name] / plain[name] == pytest.approx(times, rel=0.05), name
    # As shift_and_stitch does: by 0 to 5 pixels each way.
    stitched = sum(
        sum(count_multiply_adds(net, side + down, side + across).values())
        for down, across in np.ndindex(6, 6)
    )
    assert stitched / sum(plain.values()) == pytest.approx(36, rel=0.05)
    assert sum(rarefied.values()) < stitched / 5


@pytest.mark.parametrize('method', ['MAX', 'AVE'])
def test_dilated_pooling_sends_each_gradient_where_its_value_came_from(method):
    settings = dict(method=method, kernel=2, stride=2, pad=0, dilation=3)
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[2, 3, 9, 11]))
    n.pool = L.Python(
        n.data, module='surgery.dense', layer='DilatedPooling', param_str=repr(settings)
    )
    text = n.to_proto()
    text.force_backward = True
    net = caffe.Net(text, caffe.TEST)
    rng = np.random.RandomState(3)
    data = net.blobs['data'].data[...] = rng.randn(2, 3, 9, 11).astype(np.float32)
    top = net.forward()['pool'].copy()
    assert top.shape == (2, 3, 3, 4)
    gradient = rng.randn(*top.shape).astype(np.float32)
    found = net.backward(pool=gradient)['data']
    expected = np.zeros_like(found)
    for at in np.ndindex(*top.shape):
        item, channel, y, x = at
        places = [(item, channel, 2 * y + dy, 2 * x + dx) for dy in (0, 3) for dx in (0, 3)]
        values = [data[place] for place in places]
        assert top[at] == pytest.approx(max(values) if method == 'MAX' else np.mean(values), 1e-5)
        for place in [places[int(np.argmax(values))]] if method == 'MAX' else places:
            expected[place] += gradient[at] / (1 if method == 'MAX' else 4)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(method='SUM'), "method 'SUM': expected MAX or AVE"),
        (dict(kernel='2'), 'expected method, kernel, stride, pad, dilation'),
        (dict(stride=0), 'stride 0 and dilation 3 must be positive'),
        (dict(pad=4), 'pad 4 less than the window, 4'),
        (dict(kernel=10), 'smaller than the window of 28'),
        (dict(dilation=10**7, pad=10**7, stride=10**9), 'a blob holds at most'),
    ],
)
def test_settings_of_dilated_pooling_that_make_no_sense_are_named(changes, words):
    settings = dict(method='MAX', kernel=2, stride=1, pad=0, dilation=3) | changes
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 1, 9, 9]))
    n.pool = L.Python(
        n.data, module='surgery.dense', layer='DilatedPooling', param_str=repr(settings)
    )
    with pytest.raises(caffe.CaffeError, match=words):
        caffe.Net(n.to_proto(), caffe.TEST)


def test_vgg16_keeps_its_params_and_becomes_as_dense_as_asked():
    plain = vgg16.fully_conv()
    for stride in (32, 16, 8):
        made = rarefy(plain, stride)
        assert [layer.name for layer in made.layer] == [layer.name for layer in plain.layer]
        strides = np.prod([
            layer.pooling_param.stride for layer in made.layer if layer.type == 'Pooling'
        ])  # fmt: skip
        assert strides == stride
    fc6 = {layer.name: layer for layer in rarefy(plain, 8).layer}['fc6']
    assert list(fc6.convolution_param.dilation) == [4]


def test_what_cannot_be_rarefied_is_named():
    with pytest.raises(caffe.CaffeError, match='pool2: stride 3 on pixels of 2: an output for ev'):
        rarefy(net_of(), 4)
    with pytest.raises(caffe.CaffeError, match='stride 0: expected at least 1'):
        rarefy(net_of(), 0)
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, 40, 40]))
    n.pool = L.Pooling(n.data, kernel_size=2, stride=2)
    n.up = L.Deconvolution(n.pool, convolution_param=dict(num_output=3, kernel_size=4, stride=2))
    with pytest.raises(caffe.CaffeError, match=r'up \(Deconvolution\): cannot be dilated; cut'):
        rarefy(n.to_proto(), 1)
