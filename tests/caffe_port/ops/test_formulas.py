"""Layers that act on elements or whole blobs, against their formulas."""

import numpy as np
import pytest
import torch
from scipy import special

import caffe_port as caffe
from tests.formulas import RANDOM, X, check, draw, layer_net, run
from tests.vectors import assert_close, net_of

POSITIVE = draw(2, 3, 4, seed=1, low=0.5, high=2)
sigmoid = special.expit


# Elementwise.


@pytest.mark.parametrize(
    'type_, settings, formula, x',
    [
        ('AbsVal', '', np.abs, X),
        ('BNLL', '', lambda x: np.logaddexp(0, x), 20 * X),
        ('Clip', 'clip_param { min: -0.5 max: 0.75 }', lambda x: np.clip(x, -0.5, 0.75), X),
        ('ELU', '', lambda x: np.where(x > 0, x, np.expm1(x)), X),
        ('ELU', 'elu_param { alpha: 0.3 }', lambda x: np.where(x > 0, x, 0.3 * np.expm1(x)), X),
        ('Exp', '', np.exp, X),
        ('Exp', 'exp_param { base: 2 scale: 0.5 shift: 3 }', lambda x: 2 ** (3 + 0.5 * x), X),
        ('Exp', 'exp_param { base: 1 }', np.ones_like, X),
        ('Log', '', np.log, POSITIVE),
        (
            'Log',
            'log_param { base: 10 scale: 3 shift: 2 }',
            lambda x: np.log10(2 + 3 * x),
            POSITIVE,
        ),
        ('Power', 'power_param { power: 2 scale: -0.5 shift: 1 }', lambda x: (1 - 0.5 * x) ** 2, X),
        ('Power', 'power_param { power: -0.5 shift: 1 }', lambda x: (1 + x) ** -0.5, POSITIVE),
        ('Power', 'power_param { power: 3 scale: 2 }', lambda x: (2 * x) ** 3, X),
        ('Power', 'power_param { power: 0 scale: 2 }', np.ones_like, X),
        ('Power', 'power_param { power: 3 scale: 0 shift: 2 }', lambda x: np.full_like(x, 8), X),
        ('ReLU', 'relu_param { negative_slope: -0.5 }', lambda x: np.where(x > 0, x, -0.5 * x), X),
        ('Sigmoid', '', sigmoid, 5 * X),
        ('Swish', '', lambda x: x * sigmoid(x), X),
        ('Swish', 'swish_param { beta: 2.5 }', lambda x: x * sigmoid(2.5 * x), X),
        ('TanH', '', np.tanh, X),
        ('Threshold', 'threshold_param { threshold: 0.5 }', lambda x: (x > 0.5) * 1.0, X),
    ],
)
def test_elementwise_layers(type_, settings, formula, x):
    check(type_, settings, formula, x)


@pytest.mark.parametrize(
    'settings, value',
    [
        ('power: -1 scale: 0', np.inf),
        ('power: 0.5 scale: 0 shift: -2', np.nan),
        ('power: 0 scale: 0', 1),
    ],
)
def test_a_power_without_scale_is_cs_pow_of_the_shift(settings, value):
    top = run('Power', f'power_param {{ {settings} }}', X).blobs['t0'].data
    assert np.array_equal(top, np.full(X.shape, value, np.float32), equal_nan=True)


def test_a_power_without_scale_does_not_see_a_nan():
    net = run('Power', 'power_param { power: 0 }', np.full((2, 2), np.nan, np.float32))
    assert (net.blobs['t0'].data == 1).all()


def test_gradients_at_the_kinks_are_caffes():
    zero = np.zeros((1, 1), np.float32)
    for type_, settings, at, slope in (
        ('ReLU', '', 0, 0),
        ('ReLU', 'relu_param { negative_slope: 0.5 }', 0, 0.5),
        ('ELU', 'elu_param { alpha: 0.5 }', 0, 0.5),
        ('AbsVal', '', 0, 0),
        ('Clip', 'clip_param { min: -1 max: 1 }', 1, 1),
        ('Clip', 'clip_param { min: -1 max: 1 }', -1, 1),
    ):
        net = run(type_, settings, zero + at)
        net.backward(t0=zero + 1)
        assert net.blobs['b0'].diff == slope, (type_, settings, at)


