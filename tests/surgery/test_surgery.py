"""Surgery moves what it says, reports it, and touches nothing when something is wrong."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.signal import convolve2d

import surgery
from caffe_port.errors import CaffeError


def blob(*shape, start=0):
    """A blob counting up from `start`; start=None leaves it zero."""
    data = np.zeros(shape, np.float32)
    if start is not None:
        data.flat = np.arange(start, start + data.size)
    return SimpleNamespace(data=data, shape=shape)


def net(**layers):
    return SimpleNamespace(params=layers)


def all_zero(of):
    return not any(b.data.any() for blobs in of.params.values() for b in blobs)


# transplant


def test_blobs_of_one_shape_are_copied_by_name(capsys):
    old = net(conv1=[blob(4, 3, 2, 2, start=1), blob(4, start=9)])
    new = net(conv1=[blob(4, 3, 2, 2, start=None), blob(4, start=None)])
    done = surgery.transplant(new, old)
    for was, now in zip(old.params['conv1'], new.params['conv1']):
        assert np.array_equal(was.data, now.data)
    assert done.copied == [
        ('conv1', 'conv1', 0, (4, 3, 2, 2), (4, 3, 2, 2)),
        ('conv1', 'conv1', 1, (4,), (4,)),
    ]
    assert not done.coerced and not done.dropped
    assert capsys.readouterr().out == 'copying conv1  ->  conv1 0\ncopying conv1  ->  conv1 1\n'


def test_a_fully_connected_layer_becomes_the_convolution_that_computes_the_same(capsys):
    rng = np.random.RandomState(0)
    old = net(fc6=[blob(5, 2 * 3 * 3), blob(5)])
    old.params['fc6'][0].data[...] = rng.randn(5, 18)
    new = net(fc6=[blob(5, 2, 3, 3), blob(5)])
    done = surgery.transplant(new, old)
    x = rng.randn(2, 3, 3)
    convolved = np.einsum('oihw,ihw->o', new.params['fc6'][0].data, x)
    np.testing.assert_allclose(convolved, old.params['fc6'][0].data @ x.ravel(), rtol=1e-5)
    assert done.coerced == [('fc6', 'fc6', 0, (5, 18), (5, 2, 3, 3))]
    assert capsys.readouterr().out.splitlines()[0] == (
        'coercing fc6 0 from (5, 18) to (5, 2, 3, 3)'
    )


def test_legacy_shapes_are_coerced():
    old, new = net(fc7=[blob(1, 1, 4, 6), blob(1, 1, 1, 4)]), net(fc7=[blob(4, 6), blob(4)])
    assert [moved.new_shape for moved in surgery.transplant(new, old).coerced] == [(4, 6), (4,)]


def test_what_has_no_counterpart_is_dropped_and_the_rest_stays(capsys):
    old = net(fc8=[blob(3, 2), blob(3)], up=[blob(2), blob(7)])
    new = net(score=[blob(3, start=5)], up=[blob(2)])
    done = surgery.transplant(new, old)
    assert done.dropped == [('fc8', 0, (3, 2)), ('fc8', 1, (3,)), ('up', 1, (7,))]
    assert new.params['score'][0].data.tolist() == [5, 6, 7]
    assert capsys.readouterr().out.splitlines() == [
        'dropping fc8',
        'copying up  ->  up 0',
        'dropping up 1',
    ]


def test_a_suffix_chooses_the_stream():
    old = net(conv=[blob(2, start=1)])
    new = net(
        convcolor=[blob(2, start=None)], convhha=[blob(2, start=None)], conv=[blob(2, start=None)]
    )
    assert surgery.transplant(new, old, 'hha').copied[0][:2] == ('conv', 'convhha')
    assert [new.params[name][0].data.any() for name in new.params] == [False, True, False]


def test_a_blob_only_the_new_net_has_keeps_its_values():
    new = net(conv=[blob(2, start=None), blob(2, start=3)])
    surgery.transplant(new, net(conv=[blob(2, start=1)]))
    assert new.params['conv'][1].data.tolist() == [3, 4]


def test_another_count_is_refused_before_anything_is_written(capsys):
    old = net(conv=[blob(2, start=1)], fc6=[blob(4, 18)])
    new = net(conv=[blob(2, start=None)], fc6=[blob(4, 2, 5, 5, start=None)])
    with pytest.raises(
        CaffeError,
        match='fc6 0 of shape 4 x 18 cannot be fc6 of shape '
        '4 x 2 x 5 x 5: .* the count, 72 and 200',
    ):
        surgery.transplant(new, old)
    assert all_zero(new)
    assert capsys.readouterr().out == ''


# upsample_filt and interp


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 8, 16, 32, 63, 64])
def test_the_kernel_is_the_product_of_two_triangles(size):
    factor = (size + 1) // 2
    # A triangle is a box smoothed by a box: as many pixels in each for an odd size, and
    # one more in one of them for an even one (sampled between pixels).
    box = np.full(factor, 1 / factor)
    triangle = np.convolve(box, np.ones(factor))
    if size % 2 == 0:
        triangle = (np.append(triangle, 0) + np.append(0, triangle)) / 2
    kernel = surgery.upsample_filt(size)
    assert kernel.shape == (size, size) and kernel.dtype == np.float64
    np.testing.assert_allclose(kernel, np.outer(triangle, triangle), atol=1e-15)


@pytest.mark.parametrize('stride', [2, 8, 16, 32])
def test_the_kernel_interpolates_a_plane_exactly(stride):
    rows, columns = np.mgrid[:6, :7].astype(float)
    plane = 3 + 2 * rows - 0.5 * columns
    spread = np.zeros((6 * stride, 7 * stride))
    spread[::stride, ::stride] = plane
    finer = convolve2d(spread, surgery.upsample_filt(2 * stride))
    # Output i of the deconvolution is at (i - (stride - 1/2)) / stride on the input's grid.
    y, x = (np.mgrid[2 * stride : 5 * stride, 2 * stride : 6 * stride] - (stride - 0.5)) / stride
    np.testing.assert_allclose(
        finer[2 * stride : 5 * stride, 2 * stride : 6 * stride], 3 + 2 * y - 0.5 * x
    )


def test_a_kernel_of_no_size_is_refused():
    with pytest.raises(CaffeError, match='kernel of size 0, must be at least 1'):
        surgery.upsample_filt(0)


def test_interp_sets_the_diagonal_and_leaves_the_rest():
    upscore = net(upscore=[blob(3, 3, 4, 4, start=100)])
    before = upscore.params['upscore'][0].data.copy()
    surgery.interp(upscore, ['upscore'])
    after = upscore.params['upscore'][0].data
    for i in range(3):
        for o in range(3):
            wanted = surgery.upsample_filt(4) if i == o else before[i, o]
            np.testing.assert_array_equal(after[i, o], wanted.astype(np.float32))


def test_interp_fills_every_filter_of_a_grouped_or_single_output_layer():
    grouped = net(up=[blob(3, 1, 4, 4)])
    surgery.interp(grouped, ['up'])
    assert np.array_equal(
        grouped.params['up'][0].data, np.broadcast_to(surgery.upsample_filt(4), (3, 1, 4, 4))
    )


@pytest.mark.parametrize(
    'shape, message',
    [
        ((2, 2, 64, 63), 'upscore: 64 x 63 filter, must be square'),
        ((2, 3, 4, 4), 'upscore: 2 x 3 channels, must be as many in as out, or one out'),
        ((2, 9), r'upscore: weights of shape 2 x 9, must have 4 axes'),
    ],
)
def test_interp_changes_no_layer_when_one_is_wrong(shape, message):
    wrong = net(fine=[blob(2, 2, 4, 4, start=None)], upscore=[blob(*shape, start=None)])
    with pytest.raises(CaffeError, match=message):
        surgery.interp(wrong, ['fine', 'upscore'])
    assert all_zero(wrong)


def test_interp_names_the_layers_there_are_when_one_is_missing():
    with pytest.raises(CaffeError, match='upscore: no layer .* parameters; these have: up'):
        surgery.interp(net(up=[blob(1, 1, 2, 2)]), (name for name in ['upscore']))


# expand_score


@pytest.mark.parametrize('bias', [(2,), (1, 1, 1, 2)])
@pytest.mark.parametrize('new_bias', [(5,), (1, 1, 1, 5)])
def test_old_classes_become_the_first_of_the_new(bias, new_bias):
    old = net(score=[blob(2, 3, 1, 1, start=1), blob(*bias, start=10)])
    new = net(score59=[blob(5, 3, 1, 1, start=None), blob(*new_bias, start=None)])
    surgery.expand_score(new, 'score59', old, 'score')
    weights, biases = (b.data for b in new.params['score59'])
    assert weights.reshape(5, 3).tolist() == [[1, 2, 3], [4, 5, 6], [0] * 3, [0] * 3, [0] * 3]
    assert biases.ravel().tolist() == [10, 11, 0, 0, 0]


@pytest.mark.parametrize(
    'weights, biases, message',
    [
        ((2, 4, 1, 1), (2,), 'cannot be the first classes of new of shape 5 x 3 x 1 x 1'),
        ((6, 3, 1, 1), (6,), 'score of shape 6 x 3 x 1 x 1 cannot be'),
        ((2, 3, 1, 1), (3,), '3 and 5 biases for weights of shape 2 x 3 x 1 x 1'),
    ],
)
def test_scores_that_do_not_fit_are_refused_before_anything_is_written(weights, biases, message):
    old = net(score=[blob(*weights), blob(*biases)])
    new = net(new=[blob(5, 3, 1, 1, start=None), blob(5, start=None)])
    with pytest.raises(CaffeError, match=message):
        surgery.expand_score(new, 'new', old, 'score')
    assert all_zero(new)


def test_a_score_layer_without_bias_or_missing_is_refused():
    new = net(new=[blob(5, 3, 1, 1, start=None), blob(5)])
    with pytest.raises(CaffeError, match='score and new: 1 and 2 blobs'):
        surgery.expand_score(new, 'new', net(score=[blob(2, 3, 1, 1)]), 'score')
    with pytest.raises(CaffeError, match='score: no layer of this name'):
        surgery.expand_score(new, 'new', net(fr=[blob(2, 3, 1, 1)]), 'score')


def test_depth_begins_as_the_mean_of_the_colors():
    color = net(conv1_1=[blob(5, 3, 3, 3, start=1), blob(5, start=7)])
    new = net(conv1_1_bgrd=[blob(5, 4, 3, 3, start=None), blob(5, start=None)])
    surgery.color_to_color_depth(new, 'conv1_1_bgrd', color, 'conv1_1')
    (weight, bias), (before, before_bias) = new.params['conv1_1_bgrd'], color.params['conv1_1']
    assert np.array_equal(weight.data[:, :3], before.data)
    assert np.allclose(weight.data[:, 3], before.data.sum(1) / 3)
    assert np.array_equal(bias.data, before_bias.data)
    with pytest.raises(CaffeError, match='expected one input channel more'):
        surgery.color_to_color_depth(color, 'conv1_1', color, 'conv1_1')
