"""nets.load: one line from a name and a file to a module."""

import numpy as np
import pytest
import torch

import caffe_port as caffe
import nets
from caffe_port.files import weights
from nets import vgg16, voc_fcn8s

KINDS = '.caffemodel', '.caffemodel.h5', '.pth', '.pt', '.safetensors', '.npz'
LIBRARIES = {'.caffemodel.h5': 'h5py', '.safetensors': 'safetensors'}


def filled(param) -> caffe.Net:
    net, random = caffe.Net(param, caffe.TEST), np.random.RandomState(3)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = random.randn(*blob.shape) * 0.1
    return net


def save(net: caffe.Net, folder, kind: str):
    """Write the weights of a net as a file of a kind."""
    if kind in LIBRARIES:
        pytest.importorskip(LIBRARIES[kind])
    net.save(folder / 'a.caffemodel')
    if kind != '.caffemodel':
        weights.write(folder / f'a{kind}', weights.read(folder / 'a.caffemodel'))
    return folder / f'a{kind}'


@pytest.mark.parametrize('kind', KINDS)
def test_a_file_of_any_kind_gives_the_module_as_narrow_as_it_is(tmp_path, kind):
    net = filled(voc_fcn8s.fcn('deploy', width=2, fc=4))
    module = nets.load('voc_fcn8s', save(net, tmp_path, kind))
    assert not module.training
    x = torch.randn(1, 3, 40, 52, generator=torch.Generator().manual_seed(1))
    assert torch.equal(module(x).score, net.module(data=x)['score'])


@pytest.mark.parametrize('kind', KINDS)
def test_pycaffes_ways_to_weights_take_every_kind(tmp_path, kind):
    net = filled(voc_fcn8s.fcn('deploy', width=2, fc=4))
    path = save(net, tmp_path, kind)
    (tmp_path / 'deploy.prototxt').write_text(str(voc_fcn8s.fcn('deploy', width=2, fc=4)))
    made = caffe.Net(str(tmp_path / 'deploy.prototxt'), str(path), caffe.TEST)
    copied = caffe.Net(str(tmp_path / 'deploy.prototxt'), caffe.TEST)
    copied.copy_from(path)
    for name, blobs in net.params.items():
        for i, blob in enumerate(blobs):
            assert np.array_equal(made.params[name][i].data, blob.data)
            assert np.array_equal(copied.params[name][i].data, blob.data)


def test_a_solver_starts_from_a_pth(tmp_path):
    net = filled(voc_fcn8s.fcn('deploy', width=2, fc=4))
    path = save(net, tmp_path, '.pth')
    (tmp_path / 'net.prototxt').write_text(str(voc_fcn8s.fcn('deploy', width=2, fc=4)))
    (tmp_path / 'solver.prototxt').write_text(
        f'net: "{tmp_path}/net.prototxt" weights: "{path}" base_lr: 0.1 lr_policy: "fixed"'
    )
    solver = caffe.SGDSolver(str(tmp_path / 'solver.prototxt'))
    assert np.array_equal(solver.net.params['fc6'][0].data, net.params['fc6'][0].data)


def test_another_shape_says_how_to_learn_the_layer_from_scratch(tmp_path):
    path = save(filled(voc_fcn8s.fcn('deploy', width=2, fc=4)), tmp_path, '.pth')
    other = caffe.Net(voc_fcn8s.fcn('deploy', width=2, fc=6), caffe.TEST)
    with pytest.raises(
        caffe.CaffeError,
        match='fc6: blob 0: expected .*; to learn the layer from scratch, rename it',
    ):
        other.copy_from(path)


def test_a_classifier_may_be_made_convolutional(tmp_path):
    net = filled(vgg16.classifier(width=2, fc=4, batch=1))
    path = save(net, tmp_path, '.pth')
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = net.module(x).prob
    assert torch.equal(nets.load('vgg16', path)(x).prob, expected)
    assert nets.load('vgg16', path, fully_conv=True)(x).prob.shape[:2] == (1, 1000)


def test_what_is_wrong_is_named(tmp_path):
    path = save(filled(voc_fcn8s.fcn('deploy', width=2, fc=4)), tmp_path, '.pth')
    with pytest.raises(caffe.CaffeError, match='voc_fcn9s: no such net; there are .*voc_fcn8s'):
        nets.load('voc_fcn9s', path)
    with pytest.raises(caffe.CaffeError, match='does not fit the net: .* first score'):
        nets.load('siftflow_fcn32s', path)
