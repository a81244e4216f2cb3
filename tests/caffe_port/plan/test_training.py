"""A Net trains by stretches as it does layer by layer, whoever looks between, when and how."""

import copy

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port.plan import bands, steps, stretches, switch
from caffe_port.plan.bands import Band
from tests.caffe_port.plan.forced import assert_near, drawn, force, redraw
from tests.caffe_port.plan.trainers import (
    SIZE,
    assert_same_diffs,
    by_layer,
    diffs_of,
    filled,
    forward_backward,
    trainer,
)


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    force(monkeypatch)


@pytest.fixture
def runs(monkeypatch):
    """Collect the shapes of what each convolution of a stretch is computed from."""
    shapes = []
    plain = steps.convolve

    def convolve(bottom, *args):
        shapes.append(tuple(bottom.shape))
        return plain(bottom, *args)

    monkeypatch.setattr(steps, 'convolve', convolve)
    return shapes


def test_most_of_the_padding_is_not_computed(runs):
    forward_backward(trainer())
    assert runs[0][2:] == (SIZE[0] + 14, SIZE[1] + 14)  # of 223 x 217
    assert runs[2][2] < 60 < 112 and runs[4][2] < 45 < 56  # conv2_1, conv3_1


@pytest.mark.parametrize('residue', range(32))
def test_gradients_at_every_residue(residue):
    size = 1 + residue, 1 + (residue * 5 + 3) % 32
    nodes = drawn('voc_fcn32s', 'val', caffe.TRAIN, width=2, fc=4).module.nodes
    (stretch, *_) = stretches.find(nodes, {'pool4'})
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(1, 3, *size, generator=generator) * 50).requires_grad_()
        made: list[stretches.Made] = []
        top, expected, chosen = stretch.compute(x, made), x, []
        for node in stretch.nodes:
            (expected,) = node.run(expected)
            chosen.append(expected.detach())
        assert_near(top, expected)
        inner = dict(zip([node.tops[0] for node in stretch.nodes], chosen))
        if all(torch.equal(one.whole() > 0, inner[one.name] > 0) for one in made):
            break  # else a ReLU is undecided to rounding
    else:
        pytest.fail('no input without a ReLU that is undecided')
    diff = torch.randn(top.shape, generator=generator)
    leaves = [x, *stretch.blobs()]
    found, plain = (torch.autograd.grad(y, leaves, diff) for y in (top, expected))
    for one, other in zip(found, plain):
        assert_near(one, other, 1e-4)


def test_collapse_is_the_adjoint_of_expand():
    torch.manual_seed(0)
    places = [Band(2, 5), Band(6, 1)], [Band(0, 3)]
    x, y = torch.randn(2, 3, 9, 4), torch.randn(2, 3, 15, 7)
    whole = bands.expand(x, places)
    assert torch.equal(
        whole[:, :, 2:8], x[:, :, 2:3][..., [0, 0, 0, 0, 1, 2, 3]].expand(2, 3, 6, 7)
    )
    assert_near((whole * y).sum(), (x * bands.collapse(y, places)).sum())


def test_blobs_seen_after_a_forward_are_whole_and_backward_goes_on():
    net, expected = trainer(), by_layer(forward_backward)
    net.forward()
    for name, blob in net.blobs.items():
        assert_near(blob.data, expected.blobs[name].data, what=name)
    net.backward()
    assert_same_diffs(net, expected)


def test_diffs_seen_after_a_backward_are_whole():
    net, expected = forward_backward(trainer()), by_layer(forward_backward)
    assert_same_diffs(net, expected)
    for name, blob in net.blobs.items():
        assert_near(blob.diff, expected.blobs[name].diff, 1e-4, name)
    assert_same_diffs(net, expected)  # nothing was added


def test_a_diff_is_refused_once_the_weights_have_changed_and_kept_from_then_on():
    net = forward_backward(trainer())
    net.params['conv2_1'][0].data[...] *= 1.1
    message = r"diff of blob conv3_1 was not kept.*backward\(diffs=\['conv3_1'\]\)"
    with pytest.raises(caffe.CaffeError, match=message):
        net.blobs['conv3_1'].diff  # noqa: B018
    assert net.blobs['conv3_1'].data.any()  # the values are those of the forward
    redraw(net)
    forward_backward(net)
    net.params['conv2_1'][0].data[...] *= 1.1
    assert_near(net.blobs['conv3_1'].diff, by_layer(forward_backward).blobs['conv3_1'].diff, 1e-4)


