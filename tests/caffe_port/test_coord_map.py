"""Coordinate maps obey their laws and agree with windows counted out one by one."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caffe_port.coord_map import (
    IDENTITY,
    AxisMismatchException,
    UndefinedMapException,
    compose,
    coord_map,
    coord_map_from_to,
    crop,
    inverse,
)
from caffe_port.errors import CaffeError
from caffe_port.net_spec import layers as L
from tests.examples import examples

WINDOWS = st.fixed_dictionaries(
    dict(kernel_size=st.integers(1, 9), stride=st.integers(1, 5), pad=st.integers(0, 6))
)
DILATED = st.builds(
    lambda window, dilation: dict(window, dilation=dilation), WINDOWS, st.integers(1, 3)
)
MAPS = st.builds(
    lambda kind, window: coord_map(getattr(L, kind)(image(), **window).fn),
    st.sampled_from(['Convolution', 'Deconvolution', 'Pooling']),
    WINDOWS,
)


def image():
    return L.Input(shape=dict(dim=[1, 3, 8, 8]))


def same(one, other):
    return (
        one.axis == other.axis
        and np.array_equal(one.scale, other.scale)
        and np.array_equal(one.shift, other.shift)
    )


def taps(window, y):
    """The inputs under the window of output y, written out."""
    return [
        y * window['stride'] - window['pad'] + i * window.get('dilation', 1)
        for i in range(window['kernel_size'])
    ]


def centre(places):
    return Fraction(min(places) + max(places), 2)


def offsets(top):
    return list(top.to_proto().layer[-1].crop_param.offset)


def law(*strategies):
    """Hold a test for all values of the strategies."""
    return lambda test: examples(50)(given(*strategies)(test))


# Windows counted out.


@law(st.lists(DILATED, min_size=1, max_size=3), st.integers(-5, 5))
def test_a_stack_of_convolutions_maps_the_centre_of_a_field_to_its_pixel(windows, y):
    data = top = image()
    for window in windows:
        top = L.Convolution(top, **window)
    field = {y}
    for window in reversed(windows):
        field = {x for place in field for x in taps(window, place)}
    axis, scale, shift = coord_map_from_to(data, top)
    assert axis == 1 and scale * centre(field) + shift == y


@law(DILATED, st.integers(-5, 5))
def test_a_deconvolution_maps_a_pixel_to_the_centre_of_what_it_spreads_over(window, x):
    axis, scale, shift = coord_map(L.Deconvolution(image(), **window).fn)
    assert axis == 1 and scale * x + shift == centre(taps(window, x))


@law(WINDOWS)
def test_pooling_and_im2col_map_as_convolution(window):
    maps = [
        coord_map(getattr(L, kind)(image(), **window).fn)
        for kind in ('Convolution', 'Pooling', 'Im2col')
    ]
    assert same(maps[0], maps[1]) and same(maps[0], maps[2])


@law(st.integers(0, 30))
def test_crop_moves_pixels_to_the_front(offset):
    axis, scale, shift = coord_map(L.Crop(image(), image(), axis=2, offset=offset).fn)
    assert (axis, scale, shift) == (1, 1, -offset)


# Laws.


@law(MAPS, MAPS, MAPS)
def test_composition_is_associative(f, g, h):
    assert same(compose(compose(f, g), h), compose(f, compose(g, h)))


@law(MAPS)
def test_a_map_after_its_inverse_is_the_identity(f):
    for both in (compose(f, inverse(f)), compose(inverse(f), f)):
        assert (both.axis, both.scale, both.shift) == (f.axis, 1, 0)


@law(MAPS)
def test_the_identity_changes_no_map(f):
    assert same(compose(f, IDENTITY), f) and same(compose(IDENTITY, f), f)


@law(DILATED)
def test_convolution_and_deconvolution_of_one_window_cancel(window):
    data = image()
    up = L.Deconvolution(L.Convolution(data, **window), convolution_param=window)
    assert tuple(coord_map_from_to(up, data)) == (1, 1, 0)
    assert offsets(crop(up, data)) == [0]


@law(st.integers(0, 9))
def test_pad_of_conv_and_deconv_cancel(pad):
    data = image()
    conv = L.Convolution(data, kernel_size=3, pad=1 + pad)
    up = L.Deconvolution(conv, kernel_size=1, pad=pad)
    assert tuple(coord_map_from_to(up, data)) == (1, 1, 0)


@law(DILATED, DILATED)
def test_the_way_back_is_the_inverse(one, other):
    a, b = L.Convolution(data := image(), **one), L.Deconvolution(data, **other)
    assert same(coord_map_from_to(a, b), inverse(coord_map_from_to(b, a)))


@law(st.integers(0, 40), st.integers(1, 8))
def test_a_cropped_top_is_aligned(pad, stride):
    data = image()
    up = L.Deconvolution(
        L.Convolution(data, kernel_size=stride, stride=stride, pad=pad),
        kernel_size=stride,
        stride=stride,
    )
    cropped = crop(up, data)
    assert offsets(cropped) == [pad]
    assert tuple(coord_map_from_to(cropped, data)) == (1, 1, 0)


def test_maps_are_exact_where_floats_are_not():
    data = top = image()
    for _ in range(5):
        top = L.Deconvolution(
            L.Convolution(top, kernel_size=3, stride=10), kernel_size=3, stride=10
        )
    assert offsets(crop(top, data)) == [0]


# The nets of the release.


def vgg_stage(top, convs, pad=1):
    for _ in range(convs):
        top, pad = L.Convolution(top, kernel_size=3, pad=pad), 1
    return L.Pooling(top, kernel_size=2, stride=2)


def up(top, factor):
    return L.Deconvolution(top, kernel_size=2 * factor, stride=factor)


def fuse(skip, top):
    cropped = crop(L.Convolution(skip, kernel_size=1), top)
    return L.Eltwise(top, cropped), offsets(cropped)


def test_the_offsets_of_the_32s_16s_and_8s_nets():
    data = image()
    pool3 = vgg_stage(vgg_stage(vgg_stage(data, 2, pad=100), 2), 3)
    pool4 = vgg_stage(pool3, 3)
    score = L.Convolution(vgg_stage(pool4, 3), kernel_size=7)
    assert offsets(crop(up(score, 32), data)) == [19]
    fuse4, skip4 = fuse(pool4, up(score, 2))
    assert (skip4, offsets(crop(up(fuse4, 16), data))) == ([5], [27])
    fuse3, skip3 = fuse(pool3, up(fuse4, 2))
    assert (skip3, offsets(crop(up(fuse3, 8), data))) == ([9], [31])


# What the settings may look like.


@pytest.mark.parametrize(
    'one, other',
    [
        (dict(kernel_h=3, kernel_w=5), dict(kernel_size=[3, 5])),
        (dict(kernel_size=3, stride_h=2, stride_w=4), dict(kernel_size=3, stride=[2, 4])),
        (dict(kernel_size=3, pad_h=2), dict(kernel_size=3, pad=[2, 0])),
        (dict(kernel_size=[5, 5], pad=1), dict(kernel_size=3, dilation=2, pad=[1, 1])),
    ],
)
def test_settings_per_axis_may_be_lists_or_h_and_w(one, other):
    assert same(
        compose(IDENTITY, coord_map(L.Convolution(image(), **one).fn)),
        coord_map(L.Convolution(image(), **other).fn),
    )


def test_each_axis_has_its_own_offset():
    data = image()
    up = L.Deconvolution(L.Convolution(data, kernel_size=3, pad=[4, 6]), kernel_size=1)
    cropped = crop(up, data)
    assert offsets(cropped) == [3, 5]
    assert tuple(coord_map_from_to(cropped, data).shift) == (0, 0)


def test_a_volume_maps_on_each_axis_as_an_image_does():
    data = image()
    sides = [dict(kernel_size=3, pad=pad) for pad in (0, 1, 2)]
    volume = L.Convolution(data, kernel_size=[3, 3, 3], stride=[1, 1, 1], pad=[0, 1, 2])
    up = L.Deconvolution(L.Pooling(volume, kernel_size=2, stride=2), kernel_size=4, stride=2)
    axis, scale, shift = coord_map_from_to(up, data)
    assert axis == 1 and (scale == 1).all() and len(shift) == 3
    for side, offset in zip(sides, shift):
        flat = L.Pooling(L.Convolution(data, **side), kernel_size=2, stride=2)
        assert coord_map_from_to(L.Deconvolution(flat, kernel_size=4, stride=2), data)[2] == offset
    assert shift[0] - 1 == shift[1] == shift[2] + 1


def test_the_axis_of_a_volume_is_kept():
    data = image()
    cropped = crop(L.Convolution(data, axis=2, kernel_size=1, pad=3), data)
    assert cropped.to_proto().layer[-1].crop_param.axis == 3


def test_tops_without_windows_between_them_are_cropped_on_height_and_width():
    data = image()
    param = crop(L.ReLU(data), data).to_proto().layer[-1].crop_param
    assert (param.axis, list(param.offset)) == (2, [0])


@pytest.mark.parametrize(
    'kind', ['BatchNorm', 'Dropout', 'LRN', 'Power', 'ReLU', 'Softmax', 'Split']
)
def test_elementwise_layers_move_nothing(kind):
    data = image()
    top = getattr(L, kind)(L.Convolution(data, kernel_size=1, pad=7))
    assert offsets(crop(top, data)) == [7]


@pytest.mark.parametrize('kind', ['Eltwise', 'Concat', 'Scale'])
def test_joining_layers_are_walked_through(kind):
    data = image()
    conv = L.Convolution(data, kernel_size=1, pad=7)
    assert offsets(crop(getattr(L, kind)(conv, conv), data)) == [7]


def test_the_second_bottom_of_crop_only_gives_the_size():
    data, other = image(), image()
    assert offsets(
        crop(L.Crop(L.Convolution(data, kernel_size=1, pad=7), other, offset=2), data)
    ) == [5]
    with pytest.raises(CaffeError, match='connects them'):
        coord_map_from_to(L.Crop(data, other), other)


# What cannot be aligned.


@pytest.mark.parametrize(
    'settings, told',
    [
        (dict(kernel_size=1, stride=2), 'crop of Convolution to Input: the scale is 2, must be 1'),
        (dict(kernel_size=3), 'the offset is -1, must not be negative'),
        (dict(kernel_size=2, pad=3), 'the offset is 5/2, must be whole'),
        (
            dict(kernel_size=1, pad=[3, 0], stride=[1, 2], name='c'),
            'crop of Convolution c to Input: the scale is 1, 2, must be 1',
        ),
    ],
)
def test_a_crop_that_cannot_align_is_refused(settings, told):
    data = image()
    for pycaffes in (CaffeError, AssertionError):
        with pytest.raises(pycaffes, match=told):
            crop(L.Convolution(data, **settings), data)


@pytest.mark.parametrize(
    'barrier, told',
    [
        (lambda data: L.InnerProduct(data, num_output=3), 'InnerProduct: this layer has no'),
        (lambda data: L.Flatten(data, name='flat'), 'Flatten flat: this layer has no'),
        (lambda data: L.Concat(data, axis=2), 'Concat: this layer has no'),
        (lambda data: L.Pooling(data, global_pooling=True), 'Pooling: global pooling has no'),
        (lambda data: L.Convolution(data), 'Convolution: kernel size .* got 0 and 1'),
        (lambda data: L.Convolution(data, kernel_size=3, stride=0), 'Convolution: .* got 3 and 0'),
    ],
)
def test_layers_without_a_map_have_none_and_end_the_walk(barrier, told):
    data = image()
    top = barrier(data)
    with pytest.raises(UndefinedMapException, match='^' + told):
        coord_map(top.fn)
    with pytest.raises(CaffeError, match='connects them; stopped at: ' + told):
        crop(L.ReLU(top), data)


def test_unconnected_tops_are_refused():
    for pycaffes in (CaffeError, RuntimeError):
        with pytest.raises(pycaffes, match='from the top of ReLU to that of Input: no path'):
            crop(L.ReLU(image()), image())


def test_maps_of_other_axes_do_not_compose():
    flat, deep = (coord_map(L.Convolution(image(), axis=axis, kernel_size=3).fn) for axis in (1, 2))
    with pytest.raises(AxisMismatchException, match='after 1 and after 2'):
        compose(flat, deep)
    with pytest.raises(AxisMismatchException, match='for 2 and for 3 axes'):
        coord_map(L.Convolution(image(), kernel_size=[1, 2, 3], pad=[1, 2]).fn)