@pytest.mark.parametrize('shared', [False, True])
def test_prelu_has_a_slope_per_channel_or_one(shared):
    slope = np.float32(0.3) if shared else draw(3)
    check(
        'PReLU',
        f'prelu_param {{ channel_shared: {str(shared).lower()} }}',
        lambda x, w: np.where(x > 0, x, np.reshape(w, (-1, 1, 1)) * x),
        X,
        params=[slope],
    )


def test_prelu_starts_from_a_quarter():
    assert (run('PReLU', '', X).params['layer'][0].data == 0.25).all()


def test_dropout_of_ratio_0_keeps_everything():
    net = run('Dropout', 'dropout_param { dropout_ratio: 0 }', X, phase=caffe.TRAIN)
    assert np.array_equal(net.blobs['t0'].data, X)


@pytest.mark.parametrize('ratio', [0.3, 0.5])
def test_dropout_zeroes_its_share_and_scales_the_rest(ratio):
    caffe.set_random_seed(5)
    ones = np.ones((1, 50, 20, 20), np.float32)
    net = run('Dropout', f'dropout_param {{ dropout_ratio: {ratio} }}', ones, phase=caffe.TRAIN)
    top = net.blobs['t0'].data
    assert np.allclose(np.unique(top), [0, 1 / (1 - ratio)])
    assert abs((top == 0).mean() - ratio) < 0.015
    net.backward(t0=ones)
    assert np.array_equal(net.blobs['b0'].diff, top)


def test_tops_outside_place_have_their_own_memory():
    for type_, bottoms in (('Dropout', [X]), ('Crop', [X, X])):
        net = run(type_, '', *bottoms)
        net.blobs['t0'].data[...] = 7
        assert np.array_equal(net.blobs['b0'].data, X), type_


# Combining and reshaping.


@pytest.mark.parametrize('axis', [0, 2, -1])
def test_concat_along_any_axis(axis):
    parts = [draw(2, 3, 4, seed=i) for i in range(3)]
    check('Concat', f'concat_param {{ axis: {axis} }}', lambda *p: np.concatenate(p, axis), *parts)


def test_concat_and_slice_know_their_older_axis():
    check('Concat', 'concat_param { concat_dim: 2 }', lambda a, b: np.concatenate([a, b], 2), X, X)
    check('Slice', 'slice_param { slice_dim: 2 }', lambda x: (x[:, :, :2], x[:, :, 2:]), X, tops=2)
    for text in (
        'Concat" concat_param { axis: 1 concat_dim: 1 }',
        'Slice" slice_param { axis: 1 slice_dim: 1 }',
    ):
        type_, settings = text.split('"')
        with pytest.raises(caffe.CaffeError, match=f'{type_}.*give either axis'):
            run(type_, settings, X)


def test_slice_at_points_and_evenly():
    check(
        'Slice',
        'slice_param { axis: -1 slice_point: 1 slice_point: 4 }',
        lambda x: (x[..., :1], x[..., 1:4], x[..., 4:]),
        X,
        tops=3,
    )
    check('Slice', '', lambda x: (x[:, :1], x[:, 1:2], x[:, 2:]), X, tops=3)


def test_split_copies_and_adds_gradients_up():
    check('Split', '', lambda x: (x, x, x), X, tops=3)


@pytest.mark.parametrize('axis', [0, 1, -1])
def test_tile_repeats_along_an_axis(axis):
    check(
        'Tile',
        f'tile_param {{ axis: {axis} tiles: 3 }}',
        lambda x: np.concatenate([x] * 3, axis),
        X,
    )


@pytest.mark.parametrize(
    'settings, shape',
    [
        ('', (2, 60)),
        ('axis: 2', (2, 3, 20)),
        ('axis: 0 end_axis: 1', (6, 4, 5)),
        ('axis: -3 end_axis: -2', (2, 12, 5)),
        ('axis: 1 end_axis: 1', (2, 3, 4, 5)),
    ],
)
def test_flatten_merges_axes(settings, shape):
    check('Flatten', f'flatten_param {{ {settings} }}', lambda x: x.reshape(shape), X)


