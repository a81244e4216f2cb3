"""With set_recompute a solver moves each param as soon as its diff is there: the numbers stay."""

import copy

import numpy as np
import pytest
import torch
from google.protobuf import text_format

import caffe_port as caffe
from caffe_port.plan import products, stretches, switch
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.solving import update
from tests import memory
from tests.caffe_port.plan.forced import assert_near, force, redraw

# As fc6 does, fc has more weights than pixels: its diff is kept as two factors.
NET = """
layer { name: 'data' type: 'Input' top: 'data' input_param { shape { dim: [1, 3, 12, 12] } } }
layer { name: 'label' type: 'Input' top: 'label' input_param { shape { dim: [1, 1, 4, 4] } } }
layer { name: 'conv' type: 'Convolution' bottom: 'data' top: 'conv'
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: %(width)d kernel_size: 3 } }
layer { name: 'relu' type: 'ReLU' bottom: 'conv' top: 'conv' }
layer { name: 'fc' type: 'Convolution' bottom: 'conv' top: 'fc'
  param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
  convolution_param { num_output: %(outputs)d kernel_size: 7 } }
layer { name: 'relufc' type: 'ReLU' bottom: 'fc' top: 'fc' }
layer { name: 'one' type: 'Convolution' bottom: 'fc' top: 'one' param { name: 'same' }
  convolution_param { num_output: %(outputs)d kernel_size: 1 bias_term: false } }
layer { name: 'two' type: 'Convolution' bottom: 'one' top: 'two' param { name: 'same' }
  convolution_param { num_output: %(outputs)d kernel_size: 1 bias_term: false } }
layer { name: 'score' type: 'Convolution' bottom: 'two' top: 'score'
  convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'score' bottom: 'label' top: 'loss' }
"""
WEIGHTS = 8 * 49 * 64  # of fc


@pytest.fixture(autouse=True)
def recomputing(monkeypatch):
    force(monkeypatch)
    monkeypatch.setattr(products, 'LEAST_WEIGHTS', WEIGHTS)
    monkeypatch.setattr(stretches, 'MANY_WEIGHTS', WEIGHTS)
    monkeypatch.setattr(update, '_PART', 10 * 8 * 49)
    monkeypatch.setattr(switch, '_recompute', True)


@pytest.fixture
def early(monkeypatch):
    """Collect the numbers of the params that are moved early."""
    found = []
    plain = update.Update.apply_early

    def apply_early(*args):
        moved = plain(*args)
        found.extend(sorted(moved))
        return moved

    monkeypatch.setattr(update.Update, 'apply_early', apply_early)
    return found


def solver_of(type='SGD', width=8, outputs=64, **settings) -> caffe.SGDSolver:
    settings = {'momentum': 0.9, 'base_lr': 0.01, 'weight_decay': 0.01, **settings}
    param = SolverParameter(type=type, lr_policy='fixed', random_seed=3, **settings)
    text_format.Parse(NET % dict(width=width, outputs=outputs), param.net_param)
    return filled(caffe.get_solver(param))


def filled(solver: caffe.SGDSolver) -> caffe.SGDSolver:
    redraw(solver.net)
    rng = np.random.RandomState(0)
    solver.net.blobs['data'].data[...] = rng.randn(*solver.net.blobs['data'].shape)
    solver.net.blobs['label'].data[...] = rng.randint(0, 5, solver.net.blobs['label'].shape)
    return solver


def by_the_rule(monkeypatch, act):
    """Return act(a solver that moves all params after backward)."""
    with monkeypatch.context() as patch:
        patch.setattr(switch, '_recompute', False)
        return act(solver_of())


def assert_same(solver: caffe.SGDSolver, expected: caffe.SGDSolver) -> None:
    """Hold weights, diffs and histories against each other."""
    assert solver.iter == expected.iter
    for name, blobs in expected.net.params.items():
        for i, blob in enumerate(blobs):
            found = solver.net.params[name][i]
            assert_near(found.data, blob.data, 1e-6, f'{name} {i}')
            assert_near(found.diff, blob.diff, 1e-5, f'diff of {name} {i}')
    for one, other in zip(solver._update.arrays(), expected._update.arrays()):
        assert_near(one, other, 1e-5, 'history')


def stepped(solver: caffe.SGDSolver, count: int = 3) -> caffe.SGDSolver:
    solver.step(count)
    return solver


def test_weights_diffs_and_history_are_those_of_an_update_after_backward(monkeypatch, early):
    expected = by_the_rule(monkeypatch, stepped)
    assert not early
    solver = stepped(solver_of())
    # Not number 4, which two layers have.
    assert early == [5, 6, 2, 3, 0, 1] * 3
    weight = solver.net.params['fc'][0]
    assert weight.parameter.grad is None  # no memory was taken for it
    assert np.array_equal(weight.diff, solver._update.arrays()[2])
    assert_same(solver, expected)


def test_diffs_and_weights_may_be_looked_at_and_held_between_steps(monkeypatch, early):
    def act(solver):
        solver.step(1)
        held = [solver.net.params['fc'][0].diff, solver.net.params['conv'][0].diff]
        solver.step(1)
        return solver, held

    expected, held = by_the_rule(monkeypatch, act)
    solver, found = act(solver_of())
    assert early == [5, 6, 2, 3, 0, 1, 5, 6, 3, 1]
    for one, other in zip(found, held):
        assert_near(one, other, 1e-5)
    assert_same(solver, expected)


