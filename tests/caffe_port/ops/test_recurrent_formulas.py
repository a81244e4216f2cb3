"""LSTM, RNN and LSTMUnit against their formulas; how states go from forward to forward."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit

import caffe_port as caffe
from caffe_port.ops.recurrent import LSTM, RNN
from tests.formulas import check, differences, draw, layer_net, run
from tests.vectors import assert_close

STEPS, STREAMS, SIZE = 4, 3, 2
X, STATIC = draw(STEPS, STREAMS, 2, 2, low=-1, high=1), draw(STREAMS, 3, seed=1)
CONT = np.float32([[0, 0, 1], [1, 1, 1], [1, 0, 1], [1, 1, 0]])
H0, C0 = draw(1, STREAMS, SIZE, seed=2), draw(1, STREAMS, SIZE, seed=3)
SETTINGS = f'recurrent_param {{ num_output: {SIZE} %s }}'
PLAIN, EXPOSED = SETTINGS % '', SETTINGS % 'expose_hidden: true'


def params_of(type_, static=False):
    rows = 4 * SIZE if type_ == 'LSTM' else SIZE
    shapes = [(rows, 4), (rows,), *[(rows, 3)] * static, (rows, SIZE)]
    shapes += [] if type_ == 'LSTM' else [(SIZE, SIZE), (SIZE,)]
    return [draw(*shape, seed=10 + i, low=-1, high=1) for i, shape in enumerate(shapes)]


def cell(c, gates, cont):
    i, f, o, g = np.split(gates, 4, -1)
    c = cont * expit(f) * c + expit(i) * np.tanh(g)
    return c, expit(o) * np.tanh(c)


def lstm(x, cont, W_xc, b_c, W_hc, static=0, h=0, c=0):
    h, c, tops = h + np.zeros((x.shape[1], SIZE)), c + np.zeros((x.shape[1], SIZE)), []
    for values, k in zip(x.reshape(*x.shape[:2], -1), cont[..., None]):
        c, h = cell(c, values @ W_xc.T + b_c + static + (k * h) @ W_hc.T, k)
        tops.append(h)
    return np.stack(tops), h[None], c[None]


def rnn(x, cont, W_xh, b_h, W_hh, W_ho, b_o, static=0, h=0):
    h, tops = h + np.zeros((x.shape[1], SIZE)), []
    for values, k in zip(x.reshape(*x.shape[:2], -1), cont[..., None]):
        h = np.tanh(values @ W_xh.T + b_h + static + (k * h) @ W_hh.T)
        tops.append(np.tanh(h @ W_ho.T + b_o))
    return np.stack(tops), h[None]


FORMULAS = {'LSTM': lstm, 'RNN': rnn}


@pytest.mark.parametrize('type_', FORMULAS)
def test_sequences_are_cut_where_cont_is_0(type_):
    check(
        type_,
        PLAIN,
        lambda x, _, *params: FORMULAS[type_](x, CONT, *params)[0],
        X,
        CONT,
        params=params_of(type_),
        fixed=[1],
    )


@pytest.mark.parametrize('type_', FORMULAS)
def test_a_static_input_adds_to_every_step(type_):
    def formula(x, _, static, weight, bias, of_static, *others):
        return FORMULAS[type_](x, CONT, weight, bias, *others, static=static @ of_static.T)[0]

    check(type_, PLAIN, formula, X, CONT, STATIC, params=params_of(type_, True), fixed=[1])


@pytest.mark.parametrize('static', [False, True])
@pytest.mark.parametrize('type_, states', [('LSTM', [H0, C0]), ('RNN', [H0])])
def test_expose_hidden_takes_and_gives_states_without_gradient(type_, states, static):
    extra, params = [STATIC] * static, params_of(type_, static)
    net = run(type_, EXPOSED, X, CONT, *extra, *states, tops=1 + len(states), params=params)

    def formula(x, weight, bias, *others):
        added, others = (STATIC @ others[0].T, others[1:]) if static else (0, others)
        given = dict(zip('hc', (state[0] for state in states)))
        return FORMULAS[type_](x, CONT, weight, bias, *others, static=added, **given)

    inputs = [array.astype(np.float64) for array in (X, *params)]
    for i, expected in enumerate(formula(*inputs)):
        assert_close(net.blobs[f't{i}'].data, expected, 1e-5, f't{i}')
    weight = draw(STEPS, STREAMS, SIZE, seed=7)
    for i in range(len(states)):
        net.blobs[f't{1 + i}'].diff[...] = 5  # Caffe ignores it
    net.backward(t0=weight, **{f't{1 + i}': 5 + 0 * H0 for i in range(len(states))})
    for i, blob in enumerate([net.blobs['b0'], *net.params['layer']]):
        expected = differences(lambda values: (weight * formula(*values)[0]).sum(), inputs, i)
        assert_close(blob.diff, expected, 1e-3, f'gradient {i}')
    for i in range(len(states)):
        assert not net.blobs[f'b{2 + static + i}'].diff.any()


# The path that a GPU takes, here on the CPU.

WHOLE = np.concatenate([CONT[:1], np.ones((STEPS - 1, STREAMS), np.float32)])


@pytest.mark.parametrize('static', [False, True])
@pytest.mark.parametrize('type_', [LSTM, RNN])
def test_pytorchs_cell_is_caffes_where_sequences_begin_at_the_first_step(
    monkeypatch, type_, static
):
    called = []
    monkeypatch.setattr(type_, '_fits_cudnn', lambda *_: called.append(1) or True)
    name = type_.__name__

    def formula(x, _, *others):
        added, others = (others[0] @ others[3].T, others[1:]) if static else (0, others)
        others = [*others[:2], *others[3:]] if static else others
        found = FORMULAS[name](x, WHOLE, *others, static=added)
        return found[0] if isinstance(found, tuple) else found

    extra, params = [STATIC] * static, params_of(name, static)
    check(name, PLAIN, formula, X, WHOLE, *extra, params=params, fixed=[1])
    assert called


@pytest.mark.parametrize('type_, states', [(LSTM, [H0, C0]), (RNN, [H0])])
def test_states_go_on_through_pytorchs_cell_too(monkeypatch, type_, states):
    name = type_.__name__
    nets = [run(name, PLAIN, X, WHOLE, params=params_of(name)) for _ in range(2)]
    nets[0].forward()
    with monkeypatch.context() as patch:
        patch.setattr(type_, '_fits_cudnn', lambda *_: True)
        nets[1].forward()
    for net in nets:
        net.forward()
    assert_close(nets[1].blobs['t0'].data, nets[0].blobs['t0'].data, 1e-6)
    exposed, tops = [], 1 + len(states)
    for fits in (False, True):
        monkeypatch.setattr(type_, '_fits_cudnn', lambda *_, fits=fits: fits)
        net = run(name, EXPOSED, X, WHOLE, *states, tops=tops, params=params_of(name))
        exposed.append([net.blobs[f't{i}'].data.copy() for i in range(tops)])
    for one, two in zip(*exposed):
        assert_close(one, two, 1e-6)


@pytest.mark.parametrize(
    'cont, fits',
    [(WHOLE, True), (CONT, False), (WHOLE[:1], True), (WHOLE / 2, False), (0.5 * WHOLE[:1], False)],
)
def test_cudnn_computes_on_a_gpu_where_the_cell_is_the_same(cont, fits):
    layer = layer_net('LSTM', PLAIN, [X, CONT]).module.layer
    x = SimpleNamespace(is_cuda=True, is_meta=False)
    assert layer._fits_cudnn(x, torch.from_numpy(cont)) == fits
    assert not layer._fits_cudnn(torch.from_numpy(X), torch.from_numpy(cont))


def test_lstm_unit_is_one_step():
    gates, cont = draw(1, STREAMS, 4 * SIZE), np.float32([[1, 0, 1]])
    check(
        'LSTMUnit',
        '',
        lambda c, gates, cont: cell(c, gates, cont[..., None]),
        C0,
        gates,
        cont,
        tops=2,
        fixed=[2],
    )


def test_lstm_unit_takes_f_times_cont_for_a_sigmoid_as_caffe_does():
    gates, cont = draw(1, STREAMS, 4 * SIZE), np.full((1, STREAMS), 0.5, np.float32)
    net = run('LSTMUnit', '', C0, gates, cont, tops=2)
    c, _ = cell(C0.astype(np.float64), gates.astype(np.float64), 0.5)
    assert_close(net.blobs['t0'].data, c, 1e-5)
    net.backward(t0=np.ones_like(C0), t1=np.zeros_like(C0))
    f = 0.5 * expit(gates[..., SIZE : 2 * SIZE].astype(np.float64))
    assert_close(net.blobs['b1'].diff[..., SIZE : 2 * SIZE], C0 * f * (1 - f), 1e-5)


def test_a_cell_forgets_whatever_it_holds_where_cont_is_0():
    c, gates = np.full((1, 1, 1), 3e38, np.float32), np.full((1, 1, 4), np.nan, np.float32)
    gates[..., [0, 2, 3]] = 0
    net = run('LSTMUnit', '', c, gates, np.zeros((1, 1)), tops=2)
    assert not net.blobs['t0'].data.any()


# From one forward to the next.


def sequence_net(type_, streams=STREAMS, phase=caffe.TEST):
    net = layer_net(type_, PLAIN, [X[:, :streams], CONT[:, :streams]], phase=phase)
    for blob, values in zip(net.params['layer'], params_of(type_)):
        blob.data[...] = values
    return net


def step(net, x, cont):
    for name, array in (('b0', x), ('b1', cont)):
        net.blobs[name].reshape(*array.shape)
        net.blobs[name].data[...] = array
    return net.forward()['t0'].copy()


@pytest.mark.parametrize('type_', FORMULAS)
def test_states_go_on_from_one_forward_to_the_next(type_):
    net, ones = sequence_net(type_), np.ones_like(CONT)
    parts = [step(net, x, ones) for x in (X, 2 * X, -X)]
    whole = np.concatenate([X, 2 * X, -X]).astype(np.float64)
    expected = FORMULAS[type_](whole, np.ones((3 * STEPS, STREAMS)), *params_of(type_))[0]
    assert_close(np.concatenate(parts), expected, 1e-5)
    net.backward(t0=np.ones_like(parts[0]))
    assert np.isfinite(net.blobs['b0'].diff).all(), 'the gradient ends at the forward'
    zero_first = ones.copy()
    zero_first[0] = 0
    assert np.array_equal(step(net, X, zero_first), parts[0])


@pytest.mark.parametrize('type_', FORMULAS)
def test_fewer_streams_keep_their_states_and_more_begin_at_0(type_):
    net, fewer, ones = sequence_net(type_), sequence_net(type_), np.ones_like(CONT)
    first = step(net, X, ones)
    fewer.module.layer.set_state(net.module.layer.state())
    assert_close(step(fewer, X[:, :2], ones[:, :2]), step(net, X, ones)[:, :2], 1e-6)
    small = sequence_net(type_, 2)
    step(small, X[:, :2], ones[:, :2])
    assert np.array_equal(step(small, X, ones), first)


@pytest.mark.parametrize('type_', FORMULAS)
def test_a_state_is_plain_and_goes_on_to_the_bit(type_):
    net, other, ones = sequence_net(type_), sequence_net(type_), np.ones_like(CONT)
    begin = net.module.layer.state()
    assert begin['hidden'] == []
    step(net, X, ones)
    state = net.module.layer.state()
    assert state == copy.deepcopy(state) and all(type(text) is str for text in state['hidden'])
    other.module.layer.set_state(state)
    assert np.array_equal(step(net, X, ones), step(other, X, ones))
    other.module.layer.set_state(begin)
    fresh = sequence_net(type_)
    assert np.array_equal(step(other, X, ones), step(fresh, X, ones))


@pytest.mark.parametrize(
    'state, message',
    [
        ({}, 'not hidden states of size 2'),
        ({'streams': 3, 'hidden': ['AAAA']}, 'not hidden states of size 2'),
        ({'streams': 3, 'hidden': ['?']}, 'not hidden states of size 2'),
        ({'streams': 0, 'hidden': ['', '', '']}, '3 hidden states, expected 2'),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(state, message):
    net = sequence_net('LSTM')
    step(net, X, CONT)
    before = net.module.layer.state()
    with pytest.raises(caffe.CaffeError, match=f'state of layer: {message}'):
        net.module.layer.set_state(state)
    assert net.module.layer.state() == before


# What is refused.


@pytest.mark.parametrize(
    'type_, settings, bottoms, tops, message',
    [
        ('LSTM', PLAIN, [X, CONT[:, :2]], 1, r'cont \(4, 2\), expected \(4, 3\)'),
        ('LSTM', PLAIN, [X[:, :, 0, 0], CONT], 1, r'x \(4, 3\) must have 3 axes or more'),
        ('LSTM', 'recurrent_param { }', [X, CONT], 1, 'num_output must be positive'),
        ('LSTM', PLAIN, [X, CONT, H0, C0], 1, '4 bottoms and 1 tops, expected 2 bottoms, or one'),
        ('LSTM', PLAIN, [X, CONT], 3, '2 bottoms and 3 tops'),
        ('LSTM', EXPOSED, [X, CONT, H0], 3, '3 bottoms and 3 tops, expected 4 bottoms'),
        ('LSTM', EXPOSED, [X, CONT, H0, C0[0]], 3, r'c_0 \(3, 2\), expected \(1, 3, 2\)'),
        ('RNN', EXPOSED, [X, CONT, H0], 1, '3 bottoms and 1 tops, expected 3 bottoms'),
        ('RNN', PLAIN, [X, CONT, STATIC[:2]], 1, r'bottom \(2, 3\) must have 3 streams of 3'),
        ('LSTMUnit', '', [C0, C0, CONT[:1]], 2, r'gates \(1, 3, 2\) and cont \(1, 3\), expected'),
        ('LSTMUnit', '', [C0[0], C0, CONT[:1]], 2, r'c_prev \(3, 2\) must be 1 x N x D'),
    ],
)
def test_recurrent_layers_refuse_what_does_not_fit(type_, settings, bottoms, tops, message):
    with pytest.raises(caffe.CaffeError, match=rf'^layer \({type_}\): {message}'):
        layer_net(type_, settings, bottoms, tops)


def test_x_of_other_values_than_the_weight_has_is_refused():
    net = sequence_net('LSTM')
    with pytest.raises(caffe.CaffeError, match='must have 3 streams of 4 values'):
        step(net, draw(STEPS, STREAMS, 5), CONT)


def test_blobs_are_in_caffes_order():
    for type_, count in (('LSTM', 4), ('RNN', 6)):
        net = layer_net(type_, PLAIN, [X, CONT, STATIC])
        names = ['weight', 'bias', '2', '3', '4', '5'][:count]
        assert list(net.module.state_dict()) == [f'layer.{name}' for name in names]
        shapes = [values.shape for values in params_of(type_, static=True)]
        assert [blob.shape for blob in net.params['layer']] == shapes