@pytest.mark.parametrize(
    'settings, shape',
    [
        ('shape { dim: 0 dim: -1 }', (2, 60)),
        ('shape { dim: 6 dim: 20 }', (6, 20)),
        ('shape { dim: -1 } axis: 1 num_axes: 2', (2, 12, 5)),
        ('shape { dim: 1 } axis: -1 num_axes: 0', (2, 3, 4, 5, 1)),
        ('shape { dim: 2 dim: 2 } axis: 2 num_axes: 1', (2, 3, 2, 2, 5)),
        ('shape { } axis: 4', (2, 3, 4, 5)),
        ('shape { dim: 0 dim: 10 dim: 2 } axis: 1', (2, 3, 10, 2)),
    ],
)
def test_reshape_keeps_infers_and_inserts_dims(settings, shape):
    check('Reshape', f'reshape_param {{ {settings} }}', lambda x: x.reshape(shape), X)


@pytest.mark.parametrize(
    'operation, formula',
    [('SUM', lambda x: x), ('ASUM', np.abs), ('SUMSQ', np.square), ('MEAN', lambda x: x)],
)
@pytest.mark.parametrize('axis', [0, 2, -1])
def test_reduction_over_the_axes_from_one_on(operation, formula, axis):
    def reduced(x):
        rows = formula(x).reshape(*x.shape[:axis], -1)
        return 1.5 * (rows.mean(-1) if operation == 'MEAN' else rows.sum(-1))

    check(
        'Reduction',
        f'reduction_param {{ operation: {operation} axis: {axis} coeff: 1.5 }}',
        reduced,
        X,
    )


@pytest.mark.parametrize('axis', [0, 1, -2])
def test_softmax_along_an_axis(axis):
    check('Softmax', f'softmax_param {{ axis: {axis} }}', lambda x: special.softmax(x, axis), X)


@pytest.mark.parametrize('axis', [1, 2, -1])
@pytest.mark.parametrize('transpose', [False, True])
def test_inner_product_from_an_axis_on(axis, transpose):
    inputs = int(np.prod(X.shape[axis:]))
    weight, bias = draw(4, inputs, seed=3), draw(4, seed=4)
    check(
        'InnerProduct',
        f'inner_product_param {{ num_output: 4 axis: {axis} transpose: {str(transpose).lower()} }}',
        lambda x, w, b: x.reshape(*x.shape[:axis], -1) @ (w if transpose else w.T) + b,
        X,
        params=[weight.T if transpose else weight, bias],
    )


def test_inner_product_without_bias():
    check(
        'InnerProduct',
        'inner_product_param { num_output: 2 bias_term: false }',
        lambda x, w: x.reshape(2, -1) @ w.T,
        X,
        params=[draw(2, 60, seed=5)],
    )


@pytest.mark.parametrize(
    'operation, formula',
    [
        ('PROD', lambda a, b, c: a * b * c),
        ('SUM', lambda a, b, c: a + b + c),
        ('MAX', lambda a, b, c: np.maximum(np.maximum(a, b), c)),
    ],
)
@pytest.mark.parametrize('stable', ['true', 'false'])
def test_eltwise_of_three(operation, formula, stable):
    check(
        'Eltwise',
        f'eltwise_param {{ operation: {operation} stable_prod_grad: {stable} }}',
        formula,
        *(draw(2, 3, seed=i) for i in range(3)),
    )


def test_eltwise_ignores_the_coeff_of_a_maximum_and_refuses_that_of_a_product():
    a, b = draw(2, 3), draw(2, 3, seed=1)
    check('Eltwise', 'eltwise_param { operation: MAX coeff: 2 coeff: 3 }', np.maximum, a, b)
    with pytest.raises(caffe.CaffeError, match='coeff does not go with operation PROD'):
        layer_net('Eltwise', 'eltwise_param { operation: PROD coeff: 2 coeff: 3 }', [a, b])


def test_eltwise_max_gives_a_tie_to_one_bottom():
    ones = np.ones((1, 2), np.float32)
    net = run('Eltwise', 'eltwise_param { operation: MAX }', ones, ones, ones)
    net.backward(t0=ones)
    assert [net.blobs[f'b{i}'].diff.sum() for i in range(3)] == [0, 2, 0]


