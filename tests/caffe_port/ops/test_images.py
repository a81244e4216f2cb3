"""Images as OpenCV reads and resizes them."""

import io

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port.ops import images
from tests.formulas import RANDOM

PIXELS = RANDOM(0).randint(0, 256, (6, 5, 3)).astype(np.uint8)  # RGB


def encoded(pixels, kind='PNG', mode=None):
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, kind)
    return buffer.getvalue()


def grey(pixels):
    return pixels @ [0.299, 0.587, 0.114]


def test_colours_come_in_the_order_bgr():
    for color in (True, None):
        assert np.array_equal(images.decode(encoded(PIXELS), color, 'x'), PIXELS[:, :, ::-1])


def test_grey_and_colour_turn_into_each_other():
    found = images.decode(encoded(PIXELS), False, 'x')
    assert found.shape == (6, 5, 1) and np.abs(found[..., 0] - grey(PIXELS)).max() <= 1
    plain = PIXELS[:, :, 0]
    assert np.array_equal(images.decode(encoded(plain), None, 'x'), plain[..., None])
    assert np.array_equal(images.decode(encoded(plain), True, 'x'), np.dstack([plain] * 3))


def test_alpha_stays_only_in_an_image_as_it_is():
    rgba = np.dstack([PIXELS, PIXELS[:, :, :1]])
    assert np.array_equal(images.decode(encoded(rgba), True, 'x'), PIXELS[:, :, ::-1])
    assert np.array_equal(images.decode(encoded(rgba), None, 'x'), rgba[:, :, [2, 1, 0, 3]])


def test_of_16_bits_the_upper_8_count():
    deep = RANDOM(1).randint(0, 65536, (4, 5)).astype(np.uint16)
    assert np.array_equal(images.decode(encoded(deep), False, 'x')[..., 0], deep >> 8)
    with pytest.raises(caffe.CaffeError, match='^x: .*16 bits per channel, 8 expected'):
        images.decode(encoded(deep), None, 'x')


def test_a_jpeg_has_its_grey_values_apart():
    data = encoded(PIXELS.repeat(8, 0).repeat(8, 1), 'JPEG')
    with Image.open(io.BytesIO(data)) as image:
        image.draft('YCbCr', image.size)
        luma = np.asarray(image)[..., 0]
    assert np.array_equal(images.decode(data, False, 'x')[..., 0], luma)


@pytest.mark.parametrize(
    'size, expected',
    [
        (
            (5, 7),
            [
                [0, 13, 34, 55, 77, 98, 111],
                [59, 72, 93, 115, 128, 92, 70],
                [148, 161, 182, 204, 207, 84, 8],
                [86, 99, 120, 142, 155, 119, 97],
                [45, 58, 79, 100, 122, 143, 156],
            ],
        ),
        ((2, 3), [[43, 92, 89], [77, 126, 123]]),
    ],
)
def test_resize_gives_the_numbers_of_opencv(size, expected):
    image = (np.arange(12).reshape(3, 4, 1) * 37 % 251).astype(np.uint8)
    assert images.resize(image, *size)[..., 0].tolist() == expected


@pytest.mark.parametrize('size', [(9, 13), (4, 20), (6, 5), (3, 2)])
def test_resize_is_bilinear_between_the_pixels_centres(size):
    old = PIXELS.astype(np.float64)
    for axis, count in enumerate(size):
        at = ((np.arange(count) + 0.5) * PIXELS.shape[axis] / count - 0.5).clip(
            0, PIXELS.shape[axis] - 1
        )
        low = np.floor(at).astype(int)
        part = (at - low).reshape(-1, *[1] * (2 - axis))
        high = (low + 1).clip(max=PIXELS.shape[axis] - 1)
        old = old.take(low, axis) * (1 - part) + old.take(high, axis) * part
    found = images.resize(PIXELS, *size)
    assert found.dtype == np.uint8 and np.abs(found - old).max() < 1


@pytest.mark.parametrize('data', [b'', b'no image', encoded(PIXELS)[:60]])
def test_what_is_no_image_is_named(data, tmp_path):
    with pytest.raises(
        caffe.CaffeError, match=f'^there: expected an image, found {len(data)} bytes'
    ):
        images.decode(data, True, 'there')
    path = tmp_path / 'a.png'
    path.write_bytes(data)
    with pytest.raises(caffe.CaffeError, match=f'^{path}: expected an image'):
        images.read_image(path)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(caffe.CaffeError, match='b.png: not read: No such file'):
        images.read_image(tmp_path / 'b.png')