def test_an_update_by_hand_takes_the_diffs_that_a_step_has_left(monkeypatch):
    def by_hand(solver):
        solver.step(1)
        solver.apply_update()
        solver.net.forward()
        solver.net.backward()  # adds to the diffs
        solver.apply_update()
        return solver

    assert_same(by_hand(solver_of()), by_the_rule(monkeypatch, by_hand))


def test_a_copy_has_the_diffs_too():
    solver = stepped(solver_of(), 1)
    other = copy.deepcopy(solver)
    assert_same(other, solver)
    assert_same(stepped(other), stepped(solver))


def test_the_module_s_own_gradients_and_hooks_are_as_ever():
    solver = stepped(solver_of(), 1)
    weight = solver.net.params['fc'][0].parameter
    solver.net.module.zero_grad()
    inputs = {name: torch.from_numpy(solver.net.blobs[name].data) for name in ('data', 'label')}
    solver.net.module(**inputs)['loss'].backward()
    assert weight.grad is not None and weight.grad.any()
    before = weight.detach().clone()
    history = solver._update.arrays()[2].copy()
    weight.register_hook(torch.zeros_like)
    solver.step(1)
    apart = before - 0.9 * torch.from_numpy(history) - 0.01 * 0.01 * before - weight.detach()
    assert apart.abs().max() < 1e-6


@pytest.mark.parametrize('where', ['backward', 'watch'])
def test_after_an_interrupted_step_an_update_by_hand_moves_all(monkeypatch, where):
    solver = stepped(solver_of(), 1)
    plain = type(solver.net)._step_back

    def step_back(net, part, *args):
        if 'conv' in part.tops:
            raise KeyboardInterrupt
        return plain(net, part, *args)

    def watch():
        raise KeyboardInterrupt

    if where == 'backward':
        monkeypatch.setattr(type(solver.net), '_step_back', step_back)
    else:
        solver.add_watch(lambda: None, watch)
    with pytest.raises(KeyboardInterrupt):
        solver.step(1)
    monkeypatch.undo()
    params = [blob for blobs in solver.net.params.values() for blob in blobs]
    before = [blob.data.copy() for blob in params]
    solver.net.clear_param_diffs()
    solver.net.forward()
    solver.net.backward()
    solver.apply_update()
    assert not any(np.array_equal(blob.data, old) for blob, old in zip(params, before))


def test_who_updates_otherwise_sees_gradients(early):
    class Other(caffe.SGDSolver):
        def apply_update(self):
            self.seen = float(np.abs(self.net.params['fc'][0].diff).sum())
            super().apply_update()

    solver = stepped(filled(Other(solver_of().param)), 1)
    assert solver.seen and not early


def test_diffs_are_made_in_inference_mode_and_for_other_types():
    solver = stepped(solver_of(), 1)
    with torch.inference_mode():
        assert solver.net.params['fc'][0].diff.any()
    solver.net.forward()
    solver.net.backward()
    solver.apply_update()
    solver = stepped(solver_of(), 1)
    solver.net.module.double()
    assert solver.net.params['fc'][0].diff.any()


@pytest.mark.parametrize(
    'settings',
    [
        {'clip_gradients': 0.1},
        {'iter_size': 2},
        {'type': 'Nesterov'},
        {'type': 'Adam', 'momentum2': 0.99},
    ],
)
def test_what_needs_all_gradients_or_its_own_diffs_moves_nothing_early(early, settings):
    stepped(solver_of(**settings))
    assert not early


def test_who_looks_between_sees_all_gradients(early):
    solver = solver_of()
    seen = []
    solver.add_callback(lambda: None, lambda: seen.append(solver.net.params['fc'][0].diff.copy()))
    stepped(solver, 1)
    assert seen[0].any() and not early
    solver = solver_of()
    solver.add_watch(seen.clear, lambda: seen.append(1))
    stepped(solver, 1)
    assert seen == [1] and early
    early.clear()
    solver = solver_of()
    solver.net.after_backward(lambda number: seen.append(number))
    stepped(solver, 1)
    assert len(seen) > 1 and not early


def test_a_loss_that_is_not_finite_moves_nothing(early):
    solver = solver_of()
    solver.net.blobs['data'].data[0, 0, 0, 0] = np.nan
    before = [blob.data.copy() for blobs in solver.net.params.values() for blob in blobs]
    with pytest.raises(caffe.CaffeError, match='loss'):
        solver.step(1)
    after = [blob.data for blobs in solver.net.params.values() for blob in blobs]
    assert all(map(np.array_equal, before, after)) and not early


def test_a_step_takes_no_memory_for_the_diff_of_many_weights(monkeypatch):
    monkeypatch.setattr(update, '_PART', 2**19)
    solver = stepped(solver_of(width=128, outputs=2048), 1)  # fc has 51 MB, same 17
    with memory.at_most(17 + 20):
        stepped(solver, 1)


def test_a_step_frees_what_the_plans_of_test_nets_have_derived():
    solver = solver_of(test_interval=1000, test_iter=[1], test_initialization=False)
    (net,) = solver.test_nets
    found = []
    for _ in range(2):
        net.share_with(solver.net)
        net.blobs['data'].data[...] = 1
        with torch.no_grad():
            found.append(net.forward()['loss'].copy())
        assert net.module.planner._kept._copies and len(net.module.planner._arena)
        stepped(solver, 1)
        assert not net.module.planner._kept._copies and not len(net.module.planner._arena)
    assert found[0] != found[1]