def test_parameter_is_its_blob():
    net = net_of(
        'layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 '
        'dim: 3 } } }',
        force_backward=True,
    )
    net.params['p'][0].data[...] = draw(2, 3)
    assert np.array_equal(net.forward()['p'], draw(2, 3))
    net.backward(p=draw(2, 3, seed=1))
    assert np.array_equal(net.params['p'][0].diff, draw(2, 3, seed=1))


def test_silence_takes_anything_and_passes_no_gradient():
    net = run('Silence', '', X, X, tops=0)
    net.backward()
    assert not net.blobs['b0'].diff.any() and net.outputs == []


# Items and rows.


@pytest.mark.parametrize('bias', ['true', 'false'])
@pytest.mark.parametrize('shape', [(4,), (2, 3), (2, 1, 2, 2)])
def test_embed_gives_a_row_of_the_weight_per_index(bias, shape):
    rows, params = RANDOM(3).randint(0, 5, shape), [draw(5, 3), draw(3, seed=1)]
    check(
        'Embed',
        f'embed_param {{ num_output: 3 input_dim: 5 bias_term: {bias} }}',
        lambda _, w, b=0: w[rows] + b,
        rows,
        params=params[: 1 + (bias == 'true')],
        fixed=[0],
    )


def test_embed_fills_weight_and_bias_by_their_fillers():
    net = run(
        'Embed',
        'embed_param { num_output: 3 input_dim: 5 weight_filler { value: 2 } '
        'bias_filler { value: 0.5 } }',
        np.zeros(2),
    )
    assert [blob.shape for blob in net.params['layer']] == [(5, 3), (3,)]
    assert (net.blobs['t0'].data == 2.5).all()


@pytest.mark.parametrize('order', [[1, 0], [2, 2, 0, 1, 2], [1]])
def test_batch_reindex_takes_items_in_an_order_and_adds_their_gradients_up(order):
    x = draw(3, 2, 2)
    check('BatchReindex', '', lambda x, _: x[order], x, np.array(order), fixed=[1])


@pytest.mark.parametrize(
    'type_, settings, bottoms, size',
    [
        ('Embed', 'embed_param { num_output: 3 input_dim: 5 }', [], 5),
        ('BatchReindex', '', [X], 2),
        ('HingeLoss', '', [X[:1, :, 0, 0]], 3),
        ('InfogainLoss', '', [X[:1, :, 0, 0]], 3),
    ],
)
@pytest.mark.parametrize('index', [-1, 5, np.nan])
def test_an_index_outside_is_named(type_, settings, bottoms, size, index):
    extra = [np.eye(3)] if type_ == 'InfogainLoss' else []
    with pytest.raises(
        caffe.CaffeError,
        match=rf'^layer \({type_}\): (index|label) -?\d+ is '
        rf'outside 0\.\.{size - 1}$',
    ):
        run(type_, settings, *bottoms, np.array([index]), *extra)


def test_filter_keeps_the_items_that_the_last_bottom_selects():
    x, y, selector = draw(4, 2, 3), draw(4, seed=1), np.array([0, 2, 0, -0.5]).reshape(4, 1, 1)
    net = layer_net('Filter', '', [x, y, selector], tops=2)
    assert [net.blobs[t].shape for t in ('t0', 't1')] == [(4, 2, 3), (4,)], 'before a forward'
    check('Filter', '', lambda x, y, _: (x[[1, 3]], y[[1, 3]]), x, y, selector, tops=2, fixed=[2])


def test_filter_follows_its_selector_from_one_forward_to_the_next():
    net = net_of(
        """
layer { name: "x" type: "Input" top: "x" top: "s" input_param { shape { dim: 3 dim: 2 }
        shape { dim: 3 } } }
layer { name: "f" type: "Filter" bottom: "x" bottom: "s" top: "f" }
layer { name: "ip" type: "InnerProduct" bottom: "f" top: "ip" inner_product_param {
        num_output: 4 weight_filler { value: 1 } } }
layer { name: "r" type: "Reduction" bottom: "ip" top: "r" loss_weight: 1 }""",
        force_backward=True,
    )
    x = draw(3, 2)
    for selector in ([1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]):
        kept = np.flatnonzero(selector)
        net.forward(x=x, s=np.array(selector))
        assert net.blobs['ip'].shape == (len(kept), 4)
        assert net.blobs['r'].data == pytest.approx(4 * x[kept].sum(), abs=1e-5)
        net.backward()
        assert np.array_equal(net.blobs['x'].diff, 4.0 * np.outer(selector, [1, 1]))
        assert not net.blobs['s'].diff.any()


