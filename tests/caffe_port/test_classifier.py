"""Nets over many items: forward_all and its kin, Classifier, Detector."""

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe

TEXT = """
layer { name: "data" type: "Input" top: "data"
        input_param { shape { dim: 4 dim: 3 dim: 8 dim: 10 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
force_backward: true
"""
SWAP = (2, 1, 0)
MEAN = np.array([10.0, 20.0, 30.0])


@pytest.fixture
def files(tmp_path):
    caffe.set_random_seed(1)
    (tmp_path / 'net.prototxt').write_text(TEXT)
    net = caffe.Net(str(tmp_path / 'net.prototxt'), caffe.TEST)
    net.save(str(tmp_path / 'net.caffemodel'))
    return str(tmp_path / 'net.prototxt'), str(tmp_path / 'net.caffemodel')


def images(count, height=8, width=10, seed=0):
    rng = np.random.RandomState(seed)
    return [rng.rand(height, width, 3).astype(np.float32) for _ in range(count)]


def drawn(count):
    return np.random.RandomState(2).randn(count, 3, 8, 10).astype(np.float32)


@pytest.mark.parametrize('count', [1, 4, 5, 11])
def test_forward_all_is_forward_item_by_item(files, count):
    net, data = caffe.Net(*files, caffe.TEST), drawn(count)
    found = net.forward_all(blobs=['fc'], data=data)
    assert found['prob'].shape == found['fc'].shape == (count, 5)
    for i in range(count):
        net.blobs['data'].data[...] = data[i]
        net.forward()
        np.testing.assert_allclose(found['prob'][i], net.blobs['prob'].data[0], rtol=1e-5)


def test_forward_backward_all_is_both_batch_by_batch(files):
    net, data = caffe.Net(*files, caffe.TEST), drawn(6)
    gradient = np.random.RandomState(3).randn(6, 5).astype(np.float32)
    blobs, diffs = net.forward_backward_all(diffs=['fc'], data=data, prob=gradient)
    assert blobs['prob'].shape == diffs['fc'].shape == (6, 5)
    net.blobs['data'].data[:2] = data[4:]
    net.forward()
    net.blobs['prob'].diff[...] = 0
    net.blobs['prob'].diff[:2] = gradient[4:]
    net.backward(diffs=['fc'])
    np.testing.assert_allclose(diffs['data'][4:], net.blobs['data'].diff[:2], rtol=1e-5)
    np.testing.assert_allclose(diffs['fc'][4:], net.blobs['fc'].diff[:2], rtol=1e-5)


def test_arrays_of_different_lengths_are_refused(files):
    net = caffe.Net(*files, caffe.TEST)
    with pytest.raises(caffe.CaffeError, match='as many items each, found data: 3, prob: 2'):
        net.forward_backward_all(data=drawn(3), prob=np.zeros((2, 5), np.float32))
    with pytest.raises(caffe.CaffeError, match='found none'):
        net.forward_all()


def probabilities(files, prepared):
    net = caffe.Net(*files, caffe.TEST)
    return net.forward_all(data=np.array(prepared, np.float32))['prob']


def prepared(image):
    return (image.transpose(2, 0, 1)[list(SWAP)] * 255 - MEAN[:, None, None]) * 0.5


def test_a_classifier_predicts_on_the_centre_or_averages_ten_crops(files):
    net = caffe.Classifier(
        *files, image_dims=(12, 14), mean=MEAN, input_scale=0.5, raw_scale=255, channel_swap=SWAP
    )
    given = images(3, 12, 14)
    centre = [prepared(image[2:10, 2:12]) for image in given]
    found = net.predict(given, oversample=False)
    np.testing.assert_allclose(found, probabilities(files, centre), rtol=1e-4)
    crops = [
        prepared(crop)
        for image in given
        for mirror in (image, None)
        for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))
        for crop in [(image if mirror is not None else image)[y : y + 8, x : x + 10]]
        for crop in [crop if mirror is not None else crop[:, ::-1]]
    ]
    expected = probabilities(files, crops).reshape(3, 10, 5).mean(1)
    np.testing.assert_allclose(net.predict(given), expected, rtol=1e-4)


def test_a_classifier_resizes_what_is_of_another_size(files):
    net = caffe.Classifier(*files)
    image = images(1, 30, 40)[0]
    small = caffe.io.resize_image(image, (8, 10))
    np.testing.assert_allclose(
        net.predict([image], oversample=False),
        probabilities(files, [small.transpose(2, 0, 1)]),
        rtol=1e-4,
    )


@pytest.fixture
def picture(tmp_path):
    pixels = (np.random.RandomState(4).rand(40, 50, 3) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'picture.png')
    return str(tmp_path / 'picture.png')


def test_a_detector_classifies_each_window_resized_to_the_input(files, picture):
    net = caffe.Detector(*files, mean=MEAN, raw_scale=255, channel_swap=SWAP)
    windows = [(0, 0, 8, 10), (5, 6, 29, 36), (39, 49, 40, 50)]
    found = net.detect_windows([(picture, windows)])
    assert [each['window'] for each in found] == windows
    assert {each['filename'] for each in found} == {picture}
    image = caffe.io.load_image(picture)
    for each, (top, left, bottom, right) in zip(found, windows):
        crop = caffe.io.resize_image(image[top:bottom, left:right], (8, 10))
        wanted = crop.transpose(2, 0, 1)[list(SWAP)] * 255 - MEAN[:, None, None]
        np.testing.assert_allclose(
            each['prediction'], probabilities(files, [wanted])[0], rtol=1e-3, atol=1e-6
        )
    assert net.detect_windows([]) == []


def test_context_surrounds_a_window_and_outside_the_image_is_the_mean(files, picture):
    net = caffe.Detector(*files, mean=MEAN, raw_scale=255, channel_swap=SWAP, context_pad=2)
    image = np.ones((40, 50, 3), np.float32)
    corner = net.crop(image, np.array([0, 0, 8, 12]))
    assert corner.shape == (8, 10, 3)
    # The window's share of the input is 4 x 6, in its middle; above and left of it is no image.
    np.testing.assert_allclose(corner[:2, :2], (MEAN / 255)[list(SWAP)] * np.ones((2, 2, 3)))
    assert (corner[2:, 2:] == 1).all()
    inside = net.crop(image, np.array([16, 20, 24, 32]))
    assert (inside == 1).all()
    with pytest.raises(caffe.CaffeError, match='less than half of the input, 8 x 10'):
        net.configure_crop(4)


def test_a_window_outside_the_image_is_refused(files, picture):
    net = caffe.Detector(*files)
    with pytest.raises(caffe.CaffeError, match='within an image of 40 x 50'):
        net.detect_windows([(picture, [(60, 0, 70, 10)])])
