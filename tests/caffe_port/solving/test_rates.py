"""Learning rates at the ends of their policies, and updates where a factor is 0."""

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port.building import Learnable
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.solving import solver as solver_module
from caffe_port.solving.losses import Pass
from caffe_port.solving.schedule import learning_rate
from caffe_port.solving.update import Update
from tests.caffe_port.solving.test_solver import solver_of
from tests.vectors import load

VECTOR = load('solver/fixed.npz')


def rate(iteration: int, **fields) -> float:
    param = SolverParameter(base_lr=1, **fields)
    return learning_rate(param, iteration, 0, 'here')


# Policies.


def test_sigmoid_goes_to_0_and_to_base_lr():
    fields = dict(lr_policy='sigmoid', stepsize=5000)
    assert rate(5000, gamma=1, **fields) == 0.5
    assert rate(0, gamma=1, **fields) < 1e-45 and rate(10000, gamma=1, **fields) == 1
    assert rate(0, gamma=-1, **fields) == 1 and rate(10000, gamma=-1, **fields) < 1e-45
    assert rate(4980, gamma=1, **fields) == pytest.approx(np.exp(-20), rel=1e-8)


@pytest.mark.parametrize(
    'fields, iteration',
    [
        (dict(lr_policy='poly', power=0.5, max_iter=10), 11),
        (dict(lr_policy='poly', power=-1, max_iter=10), 10),
        (dict(lr_policy='inv', power=0.5, gamma=-1), 3),
        (dict(lr_policy='exp', gamma=10), 1000),
    ],
)
def test_where_caffes_pow_is_not_finite_policy_and_iteration_are_named(fields, iteration):
    message = (
        f'here: lr_policy "{fields["lr_policy"]}" has no finite rate at iteration '
        f'{iteration}; Caffe'
    )
    with pytest.raises(caffe.CaffeError, match=message):
        rate(iteration, **fields)


def test_poly_past_max_iter_goes_on_where_a_real_power_is():
    assert rate(12, lr_policy='poly', power=1, max_iter=10) == pytest.approx(-0.2)


@pytest.mark.parametrize(
    'fields, name',
    [
        (dict(lr_policy='step', gamma=0.1, stepsize=0), 'stepsize'),
        (dict(lr_policy='poly', power=1, max_iter=0), 'max_iter'),
    ],
)
def test_a_policy_that_divides_by_0_is_refused_with_the_solver(fields, name):
    with pytest.raises(caffe.CaffeError, match=f'divides by {name}, which is 0'):
        solver_of(VECTOR, **fields)


# Updates.


@pytest.mark.parametrize('kind', ['SGD', 'Nesterov'])
@pytest.mark.parametrize('decays', ['L1', 'L2'])
@pytest.mark.parametrize('rate, clip', [(0.0, -1), (1e-40, -1), (0.5, 0), (0.0, 0), (0.5, -1)])
def test_without_rate_or_gradient_momentum_and_decay_go_on_as_in_caffe(kind, decays, rate, clip):
    momentum, decay = 0.9, 0.25
    param = SolverParameter(
        type=kind,
        momentum=momentum,
        weight_decay=decay,
        regularization_type=decays,
        clip_gradients=clip,
    )
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    update = Update(kind, param, [Learnable(weight, 1.0, 1.0)])
    w, h = weight.detach().numpy().astype(np.float64), np.zeros(3)
    for given in (0.1, rate, rate):
        gradient = np.array([0.5, 2, -1])
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        param.clip_gradients = -1 if given == 0.1 else clip
        update.apply(given, 0)
        pull = decay * (np.sign(w) if decays == 'L1' else w)
        before, h = h, momentum * h + given * (gradient * (param.clip_gradients < 0) + pull)
        w = w - (h if kind == 'SGD' else (1 + momentum) * h - momentum * before)
        assert np.allclose(weight.detach().numpy(), w, rtol=1e-5, atol=0)
        assert np.allclose(update.arrays()[0], h, rtol=1e-5, atol=0)


# In the solver.


def feed(solver: caffe.SGDSolver) -> None:
    for blob in ('data', 'label'):
        solver.net.blobs[blob].data[...] = VECTOR[blob][0]


def test_the_rate_shown_and_asked_for_is_that_of_the_update(caplog):
    solver = solver_of(VECTOR, base_lr=2**-20, display=1)
    solver.param.MergeFrom(SolverParameter(lr_policy='multistep', gamma=0.5, stepvalue=[1, 3]))
    asked, updated = [], []
    solver.add_callback(lambda: asked.append(solver.rate()), lambda: asked.append(solver.rate()))
    apply = solver._update.apply
    solver._update.apply = lambda rate, *rest: (updated.append(rate), apply(rate, *rest))
    feed(solver)
    with caplog.at_level('INFO', 'caffe_port'):
        solver.step(4)
    assert updated == [2**-20, 2**-21, 2**-21, 2**-22]
    assert asked == [rate for rate in updated for _ in range(2)]
    shown = [record.args[1] for record in caplog.records if ', lr = ' in record.msg]
    assert shown == updated
    assert caplog.text.count('MultiStep Status') == 2


def test_a_loss_that_is_not_finite_names_the_image_of_its_pass():
    solver = solver_of(VECTOR, iter_size=3)
    forward, names = solver.net.forward_range, iter(['one', 'two', 'three'])
    current = []

    def fed(*range_of_layers):
        current[:] = [next(names)]
        feed(solver)
        if current == ['two']:
            solver.net.blobs['data'].data[...] = np.nan
        forward(*range_of_layers)

    solver.net.forward_range, solver._images = fed, lambda: current[0]
    with pytest.raises(caffe.CaffeError, match='iteration 0: the loss is nan on image two;'):
        solver.step(1)


class Afar(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    device = property(lambda self: torch.device('cuda'))


def test_on_a_gpu_losses_are_checked_now_and_then_without_a_display(monkeypatch):
    monkeypatch.setattr(solver_module, '_MAX_UNCHECKED', 3)
    solver = solver_of(VECTOR, display=0)
    passes, unchecked = solver._forward_backward, []
    solver._forward_backward = lambda: [
        Pass(one.images, one.loss.as_subclass(Afar)) for one in passes()
    ]
    for _ in range(7):
        feed(solver)
        solver.step(1)
        unchecked.append(len(solver._unchecked))
    assert unchecked == [1, 2, 0, 1, 2, 0, 1]