@pytest.mark.parametrize(
    'act',
    [
        lambda net: net.backward(diffs=['conv2_2', 'pool4']),
        lambda net: net.backward(start='conv4_2', conv4_2=np.ones(net.blobs['conv4_2'].shape)),
        lambda net: net.backward(end='conv3_2'),
        lambda net: [net.backward(), net.backward()],
        lambda net: [net.blobs['data'].data.__imul__(2), net.backward()],
        lambda net: [net.blobs['conv3_1'].data.__imul__(2), net.backward()],
        lambda net: [net.forward(start='conv3_1', end='conv3_3'), net.backward()],
    ],
    ids=['asked', 'start', 'end', 'twice', 'bottom', 'inside', 'in part'],
)
def test_backward_is_that_of_the_layers(act):
    def run(net):
        net.clear_param_diffs()
        net.forward()
        act(net)
        return net

    net, expected = run(trainer()), by_layer(run)
    assert_same_diffs(net, expected)
    for name in ('conv2_2', 'pool4'):
        assert_near(net.blobs[name].diff, expected.blobs[name].diff, 1e-4, name)


def test_arrays_that_somebody_holds_show_the_next_step():
    net = forward_backward(trainer())
    data, diff = net.blobs['conv3_1'].data, net.blobs['conv2_2'].diff
    filled(net, seed=1)
    forward_backward(net)
    expected = by_layer(lambda net: forward_backward(filled(net, seed=1)))
    assert net.blobs['conv3_1'].data is data and net.blobs['conv2_2'].diff is diff
    assert_near(data, expected.blobs['conv3_1'].data)
    assert_near(diff, expected.blobs['conv2_2'].diff, 1e-4)


def test_values_outlive_the_forward_but_not_the_next():
    net = forward_backward(trainer())
    expected = by_layer(forward_backward).blobs['conv1_2'].data
    redraw(net, seed=3)
    assert_near(net.blobs['conv1_2'].data, expected)


def test_a_forward_of_some_layers_leaves_the_blobs_of_the_others():
    net = forward_backward(trainer())
    expected = by_layer(forward_backward)
    redraw(net, seed=3)
    filled(net, seed=1)
    net.forward(end='conv2_1')
    assert_near(net.blobs['conv3_2'].data, expected.blobs['conv3_2'].data)


def test_callbacks_see_every_layer():
    net, seen = trainer(), []
    net.after_forward(lambda i: seen.append(net.blobs[net._nodes[i].tops[0]].is_postponed))
    net.forward()
    assert len(seen) == len(net.layers) and not any(seen)


def test_callbacks_see_every_diff_as_it_arrives():
    def run(net):
        seen = {}
        net.after_backward(
            lambda i: seen.update((b, net.blobs[b].diff.copy()) for b in net._nodes[i].bottoms)
        )
        net.forward()
        net.backward()
        return seen

    found, expected = run(trainer()), by_layer(run)
    for name, diff in expected.items():
        assert_near(found[name], diff, 1e-4, name)


def test_hooks_of_layers_see_each_call():
    net, calls = trainer(), []
    net.module.get_submodule('conv3_1').register_forward_hook(lambda *call: calls.append(call))
    net.forward()
    assert len(calls) == 1


def test_copies_of_a_net_train_by_themselves():
    net = forward_backward(trainer())
    copied = copy.deepcopy(net)
    filled(copied, seed=1)
    assert_same_diffs(forward_backward(copied), forward_backward(filled(net, seed=1)))
    assert_near(copied.blobs['conv1_2'].data, net.blobs['conv1_2'].data)


def test_a_module_trains_as_its_layers_do_and_twice_over():
    found = []
    net = drawn('voc_fcn32s')
    for on in (True, False):
        caffe.set_plan(on)
        x = torch.from_numpy(filled(net).blobs['data'].data.copy()).requires_grad_()
        leaves = [x, *(p for p in net.module.parameters() if p.requires_grad)]
        score = net.module(data=x)['score']
        first = torch.autograd.grad(score.square().sum(), leaves, create_graph=True)
        # Of the gradients of the image and of all weights, each of size 1.
        sizes = sum((each / each.detach().norm()).square().sum() for each in first)
        second = torch.autograd.grad(sizes, leaves, allow_unused=True)
        found.append([*first, *(diff for diff in second if diff is not None)])
    for one, other in zip(*found):
        assert_near(one, other, 1e-4)


