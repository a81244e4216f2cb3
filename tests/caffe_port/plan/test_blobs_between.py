"""A Net by plan shows every blob whole and right, whoever asks for it, when and how often."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port.plan import layout, planner
from tests.caffe_port.plan.forced import assert_near, drawn, force, images, redraw


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    force(monkeypatch)


@pytest.fixture
def runs(monkeypatch):
    """Collect what each run of a layout was asked for."""
    asked = []
    plain = layout.Layout.run

    def run(self, *args):
        asked.append(set(self.wanted))
        return plain(self, *args)

    monkeypatch.setattr(layout.Layout, 'run', run)
    return asked


def filled(net: caffe.Net, size=(40, 53), seed=0) -> caffe.Net:
    rng = np.random.RandomState(seed)
    for name in net.inputs:
        net.blobs[name].reshape(1, net.blobs[name].channels, *size)
        net.blobs[name].data[...] = rng.randn(*net.blobs[name].shape) * 50
    return net


def by_layer(net: caffe.Net) -> dict[str, np.ndarray]:
    other = filled(drawn('voc_fcn8s'))
    other.share_with(net)
    for name in net.inputs:
        other.blobs[name].data[...] = net.blobs[name].data
    caffe.set_plan(False)
    other.forward()
    caffe.set_plan(True)
    return {name: blob.data.copy() for name, blob in other.blobs.items()}


def test_every_blob_is_whole_and_right_after_a_forward(runs):
    net = filled(drawn('voc_fcn8s'))
    expected = by_layer(net)
    net.forward()
    assert runs == [{'score'}]
    for name, blob in net.blobs.items():
        assert blob.shape == expected[name].shape
        assert_near(blob.data, expected[name], what=name)


def test_a_blob_asked_for_once_is_kept_by_the_next_forward(runs):
    net = filled(drawn('voc_fcn8s'))
    net.forward()
    net.blobs['conv3_1'].data  # noqa: B018
    net.forward()
    net.forward(blobs=['fc7'])
    assert runs == [{'score'}, {'score', 'conv3_1'}, {'score', 'conv3_1', 'fc7'}]
    expected = by_layer(net)
    assert_near(net.blobs['conv3_1'].data, expected['conv3_1'])
    assert_near(net.blobs['fc7'].data, expected['fc7'])
    assert_near(net.blobs['pool1'].data, expected['pool1'])


def test_an_array_that_somebody_holds_shows_the_next_forward():
    net = filled(drawn('voc_fcn8s'))
    net.forward()
    array = net.blobs['pool4'].data
    filled(net, seed=1)
    net.forward()
    assert net.blobs['pool4'].data is array
    assert_near(array, by_layer(net)['pool4'])


def test_values_are_of_the_inputs_at_the_forward():
    net = filled(drawn('voc_fcn8s'))
    expected = by_layer(net)
    net.forward()
    filled(net, seed=1)
    assert_near(net.blobs['conv2_2'].data, expected['conv2_2'])


def test_a_blob_is_refused_once_the_weights_have_changed():
    net = filled(drawn('voc_fcn8s'))
    net.forward()
    net.params['conv1_2'][0].data[...] *= 1.1
    with pytest.raises(caffe.CaffeError, match=r"blob pool1 was not kept.*blobs=\['pool1'\]"):
        net.blobs['pool1'].data  # noqa: B018
    net.forward()
    assert_near(net.blobs['pool1'].data, by_layer(net)['pool1'])


def test_a_partial_forward_goes_on_from_blobs_that_were_not_kept():
    net = filled(drawn('voc_fcn8s'))
    expected = by_layer(net)
    net.forward()
    out = net.forward(start='conv4_1', end='pool4')
    assert_near(out['pool4'], expected['pool4'])


@pytest.mark.parametrize(
    'change',
    [
        lambda p: p.data.mul_(1.5),
        lambda p: p.detach().numpy().__imul__(1.5),
        lambda p: setattr(p, 'data', p.data * 1.5),
    ],
    ids=['data', 'numpy', 'storage'],
)
@pytest.mark.parametrize('layer', ['conv1_1', 'conv3_2', 'fc6', 'upscore2', 'score_pool3'])
def test_a_weight_changed_behind_the_net_counts(layer, change):
    net = drawn('voc_fcn8s')
    inputs = images(net, (40, 53))
    with torch.no_grad():
        net.module(**inputs)
        change(net.module.get_parameter(f'{layer}.weight'))
        found = net.module(**inputs)['score']
        caffe.set_plan(False)
        expected = net.module(**inputs)['score']
    assert_near(found, expected)


def test_a_deconvolution_that_learns_is_no_longer_a_fixed_one():
    net = drawn('voc_fcn8s')
    inputs = images(net, (40, 53))
    with torch.no_grad():
        net.module(**inputs)
        net.module.get_parameter('upscore8.weight').add_(0.01)
        found = net.module(**inputs)['score']
        caffe.set_plan(False)
        assert_near(found, net.module(**inputs)['score'])


def test_copies_and_pickles_compute_by_plans_of_their_own():
    net = drawn('voc_fcn8s')
    inputs = images(net, (40, 53))
    with torch.no_grad():
        expected = net.module(**inputs)['score']
        for copied in (copy.deepcopy(net.module), pickle.loads(pickle.dumps(net.module))):
            assert torch.equal(copied(**inputs)['score'], expected)
            copied.get_parameter('fc6.weight').mul_(2)
            assert not torch.equal(copied(**inputs)['score'], expected)
        assert torch.equal(net.module(**inputs)['score'], expected)


def test_threads_may_share_a_module():
    net = drawn('voc_fcn8s')
    inputs = [images(net, (30 + 5 * i, 40)) for i in range(4)]
    with torch.no_grad():
        expected = [net.module(**each)['score'] for each in inputs]
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(3):
                found[i] = net.module(**inputs[i])['score']

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], one) for i, one in enumerate(expected))


def test_inference_mode_and_gradients_may_alternate():
    net = drawn('voc_fcn8s')
    inputs = images(net, (40, 53))
    with torch.inference_mode():
        first = net.module(**inputs)['score']
    second = net.module(**inputs)['score']
    assert second.requires_grad
    with torch.no_grad():
        third = net.module(**inputs)['score']
    assert torch.equal(first, third)
    assert_near(second, first)


def test_results_of_one_run_outlive_the_next():
    net = drawn('voc_fcn8s')
    inputs = images(net, (40, 53))
    with torch.no_grad():
        first = net.module(**inputs)['score']
        kept = first.clone()
        net.module(**{name: -x for name, x in inputs.items()})
    assert torch.equal(first, kept)


def test_a_plan_stands_aside_for_what_it_does_not_cover(runs):
    net = drawn('voc_fcn8s')
    inputs = images(net, (40, 53))
    with torch.no_grad():
        caffe.set_plan(False)
        net.module(**inputs)
        caffe.set_plan(True)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            net.module(**inputs)
        net.module.double()(**{name: x.double() for name, x in inputs.items()})
    assert runs == []


def test_layouts_of_many_sizes_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(planner, 'MAX_LAYOUTS', 3)
    net = drawn('voc_fcn32s')
    with torch.no_grad():
        for width in range(20, 28):
            net.module(**images(net, (20, width)))
    assert len(net.module.planner._layouts) == 3


def test_the_weights_change_between_sizes():
    net = drawn('voc_fcn8s')
    with torch.no_grad():
        for seed, size in enumerate(((40, 53), (41, 60), (40, 53))):
            redraw(net, seed)
            found = net.module(**images(net, size))['score']
            caffe.set_plan(False)
            assert_near(found, net.module(**images(net, size))['score'])
            caffe.set_plan(True)


def test_weights_replaced_under_a_layout_that_does_not_watch_them_refuse_nothing():
    net = drawn('voc_fcn8s')
    weight = net.module.get_parameter('fc6.weight')

    def forward(*size):  # fc6 is a product, which keeps nothing of its weights, or it is not
        net.blobs['data'].reshape(1, 3, *size)
        net.forward(data=images(net, size)['data'].numpy())

    forward(40, 53)
    forward(150, 140)
    weight.data = weight * 1.5
    forward(40, 53)
    forward(40, 53)
    found = net.blobs['pool1'].data.copy()
    caffe.set_plan(False)
    forward(40, 53)
    assert_near(found, net.blobs['pool1'].data)