@pytest.mark.parametrize(
    'type_, settings, bottoms, tops, message',
    [
        ('Filter', '', [X, np.zeros(3)], 1, r'3 values in the selector for bottom \(2, 3, 4, 5\)'),
        ('Filter', '', [X, X], 1, 'one value per item'),
        ('Filter', '', [X, np.float32(1)], 1, 'item'),
        ('Filter', '', [X, np.zeros(2)], 2, '2 tops for 1 bottoms'),
        ('BatchReindex', '', [X, np.zeros((2, 1))], 1, 'must have 1 axis'),
        ('Embed', 'embed_param { num_output: 3 }', [X], 1, 'input_dim 0 must be positive'),
    ],
)
def test_selectors_and_indices_of_other_shapes_are_refused(type_, settings, bottoms, tops, message):
    with pytest.raises(caffe.CaffeError, match=rf'^layer \({type_}\): .*{message}'):
        layer_net(type_, settings, bottoms, tops)


# Shifts, scales, statistics.


@pytest.mark.parametrize('type_', ['Scale', 'Bias'])
@pytest.mark.parametrize('axis, num_axes', [(1, 1), (0, 2), (2, -1), (-1, 1), (1, 0), (0, -1)])
def test_scale_and_bias_lie_along_axes(type_, axis, num_axes):
    start = axis % 4
    end = 4 if num_axes == -1 else start + num_axes
    factor = draw(*X.shape[start:end], seed=2)

    def laid(f):
        return f.reshape(f.shape + (1,) * (4 - end))

    formula = (lambda x, f: x * laid(f)) if type_ == 'Scale' else (lambda x, f: x + laid(f))
    check(
        type_,
        f'{type_.lower()}_param {{ axis: {axis} num_axes: {num_axes} }}',
        formula,
        X,
        params=[factor],
    )
    check(
        type_,
        f'{type_.lower()}_param {{ axis: {0 if end == start else axis} }}',
        formula,
        X,
        factor,
    )


def test_scale_with_bias_of_one_and_two_bottoms():
    factor, bias = draw(3, seed=2), draw(3, seed=3)
    settings = 'scale_param { bias_term: true }'

    def formula(x, f, b):
        return x * f[:, None, None] + b[:, None, None]

    check('Scale', settings, formula, X, params=[factor, bias])
    check('Scale', settings, formula, X, factor, params=[bias])


def test_scale_starts_from_1_and_bias_from_0():
    assert (run('Scale', '', X).params['layer'][0].data == 1).all()
    assert (run('Bias', '', X).params['layer'][0].data == 0).all()


def normalized(x, axes, eps):
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + eps)


def test_batch_norm_in_train_uses_and_remembers_the_batch():
    net = check(
        'BatchNorm',
        'batch_norm_param { eps: 0.01 moving_average_fraction: 0.9 }',
        lambda x: normalized(x, (0, 2, 3), 0.01),
        X,
        phase=caffe.TRAIN,
    )
    mean, variance, factor = (blob.data for blob in net.params['layer'])
    assert factor == 1
    assert_close(mean, X.mean((0, 2, 3)), 1e-5)
    assert_close(variance, X.var((0, 2, 3), ddof=1), 1e-5)
    net.forward()
    assert_close(mean, 1.9 * X.mean((0, 2, 3)), 1e-5)
    assert factor == np.float32(1.9)


def test_batch_norm_in_test_uses_the_blobs_over_their_factor():
    mean, variance, factor = draw(3), draw(3, low=1, high=2), np.float32(4)

    def formula(x):
        return (x - mean[:, None, None] / 4) / np.sqrt(variance[:, None, None] / 4 + 1e-5)

    settings = ('', caffe.TEST), ('batch_norm_param { use_global_stats: true }', caffe.TRAIN)
    for text, phase in settings:
        net = layer_net('BatchNorm', text, [X], phase=phase)
        for blob, values in zip(net.params['layer'], (mean, variance, factor)):
            blob.data[...] = values
        assert_close(net.forward()['t0'], formula(X.astype(np.float64)), 1e-5)
        net.backward(t0=np.ones_like(X))
        assert_close(net.blobs['b0'].diff[0, :, 0, 0], 1 / np.sqrt(variance / 4 + 1e-5), 1e-5)
        assert np.array_equal(net.params['layer'][0].data, mean)


