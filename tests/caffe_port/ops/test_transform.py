"""transform_param against its formula, drawn from the stream as Caffe draws."""

import numpy as np
import pytest

import caffe_port as caffe
from caffe_port import rng
from caffe_port.files import caffemodel
from caffe_port.ops.transform import Transform
from caffe_port.proto.caffe_pb2 import TransformationParameter
from tests.formulas import RANDOM, draw

IMAGE = RANDOM(0).randint(0, 256, (3, 7, 9)).astype(np.uint8)
SEED = 5


def transform(phase=caffe.TRAIN, **fields) -> Transform:
    caffe.set_random_seed(SEED)
    return Transform(TransformationParameter(**fields), phase)


def applied(one: Transform, image=IMAGE) -> np.ndarray:
    top = np.empty(one.shape(image, 'x'), np.float32)
    one(image, top, 'x')
    return top


def drawn_words(count: int) -> list[int]:
    """The first words of the stream that the host stream's first word seeds."""
    seed = RANDOM(SEED).randint(0, 2**32, dtype=np.uint32)
    return [int(word) for word in RANDOM(int(seed)).randint(0, 2**32, count, np.uint32)]


def test_without_settings_an_image_stays_as_it_is_and_nothing_is_drawn():
    assert np.array_equal(applied(transform()), IMAGE)
    assert rng.draw_words(1) == RANDOM(SEED).randint(0, 2**32, dtype=np.uint32)


@pytest.mark.parametrize('values', [[10], [1, 20, 300]])
def test_a_mean_value_per_channel_or_one_goes_off_before_the_scale(values):
    expected = (IMAGE.astype(np.float64) - np.reshape(values, (-1, 1, 1))) * 0.25
    assert np.array_equal(applied(transform(mean_value=values, scale=0.25)), expected)


def test_mirror_and_crop_in_train_draw_three_words_an_image_mirror_first():
    one = transform(mirror=True, crop_size=4, scale=2, mean_value=[3])
    words, seen = drawn_words(60), set()
    for i in range(20):
        mirror, y, x = words[3 * i] % 2, words[3 * i + 1] % 4, words[3 * i + 2] % 6
        part = (IMAGE[:, y : y + 4, x : x + 4].astype(np.float64) - 3) * 2
        assert np.array_equal(applied(one), part[:, :, ::-1] if mirror else part)
        seen.add((mirror, y, x))
    assert len(seen) > 10


def test_in_test_the_crop_is_the_middle_and_draws_nothing():
    one = transform(caffe.TEST, crop_size=4)
    assert np.array_equal(applied(one), IMAGE[:, 1:5, 2:6]) and one.state() is None
    mirrored = transform(caffe.TEST, crop_size=4, mirror=True)
    for word in drawn_words(8):
        part = IMAGE[:, 1:5, 2:6]
        assert np.array_equal(applied(mirrored), part[:, :, ::-1] if word % 2 else part)


def test_a_mean_image_goes_off_where_the_crop_is(tmp_path):
    mean = draw(1, 3, 7, 9, low=0, high=255)
    caffemodel.write_blob(tmp_path / 'mean.binaryproto', mean)
    fields = dict(mean_file=str(tmp_path / 'mean.binaryproto'), crop_size=5, mirror=True)
    one, words = transform(**fields), drawn_words(15)
    for i in range(5):
        mirror, y, x = words[3 * i] % 2, words[3 * i + 1] % 3, words[3 * i + 2] % 5
        part = (IMAGE - mean[0])[:, y : y + 5, x : x + 5]
        assert np.array_equal(applied(one), part[:, :, ::-1] if mirror else part)
    with pytest.raises(
        caffe.CaffeError, match='^x: the image is 3 x 6 x 9, the mean in .*binaryproto 3 x 7 x 9'
    ):
        applied(one, IMAGE[:, 1:])


def test_a_state_goes_on_to_the_bit():
    one = transform(mirror=True, crop_size=4)
    applied(one)
    state = one.state()
    expected = [applied(one) for _ in range(5)]
    other = transform(mirror=True, crop_size=4)
    other.set_state(state)
    assert all(np.array_equal(applied(other), values) for values in expected)
    for bad in (None, [], [[1, 2], 3], 'x'):
        with pytest.raises(caffe.CaffeError, match='random stream'):
            other.set_state(bad)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(mean_file='m', mean_value=[1]), 'either mean_file or mean_value'),
        (dict(force_color=True, force_gray=True), 'either force_color or force_gray'),
        (dict(mean_file='no such file'), 'no such file'),
    ],
)
def test_settings_that_exclude_each_other_are_refused(fields, message):
    with pytest.raises(caffe.CaffeError, match=message):
        transform(**fields)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(caffe.CaffeError, match='^x: crop_size 8 exceeds the image, 3 x 7 x 9'):
        applied(transform(crop_size=8))
    with pytest.raises(caffe.CaffeError, match='^x: 2 mean_value for 3 channels, give 1 or all'):
        applied(transform(mean_value=[1, 2]))
    with pytest.raises(caffe.CaffeError, match='^x: expected 3 x 2 x 2 .*, found 3 x 7 x 9'):
        transform()(IMAGE, np.empty((3, 2, 2), np.float32), 'x')
