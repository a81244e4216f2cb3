"""A plan stands aside where something besides the layers' own forwards and blobs has a say."""

import pytest
import torch
from torch.autograd import forward_ad

import caffe_port as caffe
from caffe_port.plan import stretches, switch
from tests.caffe_port.plan.forced import assert_near, drawn, force, images
from tests.caffe_port.plan.trainers import (
    assert_same_diffs,
    by_layer,
    filled,
    forward_backward,
    trainer,
)


@pytest.fixture
def net(monkeypatch) -> caffe.Net:
    force(monkeypatch)
    return drawn('voc_fcn8s')


def test_hooks_of_layers_see_each_call(net):
    calls = []
    net.module.get_submodule('conv3_1').register_forward_hook(lambda *call: calls.append(call))
    with torch.no_grad():
        net.module(**images(net, (9, 20)))
    assert len(calls) == 1


def test_functional_call_computes_with_the_given_parameters(net):
    inputs = images(net, (9, 20))
    scaled = {name: p.detach() * 1.5 for name, p in net.module.named_parameters()}
    with torch.no_grad():
        net.module(**inputs)
        found = torch.func.functional_call(net.module, scaled, (), inputs)['score']
        caffe.set_plan(False)
        assert torch.equal(
            found, torch.func.functional_call(net.module, scaled, (), inputs)['score']
        )


def test_vmap_and_forward_mode_pass_through(net):
    data = images(net, (9, 20))['data']
    with torch.no_grad():
        expected = net.module(data=data)['score']
        found = torch.vmap(lambda each: net.module(data=each)['score'])(data[None])
        assert_near(found[0], expected)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(data, torch.ones_like(data))
            assert forward_ad.unpack_dual(net.module(data=dual)['score']).tangent is not None


@pytest.mark.parametrize('recompute', [False, True])
def test_many_diffs_at_a_time_are_those_one_by_one(monkeypatch, net, recompute):
    monkeypatch.setattr(switch, '_recompute', recompute)
    net.module.eval()
    data = images(net, (9, 20))['data']
    leaves = [data.requires_grad_(), *(p for p in net.module.parameters() if p.requires_grad)]
    top = net.module(data=data)['score'][0, :3, 4, 7]
    found = torch.autograd.grad(top, leaves, torch.eye(3), is_grads_batched=True, retain_graph=True)
    for i, value in enumerate(top):
        one_by_one = torch.autograd.grad(value, leaves, retain_graph=True)
        for many, one in zip(found, one_by_one):
            assert_near(many[i], one, 1e-4)


def test_a_jacobian_of_an_image_is_the_same_by_all_methods(net):
    data = images(net, (3, 2))['data']

    def score(data):
        return net.module(data=data)['score'][0, :2, 1, 1]

    expected = torch.autograd.functional.jacobian(score, data)
    assert_near(torch.autograd.functional.jacobian(score, data, vectorize=True), expected, 1e-4)
    assert_near(torch.func.jacrev(score)(data), expected, 1e-4)


def test_dropout_draws_after_train(net):
    inputs = images(net, (9, 20))
    net.module.train()
    with torch.no_grad():
        first, second = (net.module(**inputs)['score'] for _ in range(2))
    assert not torch.equal(first, second)


def test_callbacks_of_a_net_see_every_layer_computed(net):
    seen = []
    net.after_forward(lambda i: seen.append(net.blobs[net._nodes[i].tops[0]].is_postponed))
    net.forward()
    assert len(seen) == len(net.layers) and not any(seen)


class Forgetting(dict):
    """A dict that another thread empties whenever one has looked for a key, or set one."""

    def __contains__(self, key):
        found = super().__contains__(key)
        self.clear()
        return found

    def __setitem__(self, key, value):
        self.clear()


def test_threads_may_share_a_stretch(net):
    (stretch, *_) = stretches.find(net.module.nodes)
    expected = stretch.inner_shapes((1, 3, 9, 20))
    stretch._layouts = Forgetting(stretch._layouts)
    for _ in range(2):
        assert stretch.inner_shapes((1, 3, 9, 20)) == expected


@pytest.mark.parametrize('recompute', [False, True])
def test_blobs_looked_at_in_inference_mode_take_gradients(monkeypatch, net, recompute):
    monkeypatch.setattr(switch, '_recompute', recompute)
    net, expected = trainer(), by_layer(forward_backward)
    net.forward()
    with torch.inference_mode():
        net.blobs['conv1_1'].data  # noqa: B018
    net.backward()
    assert_same_diffs(net, expected)
    assert_near(net.blobs['conv1_1'].data, expected.blobs['conv1_1'].data)


@pytest.mark.parametrize('recompute', [False, True])
def test_diffs_looked_at_in_inference_mode_are_those_of_the_layers(monkeypatch, net, recompute):
    monkeypatch.setattr(switch, '_recompute', recompute)
    net, expected = forward_backward(trainer()), by_layer(forward_backward)
    with torch.inference_mode():
        diff = net.blobs['conv2_2'].diff
    assert_near(diff, expected.blobs['conv2_2'].diff, 1e-4)
    net.backward()


def test_blobs_of_a_net_without_gradients_are_no_tensors_of_inference_mode(net):
    filled(net)
    with torch.no_grad():
        net.forward()
    with torch.inference_mode():
        net.blobs['conv3_1'].data  # noqa: B018
    assert not any(blob.tensor.is_inference() for blob in net.blobs.values())
