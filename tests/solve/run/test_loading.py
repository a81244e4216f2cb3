"""Weights to start from, out of files of every kind."""

import numpy as np
import pytest
import torch

import caffe_port as caffe
from nets import vgg16, voc_fcn32s
from solve.run.loading import load_start, read_params


@pytest.fixture
def fcn() -> caffe.Net:
    return caffe.Net(voc_fcn32s.fcn('deploy', width=2, fc=4), caffe.TEST)


def saved(net: caffe.Net, path):
    """Save a net's weights, drawn, as a checkpoint of PyTorch."""
    random = np.random.RandomState(3)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = random.randn(*blob.shape)
    torch.save({'state_dict': net.module.state_dict(), 'epoch': 1}, path)
    return path


def test_a_run_starts_from_an_fcn_s_pth(fcn, tmp_path):
    source = caffe.Net(voc_fcn32s.fcn('deploy', width=2, fc=4), caffe.TEST)
    path = saved(source, tmp_path / 'a.pth')
    load_start(fcn, path)
    for name, blobs in source.params.items():
        assert np.array_equal(fcn.params[name][0].data, blobs[0].data)
        assert np.array_equal(read_params(path).params[name][0].data, blobs[0].data)


def test_a_run_starts_from_a_classifier_s_pth(fcn, tmp_path):
    source = caffe.Net(vgg16.classifier(num_classes=5, width=2, fc=4, batch=1), caffe.TEST)
    load_start(fcn, saved(source, tmp_path / 'a.pth'))
    for name in ('conv1_1', 'fc6', 'fc7'):
        assert np.array_equal(fcn.params[name][0].data.ravel(), source.params[name][0].data.ravel())
    assert not fcn.params['score_fr'][0].data.any()