def test_batch_norm_in_test_passes_the_gradient_of_its_formula():
    mean, variance, factor = draw(3), draw(3, low=1, high=2, seed=1), np.float32(4)
    net = layer_net('BatchNorm', 'batch_norm_param { eps: 0.01 }', [X])
    for blob, values in zip(net.params['layer'], (mean, variance, factor)):
        blob.data[...] = values
    net.forward()
    given = draw(*X.shape, seed=3)
    net.backward(t0=given)
    slope = 1 / np.sqrt(variance.astype(np.float64) / 4 + 0.01)
    assert_close(net.blobs['b0'].diff, given * slope[:, None, None], 1e-5)
    assert not any(blob.diff.any() for blob in net.params['layer'])


@pytest.mark.parametrize('shape', [(6,), (5, 3), (2, 3, 4), (2, 3, 2, 4, 3), (0, 3, 2)])
def test_batch_norm_in_test_takes_any_axes(shape):
    x, channels = draw(*shape), shape[1] if len(shape) > 1 else 1
    mean, variance = 100 + draw(channels), draw(channels, low=1, high=2)
    net = run('BatchNorm', '', x + 100, params=[mean, variance, np.float32(1)])
    rows = (
        (x + np.float32(100)).astype(np.float64).reshape(*shape[:1], channels, -1) if x.size else x
    )
    expected = (rows - mean[:, None].astype(np.float64)) / np.sqrt(variance[:, None] + 1e-5)
    assert_close(net.blobs['t0'].data, expected.reshape(shape), 1e-5)


def test_batch_norm_in_test_is_one_pass_over_memory():
    net = run('BatchNorm', '', X, params=[np.zeros(3), np.ones(3), np.float32(1)])
    bottom, largest = torch.from_numpy(X), X.nbytes
    with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
        net.module.layer(bottom)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.events()) < 2 * largest


def test_batch_norm_without_history_divides_by_eps_alone():
    net = run('BatchNorm', '', X)
    assert_close(net.blobs['t0'].data, X / np.sqrt(1e-5), 1e-5)


@pytest.mark.parametrize('across', [False, True])
@pytest.mark.parametrize('variance', [False, True])
def test_mvn_per_channel_or_across(across, variance):
    axes = (1, 2, 3) if across else (2, 3)

    def formula(x):
        centred = x - x.mean(axes, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axes, keepdims=True)) + 1e-9
        return centred / deviation if variance else centred

    check(
        'MVN',
        f'mvn_param {{ across_channels: {str(across).lower()} '
        f'normalize_variance: {str(variance).lower()} }}',
        formula,
        X,
    )


def test_mvn_takes_eps_into_its_gradient_as_caffe_does():
    net = run('MVN', 'mvn_param { eps: 0.5 }', X)
    given = draw(*X.shape, seed=8)
    net.backward(t0=given)
    x, axes = X.astype(np.float64), (2, 3)
    centred = x - x.mean(axes, keepdims=True)
    divisor = np.sqrt(np.square(centred).mean(axes, keepdims=True)) + 0.5
    y = centred / divisor
    assert_close(net.blobs['t0'].data, y, 1e-5)
    expected = (
        given - given.mean(axes, keepdims=True) - y * (given * y).mean(axes, keepdims=True)
    ) / divisor
    assert_close(net.blobs['b0'].diff, expected, 1e-5)


def test_mvn_of_a_constant_channel_is_0_with_finite_gradient():
    net = run('MVN', '', np.ones((1, 1, 2, 2), np.float32))
    net.backward(t0=np.eye(2, dtype=np.float32)[None, None])
    assert not net.blobs['t0'].data.any() and np.isfinite(net.blobs['b0'].diff).all()
    assert not run('MVN', '', draw(2, 3)).blobs['t0'].data.any(), 'a channel of one value'
