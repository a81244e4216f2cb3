"""Blobs whose tensors are not the host's memory, on a device that is only pretended.

The stores of blobs are told that their tensors are elsewhere, and Tensor.cpu copies. So the
stories of test_gpu, and what arrays promise on a GPU, are held where there is none.
"""

import gc

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port import blob as blob_module
from tests.caffe_port.test_gpu import STORIES, fed, gpu_layers, ready  # noqa: F401
from tests.vectors import assert_close


@pytest.fixture
def far_away(monkeypatch):
    """Pretend that tensors are on another device."""
    here = blob_module.Store.__init__

    def far(store, tensor):
        here(store, tensor)
        store._in_place = False

    monkeypatch.setattr(blob_module.Store, '__init__', far)
    monkeypatch.setattr(torch.Tensor, 'cpu', torch.Tensor.clone)


@pytest.mark.parametrize('story', STORIES, ids=lambda story: story.__name__)
def test_it_ends_as_where_tensors_are_host_memory(story, request):
    expected = [np.array(value) for value in story()]
    request.getfixturevalue('far_away')
    for i, (one, other) in enumerate(zip(story(), expected, strict=True)):
        assert_close(one, other, 1e-6, f'{i}')


def test_an_array_that_is_held_is_sent_each_time_the_device_needs_it(far_away):
    blob = caffe.Blob((2,))
    held = blob.data
    for value in (1, 2, 3):
        held[...] = value
        assert blob.tensor.tolist() == [value, value] and blob.data is held


def test_an_array_that_nobody_holds_is_sent_once(far_away):
    blob = caffe.Blob((2,))
    blob.data[...] = 4  # lives until it is sent
    gc.collect()
    assert blob.tensor.tolist() == [4, 4]
    blob.tensor.data.fill_(5)  # uncounted: only another send could undo it
    assert blob.tensor.tolist() == [5, 5]


def test_an_array_is_stale_once_the_device_has_written(far_away):
    blob = caffe.Blob((2,))
    held = blob.data
    held[...] = 1
    blob.tensor.add_(1)
    assert held.tolist() == [1, 1] and blob.data.tolist() == [2, 2]
    held[...] = 7
    assert blob.tensor.tolist() == [2, 2], 'and what is written to it is lost'
    again = blob.data
    blob.tensor = torch.full((2,), 9.0)
    assert again.tolist() == [2, 2] and blob.data.tolist() == [9, 9]


def test_a_param_written_uncounted_is_marked_stale(far_away):
    net = fed(ready())
    blob = net.params['one'][0]
    held = blob.data
    net.module.flush()
    blob.parameter.data.fill_(3)
    net.mark_params_stale()
    assert (blob.data == 3).all() and not (held == 3).all()
    assert (blob.tensor == 3).all(), 'the stale array does not come back'


def test_a_reshaped_or_moved_blob_keeps_what_was_written(far_away):
    blob = caffe.Blob((2, 3))
    blob.data[...], blob.diff[...] = 1, 2
    blob.reshape(3, 2)
    assert (blob.tensor == 1).all() and (blob.diff == 2).all() and blob.data.shape == (3, 2)
    blob.data[...] = 5
    blob.to(torch.device('meta'))
    assert blob.tensor.is_meta and blob.tensor.shape == (3, 2)
