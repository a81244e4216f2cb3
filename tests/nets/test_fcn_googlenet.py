"""FCN-GoogLeNet, which no release published: its shapes, its gradients, and what it starts from."""

import numpy as np
import pytest
import torch

import caffe_port as caffe
import surgery
from caffe_port.coord_map import coord_map_from_to
from caffe_port.net_spec import NetSpec
from nets import data, googlenet, voc_fcn_googlenet
from nets.atoms import score, upsample

SIZES = (1, 2, 17, 31, 32, 33, 64, 100, 161, 250)


def drawn(net, seed=0):
    random = np.random.RandomState(seed)
    for name, blobs in net.params.items():
        shape = blobs[0].shape
        if name != 'upscore':
            blobs[0].data[...] = random.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
            blobs[1].data[...] = random.randn(*blobs[1].shape) * 0.1
    surgery.interp(net, ['upscore'])
    return net


def test_the_score_of_every_size_is_cut_where_coord_map_puts_it():
    n = NetSpec()
    n.data = data.image()
    n.score_fr = score(googlenet.trunk(n, googlenet.first_conv(n, 8, pad=19), 8), 2)
    n.upscore = upsample(n.score_fr, 2, ks=63, stride=32)
    down = coord_map_from_to(n.data, n.score_fr)
    offset = -coord_map_from_to(n.upscore, n.data).shift
    assert down.scale == 1 / 32 and offset == 17
    net = caffe.Net(voc_fcn_googlenet.fcn('deploy', width=8), caffe.TEST)
    (crop,) = (layer for layer in net.module.param.layer if layer.type == 'Crop')
    assert list(crop.crop_param.offset) == [17]
    for size in SIZES:
        net.blobs['data'].reshape(1, 3, size, size + 13)
        net.reshape()
        assert net.blobs['score'].shape == (1, 21, size, size + 13)
        for coarse, side in zip(net.blobs['score_fr'].shape[2:], (size, size + 13)):
            # The cells nearest to the first and the last pixel are there.
            assert round(down.shift[0]) >= 0
            assert round(down.scale[0] * (side - 1) + down.shift[0]) <= coarse - 1
            assert 32 * (coarse - 1) + 63 >= side + 17


def test_gradients_are_the_finite_differences_of_the_loss():
    param = voc_fcn_googlenet.fcn('train', width=4, classes=3)
    layer = param.layer[0]
    layer.type = 'Input'
    layer.ClearField('python_param')
    for channels in (3, 1):
        layer.input_param.shape.add().dim.extend((1, channels, 40, 37))
    param.force_backward = True
    module = drawn(caffe.Net(param, caffe.TEST)).module.double()
    random = np.random.RandomState(1)
    blobs = dict(
        data=torch.from_numpy(random.randn(1, 3, 40, 37)).requires_grad_(),
        label=torch.from_numpy(random.randint(0, 3, (1, 1, 40, 37)).astype(float)),
    )
    names = ('conv1/7x7_s2', 'inception_4c/3x3', 'inception_5b/pool_proj', 'score_fr')
    weights = dict(module.named_parameters())
    tensors = [blobs['data'], *(weights[f'{name}.weight'] for name in names)]
    gradients = torch.autograd.grad(module(**blobs)['loss'], tensors)
    with torch.no_grad():
        for name, tensor, gradient in zip(('data', *names), tensors, gradients):
            # So short a step that no ReLU and no maximum changes sides.
            step = 1e-7 * torch.from_numpy(random.randn(*tensor.shape))
            tensor.add_(step)
            above = float(module(**blobs)['loss'])
            tensor.sub_(2 * step)
            below = float(module(**blobs)['loss'])
            tensor.add_(step)
            expected = float((gradient * step).sum())
            assert abs(expected) > 0 and (above - below) / 2 == pytest.approx(expected, 1e-5), name


def test_the_classifiers_weights_transplant_all_but_its_last_layer(capsys):
    source = drawn_classifier = caffe.Net(googlenet.classifier(5, width=4), caffe.TEST)
    net = caffe.Net(voc_fcn_googlenet.fcn('deploy', width=4), caffe.TEST)
    done = surgery.transplant(net, source)
    assert {dropped.layer for dropped in done.dropped} == {'loss3/classifier'}
    assert not done.coerced and len(done.copied) == 2 * (len(net.params) - 2)
    name = 'inception_3a/1x1'
    assert np.array_equal(net.params[name][0].data, drawn_classifier.params[name][0].data)
    assert net.params[name][0].data.any()


def test_at_full_width_it_has_the_papers_six_million_parameters():
    net = caffe.Net(voc_fcn_googlenet.fcn('deploy'), caffe.TEST)
    count = sum(blob.count for name, blobs in net.params.items() if name != 'upscore'
                for blob in blobs)  # fmt: skip
    assert round(count / 1e6) == 6
