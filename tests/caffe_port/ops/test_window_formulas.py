"""Layers that look at neighbourhoods, against their formulas."""

import itertools

import numpy as np
import pytest

import caffe_port as caffe
from caffe_port import rng
from tests.formulas import RANDOM, X, check, draw, layer_net, run
from tests.vectors import assert_close

# Windows.


def windows(size, kernel, stride, pad, ceil, any_pad):
    """Start and end of each window in the padded image, by pooling_layer.cpp's rules."""
    count = (
        -(-(size + 2 * pad - kernel) // stride) if ceil else (size + 2 * pad - kernel) // stride
    ) + 1
    if any_pad and (count - 1) * stride >= size + pad:
        count -= 1
    return [(i * stride - pad, min(i * stride - pad + kernel, size + pad)) for i in range(count)]


def pooled(x, kernel, stride, pad, maximum, ceil=True):
    rows, columns = (
        windows(x.shape[2 + i], kernel[i], stride[i], pad[i], ceil, any(pad)) for i in (0, 1)
    )
    top = np.zeros((*x.shape[:2], len(rows), len(columns)))
    mask = np.full(top.shape, -1.0)
    for (i, (a, b)), (j, (c, d)) in itertools.product(enumerate(rows), enumerate(columns)):
        part = x[:, :, max(a, 0) : b, max(c, 0) : d].reshape(*x.shape[:2], -1)
        if not maximum:
            with np.errstate(divide='ignore', invalid='ignore'):
                top[:, :, i, j] = part.sum(-1) / np.float64((b - a) * (d - c))
        elif part.shape[-1] == 0:
            top[:, :, i, j] = np.finfo(np.float32).min
        else:
            width = min(d, x.shape[3]) - max(c, 0)
            best = part.argmax(-1)
            top[:, :, i, j] = part.max(-1)
            mask[:, :, i, j] = (best // width + max(a, 0)) * x.shape[3] + best % width + max(c, 0)
    return (top, mask) if maximum else top


GEOMETRIES = [  # kernel, stride, pad, each as (h, w)
    ((2, 2), (2, 2), (0, 0)),
    ((3, 3), (2, 2), (1, 1)),
    ((3, 3), (2, 2), (2, 2)),
    ((3, 2), (1, 2), (0, 1)),
    ((2, 3), (3, 4), (0, 0)),
    ((2, 2), (3, 3), (1, 1)),
    ((4, 5), (1, 3), (3, 4)),
    ((1, 1), (2, 2), (0, 0)),
    ((1, 3), (3, 2), (0, 1)),
    ((1, 1), (4, 4), (0, 0)),
]


def pooling(kernel, stride, pad, extra=''):
    names = zip(('kernel', 'stride', 'pad'), (kernel, stride, pad))
    return (
        'pooling_param { '
        + ' '.join(f'{name}_h: {h} {name}_w: {w}' for name, (h, w) in names)
        + f' {extra} }}'
    )


@pytest.mark.parametrize('ceil', [True, False])
@pytest.mark.parametrize('kernel, stride, pad', GEOMETRIES)
@pytest.mark.parametrize('size', [(5, 6), (6, 7)])
def test_pooling_follows_caffes_windows(kernel, stride, pad, size, ceil):
    x = RANDOM(1).permutation(6 * size[0] * size[1]).reshape(2, 3, *size).astype(np.float32)
    mode = '' if ceil else 'round_mode: FLOOR'
    net = run('Pooling', pooling(kernel, stride, pad, mode), x, tops=2)
    top, mask = pooled(x, kernel, stride, pad, True, ceil)
    assert np.array_equal(net.blobs['t0'].data, top.astype(np.float32))
    assert np.array_equal(net.blobs['t1'].data, mask)
    mean = run('Pooling', pooling(kernel, stride, pad, f'pool: AVE {mode}'), x).blobs['t0'].data
    expected = pooled(x, kernel, stride, pad, False, ceil)
    assert mean.shape == expected.shape
    assert np.allclose(mean, expected, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize('kernel, stride, pad', [g for g in GEOMETRIES if g[0] != (1, 1)])
def test_gradients_of_pooling_go_back_to_their_windows(kernel, stride, pad):
    x = RANDOM(1).permutation(60).reshape(1, 2, 5, 6).astype(np.float32) / 10
    check(
        'Pooling',
        pooling(kernel, stride, pad),
        lambda x: pooled(x, kernel, stride, pad, True)[0],
        x,
    )
    check(
        'Pooling',
        pooling(kernel, stride, pad, 'pool: AVE'),
        lambda x: pooled(x, kernel, stride, pad, False),
        x,
    )


POSITIVE = draw(2, 3, 5, 6, low=0, high=1)
STOCHASTIC = [  # kernel, stride, round mode
    ((2, 2), (2, 2), 'CEIL'),
    ((3, 2), (1, 2), 'FLOOR'),
    ((3, 3), (2, 2), 'CEIL'),
    ((2, 2), (3, 4), 'CEIL'),
    ((1, 1), (4, 4), 'CEIL'),
    ((1, 1), (3, 5), 'FLOOR'),
]


def elements_of(x, kernel, stride, ceil):
    """Row and column ranges of each window, and its elements n x c x k, in C order."""
    rows, columns = (windows(x.shape[2 + i], kernel[i], stride[i], 0, ceil, False) for i in (0, 1))
    for (i, (a, b)), (j, (c, d)) in itertools.product(enumerate(rows), enumerate(columns)):
        part = x[:, :, a : min(b, x.shape[2]), c : min(d, x.shape[3])]
        yield (len(rows), len(columns)), (i, j), (a, c, d), part.reshape(*x.shape[:2], -1)


def weighted(x, kernel, stride, ceil):
    found = list(elements_of(x, kernel, stride, ceil))
    size = found[0][0]
    values = []
    for *_, part in found:
        sums = part.sum(-1)
        values.append(np.where(sums > 0, (part**2).sum(-1) / np.where(sums > 0, sums, 1), 0))
    return np.stack(values, -1).reshape(*x.shape[:2], *size)


@pytest.mark.parametrize('kernel, stride, mode', STOCHASTIC)
def test_stochastic_pooling_in_test_weighs_each_value_by_itself(kernel, stride, mode):
    settings = pooling(kernel, stride, (0, 0), f'pool: STOCHASTIC round_mode: {mode}')
    check('Pooling', settings, lambda x: weighted(x, kernel, stride, mode == 'CEIL'), POSITIVE)


@pytest.mark.parametrize('kernel, stride, mode', STOCHASTIC)
def test_stochastic_pooling_in_train_picks_by_one_uniform_number_per_window(kernel, stride, mode):
    settings = pooling(kernel, stride, (0, 0), f'pool: STOCHASTIC round_mode: {mode}')
    net = layer_net('Pooling', settings, [POSITIVE], phase=caffe.TRAIN)
    caffe.set_random_seed(3)
    net.forward()
    top = net.blobs['t0'].data
    caffe.set_random_seed(3)
    numbers = (rng.draw_words(top.size) / (2**32 - 1)).reshape(top.shape)
    given = draw(*top.shape, seed=4)
    net.backward(t0=given)
    diff = np.zeros(POSITIVE.shape)
    for size, (i, j), (a, c, d), part in elements_of(POSITIVE, kernel, stride, mode == 'CEIL'):
        assert top.shape[2:] == size
        width = max(min(d, POSITIVE.shape[3]) - c, 0)
        for n, k in np.ndindex(top.shape[:2]):
            if not part.shape[-1]:
                assert top[n, k, i, j] == 0
                continue
            sums = np.cumsum(part[n, k].astype(np.float64))
            pick = int(np.argmax(sums >= numbers[n, k, i, j] * sums[-1]))
            assert top[n, k, i, j] == part[n, k, pick]
            diff[n, k, a + pick // width, c + pick % width] += given[n, k, i, j]
    assert_close(net.blobs['b0'].diff, diff, 1e-6)


def test_stochastic_pooling_picks_a_value_as_often_as_it_is_large():
    x = np.broadcast_to(np.float32([[1, 2], [5, 0]]), (1, 20000, 2, 2))
    caffe.set_random_seed(1)
    for settings in ('kernel_size: 2', 'global_pooling: true'):
        net = run(
            'Pooling', f'pooling_param {{ pool: STOCHASTIC {settings} }}', x, phase=caffe.TRAIN
        )
        values, counts = np.unique(net.blobs['t0'].data, return_counts=True)
        assert values.tolist() == [1, 2, 5]
        assert np.allclose(counts / 20000, [1 / 8, 2 / 8, 5 / 8], atol=0.015)


def test_stochastic_pooling_of_zeros_is_0():
    for phase in (caffe.TRAIN, caffe.TEST):
        net = run(
            'Pooling',
            'pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }',
            np.zeros((1, 1, 4, 4)),
            phase=phase,
        )
        net.backward(t0=np.ones((1, 1, 2, 2)))
        assert not net.blobs['t0'].data.any() and np.isfinite(net.blobs['b0'].diff).all()


def test_spp_pools_stochastically_at_levels_that_need_no_pad():
    x = draw(1, 2, 8, 4, low=0, high=1)
    check(
        'SPP',
        'spp_param { pyramid_height: 3 pool: STOCHASTIC }',
        lambda x: np.concatenate(
            [
                weighted(x, (8 // n, 4 // n), (8 // n, 4 // n), True).reshape(1, -1)
                for n in (1, 2, 4)
            ],
            1,
        ),
        x,
    )


def test_a_tie_of_max_pooling_goes_to_the_first():
    net = run('Pooling', 'pooling_param { kernel_size: 2 }', np.ones((1, 1, 2, 2)), tops=2)
    assert net.blobs['t1'].data == 0


def pyramid(x, height, maximum):
    levels = []
    for count in 2 ** np.arange(height):
        kernel = [-(-size // count) for size in x.shape[2:]]
        pad = [(k * count - size + 1) // 2 for k, size in zip(kernel, x.shape[2:])]
        top = pooled(x, kernel, kernel, pad, maximum)
        levels.append(top[0] if maximum else top)
    return levels[0] if height == 1 else np.concatenate([t.reshape(len(x), -1) for t in levels], 1)


@pytest.mark.parametrize('pool', ['MAX', 'AVE'])
@pytest.mark.parametrize('height, size', [(1, (5, 6)), (2, (5, 6)), (3, (9, 8)), (3, (12, 7))])
def test_spp_tiles_the_image_at_every_level(pool, height, size):
    x = RANDOM(1).permutation(4 * size[0] * size[1]).reshape(2, 2, *size).astype(np.float32) / 10
    net = check(
        'SPP',
        f'spp_param {{ pyramid_height: {height} pool: {pool} }}',
        lambda x: pyramid(x, height, pool == 'MAX'),
        x,
    )
    shape = (2, 2, 1, 1) if height == 1 else (2, 2 * (4**height - 1) // 3)
    assert net.blobs['t0'].shape == shape


def test_spp_gives_as_many_values_for_images_of_any_size():
    net = run('SPP', 'spp_param { pyramid_height: 3 }', draw(1, 2, 8, 8))
    for size in ((16, 20), (37, 53), (113, 64)):
        net.blobs['b0'].reshape(1, 2, *size)
        net.blobs['b0'].data[...] = draw(1, 2, *size)
        assert_close(net.forward()['t0'], pyramid(net.blobs['b0'].data, 3, True), 1e-6)


@pytest.mark.parametrize(
    'settings, message',
    [
        ('', 'pyramid_height must be positive'),
        ('pyramid_height: 3', r'level 2 of the pyramid does not fit 5 x 6: pad \(2, 1\) must be'),
        ('pyramid_height: 4294967295', 'level 2 of the pyramid does not fit'),
        ('pyramid_height: 2 pool: STOCHASTIC', 'STOCHASTIC takes no pad'),
    ],
)
def test_spp_refuses_what_caffe_does(settings, message):
    with pytest.raises(caffe.CaffeError, match=rf'^layer \(SPP\): .*{message}'):
        run('SPP', f'spp_param {{ {settings} }}', draw(1, 2, 5, 6))


def test_global_pooling_takes_the_whole_image():
    for pool, formula in (('AVE', np.mean), ('MAX', np.max)):
        check(
            'Pooling',
            f'pooling_param {{ pool: {pool} global_pooling: true }}',
            lambda x, formula=formula: formula(x, (2, 3), keepdims=True),
            X,
        )


@pytest.mark.parametrize('size', [1, 3, 5, 9])
def test_lrn_across_channels(size):
    x = draw(2, 6, 2, 3)

    def formula(x):
        half = size // 2
        sums = np.stack(
            [np.square(x[:, max(c - half, 0) : c + half + 1]).sum(1) for c in range(x.shape[1])], 1
        )
        return x / (2 + 0.7 / size * sums) ** 0.6

    check('LRN', f'lrn_param {{ local_size: {size} alpha: 0.7 beta: 0.6 k: 2 }}', formula, x)


def test_lrn_within_a_channel_divides_by_the_whole_window_and_has_no_k():
    def formula(x):
        padded = np.pad(np.square(x), ((0, 0), (0, 0), (1, 1), (1, 1)))
        sums = sum(
            padded[:, :, i : i + x.shape[2], j : j + x.shape[3]] for i in range(3) for j in range(3)
        )
        return x / (1 + 0.7 / 9 * sums) ** 0.6

    check(
        'LRN',
        'lrn_param { local_size: 3 alpha: 0.7 beta: 0.6 k: 5 norm_region: WITHIN_CHANNEL }',
        formula,
        X,
    )


def convolved(x, weight, bias, stride, pad, dilation, group):
    """Cross-correlation over any number of spatial axes, by loops over the kernel."""
    axes = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
    size = [
        (x.shape[2 + i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(axes)
    ]
    inputs, outputs = weight.shape[1], weight.shape[0] // group
    top = np.zeros((x.shape[0], weight.shape[0], *size))
    for place in np.ndindex(weight.shape[2:]):
        part = x[
            (
                slice(None),
                slice(None),
                *(
                    slice(o * d, o * d + s * (n - 1) + 1, s)
                    for o, d, s, n in zip(place, dilation, stride, size)
                ),
            )
        ]
        for g in range(group):
            w = weight[(slice(g * outputs, (g + 1) * outputs), slice(None), *place)]
            top[:, g * outputs : (g + 1) * outputs] += np.einsum(
                'oi,bi...->bo...', w, part[:, g * inputs : (g + 1) * inputs]
            )
    return top + bias.reshape(-1, *(1,) * axes)


CONVOLUTIONS = [  # spatial size, kernel, stride, pad, dilation, group
    ((7,), (3,), (2,), (1,), (1,), 1),
    ((5, 6), (3, 2), (1, 2), (2, 0), (1, 1), 2),
    ((7, 8), (2, 3), (1, 1), (0, 2), (3, 2), 1),
    ((3, 4, 3), (2, 2, 1), (1, 2, 1), (1, 0, 0), (1, 1, 1), 2),
]


def filters(kernel, stride, pad, dilation, group, extra=''):
    fields = ('kernel_size', kernel), ('stride', stride), ('pad', pad), ('dilation', dilation)
    return (
        'convolution_param { num_output: 4 '
        + ' '.join(f'{name}: {n}' for name, numbers in fields for n in numbers)
        + f' group: {group} {extra} }}'
    )


@pytest.mark.parametrize('size, kernel, stride, pad, dilation, group', CONVOLUTIONS)
def test_convolution_over_one_to_three_axes(size, kernel, stride, pad, dilation, group):
    x = draw(2, 2, *size)
    check(
        'Convolution',
        filters(kernel, stride, pad, dilation, group, 'engine: CUDNN force_nd_im2col: true'),
        lambda x, w, b: convolved(x, w, b, stride, pad, dilation, group),
        x,
        params=[draw(4, 2 // group, *kernel, seed=2), draw(4, seed=3)],
    )


def columns(x, kernel, stride, pad, dilation):
    """im2col by a convolution whose filters each see one pixel of one channel."""
    count = x.shape[1] * int(np.prod(kernel))
    return convolved(
        x,
        np.eye(count).reshape(count, x.shape[1], *kernel),
        np.zeros(count),
        stride,
        pad,
        dilation,
        1,
    )


@pytest.mark.parametrize('size, kernel, stride, pad, dilation, group', CONVOLUTIONS)
def test_im2col_lays_out_what_the_kernel_sees(size, kernel, stride, pad, dilation, group):
    settings = filters(kernel, stride, pad, dilation, group, 'force_nd_im2col: true')
    check(
        'Im2col', settings, lambda x: columns(x, kernel, stride, pad, dilation), draw(2, 2, *size)
    )


def test_im2col_from_another_axis_and_by_height_and_width():
    check(
        'Im2col',
        'convolution_param { axis: 2 kernel_h: 2 kernel_w: 3 stride_h: 2 stride_w: 1 '
        'pad_h: 0 pad_w: 1 }',
        lambda x: columns(x.reshape(-1, 3, 4, 5), (2, 3), (2, 1), (0, 1), (1, 1)).reshape(
            2, 2, 18, 2, 5
        ),
        draw(2, 2, 3, 4, 5),
    )


@pytest.mark.parametrize(
    'settings, message',
    [
        ('kernel_size: 6', 'exceeds padded bottom'),
        ('', 'kernel_size is not given'),
        ('kernel_size: 3 dilation: 2', 'exceeds padded bottom'),
        ('kernel_size: 1 pad: 4294967295', 'exceeds 1024'),
        ('kernel_size: 1 axis: 3', 'spatial axes'),
    ],
)
def test_im2col_refuses_kernels_that_fit_nowhere(settings, message):
    with pytest.raises(caffe.CaffeError, match=rf'^layer \(Im2col\): .*{message}'):
        run('Im2col', f'convolution_param {{ {settings} }}', X)


@pytest.mark.parametrize('size, kernel, stride, pad, dilation, group', CONVOLUTIONS)
def test_deconvolution_is_the_adjoint_of_convolution(size, kernel, stride, pad, dilation, group):
    weight, big = draw(4, 2 // group, *kernel, seed=2), draw(2, 2, *size, seed=5).astype(np.float64)
    image = convolved(big, weight, np.zeros(4), stride, pad, dilation, group)
    small = draw(*image.shape, seed=6)
    settings = filters(kernel, stride, pad, dilation, group, 'bias_term: false').replace(
        'num_output: 4', 'num_output: 2'
    )
    net = run('Deconvolution', settings, small, params=[weight])
    top = net.blobs['t0'].data
    # What the strides leave over at the end has no counterpart in the transpose.
    big = big[tuple(slice(n) for n in top.shape)]
    again = convolved(big, weight, np.zeros(4), stride, pad, dilation, group)
    assert again.shape == small.shape
    assert np.isclose((again * small).sum(), (big * top).sum(), rtol=1e-5)
    net.backward(t0=big)
    assert_close(net.blobs['b0'].diff, again, 1e-5)


@pytest.mark.parametrize('axis', [-3, 0, 2])
def test_axes_before_the_channels_count_as_the_batch(axis):
    x = {-3: draw(2, 3, 4, 5), 0: draw(3, 4, 5), 2: draw(2, 2, 3, 4, 5)}[axis]
    weight, bias = draw(2, 3, 2, 2, seed=1), draw(2, seed=2)

    def formula(x, w, b):
        top = convolved(x.reshape(-1, 3, 4, 5), w, b, (1, 1), (0, 0), (1, 1), 1)
        return top.reshape(*x.shape[:-3], *top.shape[1:])

    check(
        'Convolution',
        f'convolution_param {{ num_output: 2 kernel_size: 2 axis: {axis} }}',
        formula,
        x,
        params=[weight, bias],
    )


def test_convolutions_of_several_bottoms_add_their_gradients_up():
    def formula(x, y, w, b):
        return tuple(convolved(z, w, b, (1, 1), (0, 0), (1, 1), 1) for z in (x, y))

    check(
        'Convolution',
        'convolution_param { num_output: 2 kernel_size: 3 }',
        formula,
        draw(1, 2, 4, 4),
        draw(1, 2, 4, 4, seed=1),
        params=[draw(2, 2, 3, 3), draw(2)],
        tops=2,
    )


@pytest.mark.parametrize(
    'settings, formula',
    [
        ('axis: 1 offset: 1', lambda x: x[:, 1:3, 1:4, 1:4]),
        ('axis: -2 offset: 1 offset: 2', lambda x: x[:, :, 1:4, 2:5]),
        ('axis: 3', lambda x: x[:, :, :, :3]),
    ],
)
def test_crop_from_an_axis_on(settings, formula):
    like = np.zeros((1, 2, 3, 3), np.float32)
    check('Crop', f'crop_param {{ {settings} }}', lambda x, _: formula(x), X, like)
