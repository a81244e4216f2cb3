"""How parameters are filled: distributions by their own formulas, and the seed."""

import math
import tracemalloc

import numpy as np
import pytest

import caffe_port as caffe
from caffe_port import rng
from caffe_port.ops import fillers
from caffe_port.proto.caffe_pb2 import FillerParameter
from surgery import upsample_filt
from tests.vectors import net_of

SHAPE = 200, 30, 3, 5
FANS = {'FAN_IN': 450, 'FAN_OUT': 3000, 'AVERAGE': 1725}


def fill(shape=SHAPE, seed=1, **fields) -> np.ndarray:
    caffe.set_random_seed(seed)
    return fillers.fill(FillerParameter(**fields), shape)


def test_constant_is_0_by_default():
    assert not fill((2, 3)).any()
    assert (fill((2, 3), type='constant', value=-1.5) == -1.5).all()


def test_uniform_fills_its_bounds_evenly():
    values = fill(type='uniform', min=-1, max=3)
    assert values.min() >= -1 and values.max() <= 3
    assert np.allclose(
        np.quantile(values, [0.01, 0.25, 0.5, 0.75, 0.99]), [-0.96, 0, 1, 2, 2.96], atol=0.04
    )


def test_gaussian_has_its_mean_and_deviation():
    values = fill(type='gaussian', mean=2, std=0.5)
    assert abs(values.mean() - 2) < 0.01 and abs(values.std() - 0.5) < 0.01
    assert abs((abs(values - 2) < 0.5).mean() - 0.6827) < 0.01
    assert (fill(type='gaussian', mean=2, std=0) == 2).all()


def test_sparse_is_the_expected_number_of_weights_per_output():
    outputs, inputs, sparse = 100, 500, 15
    values = fill((outputs, inputs), type='gaussian', std=1, sparse=sparse)
    # Each weight is kept with probability sparse / outputs, as Caffe draws it.
    assert abs((values != 0).mean() - sparse / outputs) < 0.01
    assert not fill((4, 5), type='gaussian', sparse=0).any()
    assert fill((4, 5), type='gaussian', sparse=4).all()


@pytest.mark.parametrize('norm', FANS)
def test_xavier_is_uniform_with_the_variance_of_its_norm(norm):
    values = fill(type='xavier', variance_norm=norm)
    bound = math.sqrt(3 / FANS[norm])
    assert 0.99 * bound < abs(values).max() <= bound * (1 + 1e-6)
    assert values.var() == pytest.approx(1 / FANS[norm], rel=0.03)


@pytest.mark.parametrize('norm', FANS)
def test_msra_is_normal_with_the_variance_of_its_norm(norm):
    values = fill(type='msra', variance_norm=norm)
    assert values.var() == pytest.approx(2 / FANS[norm], rel=0.03)
    assert abs((abs(values) < values.std()).mean() - 0.6827) < 0.01


def test_of_one_axis_the_fan_out_is_the_whole_blob():
    values = fill((10000,), type='msra', variance_norm='FAN_OUT')
    assert values.var() == pytest.approx(2 / 10000, rel=0.05)


def test_positive_unitball_adds_up_to_1_for_each_output():
    values = fill(type='positive_unitball')
    assert values.min() >= 0
    assert np.allclose(values.reshape(200, -1).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize('size', range(1, 17))
def test_bilinear_is_the_upsampling_kernel_in_every_plane(size):
    values = fill((3, 2, size, size), type='bilinear')
    assert np.allclose(values, upsample_filt(size), atol=1e-6)


@pytest.mark.parametrize('type_', ['uniform', 'gaussian', 'xavier', 'msra', 'positive_unitball'])
def test_a_seed_gives_the_same_values_and_another_seed_others(type_):
    assert np.array_equal(fill(type=type_), fill(type=type_))
    assert not np.array_equal(fill(type=type_), fill(type=type_, seed=2))
    assert fill(type=type_).dtype == np.float32


def test_large_blobs_are_drawn_in_stretches_of_one_stream():
    count = (1 << 20) + 7
    values = fill((count,), type='gaussian')
    caffe.set_random_seed(1)
    assert np.array_equal(values, rng.stream().normal(size=count).astype(np.float32))


def test_sparse_takes_its_choice_from_the_stream_after_all_values_without_a_second_blob():
    count = (1 << 22) + 7
    tracemalloc.start()
    try:
        values = fill((2, count), type='gaussian', sparse=1)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < 1.5 * values.nbytes
    caffe.set_random_seed(1)
    expected = rng.stream().normal(size=2 * count).astype(np.float32)
    expected *= rng.stream().uniform(size=2 * count) < 0.5
    assert np.array_equal(values.reshape(-1), expected)


def test_a_net_draws_a_bounded_number_of_values_in_all(monkeypatch):
    monkeypatch.setattr(fillers, 'MAX_DRAWN', 1000)
    for _ in range(2):
        with fillers.limit_draws():
            fill((30, 20), type='xavier')
            fill((20, 20), value=1)
            with pytest.raises(
                caffe.CaffeError,
                match='1 values after 1000 of other params, at most 1000 are drawn',
            ):
                fill((1,), value=1)
    for _ in range(2):  # blobs outside any net
        fill((30, 20), type='xavier')


def test_set_random_seed_decides_a_nets_weights():
    text = (
        'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 1 dim: 4 } } }'
        'layer { name: "ip" type: "InnerProduct" bottom: "d" top: "ip" inner_product_param {'
        ' num_output: 3 weight_filler { type: "xavier" } bias_filler { type: "uniform" } } }'
    )
    seen = []
    for _ in range(2):
        caffe.set_random_seed(3)
        seen.append([blob.data.copy() for blob in net_of(text).params['ip']])
    assert all(np.array_equal(a, b) and a.any() for a, b in zip(*seen))


@pytest.mark.parametrize(
    'fields, shape, message',
    [
        (dict(type='xaver'), (2, 2), 'filler type "xaver" unknown; there are bilinear'),
        (dict(type='uniform', min=2, max=1), (2, 2), 'min 2 exceeds max 1'),
        (dict(type='uniform', min=math.nan), (2, 2), 'min nan exceeds'),
        (dict(type='gaussian', std=-1), (2, 2), 'std is -1'),
        (dict(type='gaussian', sparse=3), (2, 2), 'sparse 3'),
        (dict(type='gaussian', sparse=-2), (2, 2), 'sparse -2'),
        (dict(type='xavier', sparse=1), (2, 2), 'takes no `sparse`'),
        (dict(type='bilinear'), (2, 2), 'stack of square filters'),
        (dict(type='bilinear'), (2, 2, 3, 4), 'stack of square filters'),
        (dict(type='msra'), (2**15, 2**15), 'at most 300000000 are drawn for a net'),
    ],
)
def test_what_cannot_be_filled_is_refused(fields, shape, message):
    with pytest.raises(caffe.CaffeError, match=message):
        fill(shape, **fields)