def steps_of(count: int, iter_size: int = 1) -> tuple[caffe.SGDSolver, list[np.ndarray]]:
    param = caffe.proto.caffe_pb2.SolverParameter(
        base_lr=1e-7, momentum=0.9, weight_decay=0.01, lr_policy='fixed', random_seed=3
    )
    param.iter_size = iter_size
    net = drawn('voc_fcn32s', 'val', caffe.TRAIN, drop=0.5)
    param.net_param.CopyFrom(net.module.param)
    solver = caffe.SGDSolver(param)
    redraw(filled(solver.net))
    solver.step(count)
    return solver, [p.detach().numpy().copy() for p in solver.net.module.parameters()]


def test_recomputing_changes_no_bit(monkeypatch, runs):
    _, expected = steps_of(3, iter_size=2)
    calls = len(runs)
    monkeypatch.setattr(switch, '_recompute', True)
    solver, found = steps_of(3, iter_size=2)
    assert len(runs) == 3 * calls  # once, and then twice
    for one, other in zip(found, expected):
        assert np.array_equal(one, other)
    with pytest.raises(caffe.CaffeError, match='blob conv2_1 was not kept by the last forward'):
        solver.net.blobs['conv2_1'].data  # noqa: B018


def test_recomputed_blobs_and_diffs_are_whole(monkeypatch):
    expected = by_layer(forward_backward)
    monkeypatch.setattr(switch, '_recompute', True)
    net = forward_backward(trainer())
    assert_near(net.blobs['conv2_1'].data, expected.blobs['conv2_1'].data)
    assert_near(net.blobs['conv3_3'].diff, expected.blobs['conv3_3'].diff, 1e-4)


@pytest.mark.parametrize('layer', ['conv1_2', 'conv3_3', 'conv5_3'])
def test_recomputing_refuses_weights_that_have_changed(monkeypatch, layer):
    monkeypatch.setattr(switch, '_recompute', True)
    net = trainer()
    for weight in (net.params[layer][0].data, net.module.get_parameter(f'{layer}.weight').data):
        net.forward()
        weight *= 1.001
        message = r'conv\d_1 to pool\d: the weights have changed since forward'
        with pytest.raises(caffe.CaffeError, match=message):
            net.backward()
    forward_backward(net)


def test_values_in_a_layer_that_learns_nothing_and_beneath_it():
    def frozen(net):
        for layer in ('conv1_1', 'conv1_2', 'conv2_1'):
            for parameter in net.module.get_submodule(layer).parameters():
                parameter.requires_grad_(False)
        return forward_backward(net)

    assert_same_diffs(frozen(trainer()), by_layer(frozen))


def test_a_gradient_that_a_user_holds_stays_as_it_is():
    net = forward_backward(trainer())
    (weight, _) = net.params['conv3_2']
    held = weight.parameter.grad
    before = held.clone()
    net.blobs['data'].data[...] *= 2
    forward_backward(net)
    assert torch.equal(held, before) and not torch.equal(weight.parameter.grad, before)


def test_a_step_takes_the_memory_of_the_cleared_diffs():
    net = forward_backward(trainer())
    (weight, _) = net.params['conv3_2']
    before = weight.parameter.grad.data_ptr()
    forward_backward(net)
    assert weight.parameter.grad.data_ptr() == before
    held = weight.diff
    forward_backward(net)
    assert np.shares_memory(weight.diff, held) and held.any()


def test_a_param_that_is_reshaped_forgets_the_memory_of_its_diff():
    (weight, _) = forward_backward(trainer()).params['conv3_2']
    weight.clear_diff()
    weight.reshape(*weight.shape[::-1])
    assert weight.take_spare() is None


def test_a_layer_takes_no_trace_of_a_forward_before_the_stretch_s():
    def act(net, between):
        caffe.set_plan(False)
        net.forward()
        caffe.set_plan(between)
        net.blobs['data'].data[...] *= -2
        net.forward(start='conv1_1')
        net.backward()
        net.clear_param_diffs()
        net.backward(start='conv3_3')
        return diffs_of(net)

    try:
        expected, found = (act(trainer(), between) for between in (False, True))
    finally:
        caffe.set_plan(True)
    for name, diff in expected.items():
        assert np.abs(found[name] - diff).max() <= 1e-4 * max(np.abs(diff).max(), 1e-9), name


def test_inner_diffs_of_a_net_with_nan_can_be_looked_at():
    net = trainer()
    net.params['conv3_3'][0].data[0, 0, 0, 0] = np.nan
    forward_backward(net)
    assert net.blobs['conv1_1'].diff.shape == net.blobs['conv1_1'].shape
