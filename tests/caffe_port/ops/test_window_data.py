"""WindowData on a drawn file, against a float formula of its windows."""

import json

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port import rng
from caffe_port.files import caffemodel
from caffe_port.ops import images
from tests.formulas import RANDOM
from tests.vectors import net_of

SIZES = (20, 30), (24, 18)
PIXELS = [RANDOM(i).randint(0, 256, (*size, 3)).astype(np.uint8) for i, size in enumerate(SIZES)]
OBJECTS = [(0, 2, 3, 4, 12, 15), (1, 1, 0, 0, 9, 20), (1, 5, 2, 2, 17, 23)]
BACKGROUND = [(0, 0, 5, 1, 25, 18), (1, 0, 1, 1, 6, 6)]
CROP = 8


@pytest.fixture
def window_file(tmp_path):
    lines = []
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels[:, :, ::-1].copy()).save(tmp_path / f'{i}.png')
        own = [(label, 0.7, *box) for at, label, *box in OBJECTS if at == i]
        own += [(3, 0.1, *box) for at, _, *box in BACKGROUND if at == i]
        own += [(1, 0.4, 0, 0, 1, 1)]  # neither
        lines += [f'# {i}', f'{i}.png', 3, *pixels.shape[:2], len(own)]
        lines += [' '.join(map(str, window)) for window in own]
    (tmp_path / 'windows.txt').write_text('\n'.join(map(str, lines)))
    return tmp_path / 'windows.txt'


def window_net(file, settings='', transform='', batch=4, fraction=0.5):
    caffe.set_random_seed(8)
    return net_of(
        f'layer {{ name: "w" type: "WindowData" top: "data" top: "label" window_data_param {{ '
        f'source: "{file}" root_folder: "{file.parent}/" batch_size: {batch} '
        f'fg_fraction: {fraction} bg_threshold: 0.3 {settings} }} '
        f'transform_param {{ crop_size: {CROP} {transform} }} }}',
        caffe.TRAIN,
    )


def stream():
    """The layer's own, whose seed is the host stream's second word, after the transform's."""
    words = RANDOM(8).randint(0, 2**32, 2, np.uint32)
    return RANDOM(int(words[1]))


def draw(source, mirror, count=4):
    for i in range(count):
        windows = BACKGROUND if i < count / 2 else OBJECTS
        window = windows[int(source.randint(0, 2**32, dtype=np.uint32)) % len(windows)]
        yield window, bool(mirror and source.randint(0, 2**32, dtype=np.uint32) % 2)


@pytest.mark.parametrize('mirror', [False, True])
@pytest.mark.parametrize('cache', ['', 'cache_images: true'])
def test_windows_are_drawn_and_warped_background_first(window_file, mirror, cache):
    transform = f'mirror: {str(mirror).lower()} mean_value: 9 scale: 7'  # this scale is not used
    net, source = window_net(window_file, f'scale: 0.5 {cache}', transform), stream()
    for _ in range(5):
        out = net.forward()
        for data, label, (window, flip) in zip(out['data'], out['label'], draw(source, mirror)):
            at, expected_label, x1, y1, x2, y2 = window
            part = images.resize(PIXELS[at][y1 : y2 + 1, x1 : x2 + 1], CROP, CROP)
            part = part[:, ::-1] if flip else part
            assert label == expected_label
            assert np.array_equal(data, (part.transpose(2, 0, 1).astype(np.float32) - 9) * 0.5)


def sampled(pixels, window, pad, square, mirror):
    """Where each pixel of the crop lies in the image, by the formula in float64; NaN outside."""
    _, _, x1, y1, x2, y2 = window
    half = [(y2 - y1 + 1) / 2, (x2 - x1 + 1) / 2]
    centre = [y1 + half[0], x1 + half[1]]
    if square:
        half = [max(half)] * 2
    ends = []
    for middle, length in zip(centre, half):
        reach = length * CROP / (CROP - 2 * pad)
        ends.append([np.floor(e + 0.5) for e in (middle - reach, middle + reach)])
    places = [low + (np.arange(CROP) + 0.5) * (high - low + 1) / CROP - 0.5 for low, high in ends]
    inside = np.ones((CROP, CROP), bool)
    inside &= ((places[0] >= -0.5) & (places[0] <= pixels.shape[0] - 0.5))[:, None]
    inside &= (places[1] >= -0.5) & (places[1] <= pixels.shape[1] - 0.5)
    return inside[:, ::-1] if mirror else inside


@pytest.mark.parametrize(
    'settings, pad, square',
    [
        ('context_pad: 2', 2, False),
        ('crop_mode: "square"', 0, True),
        ('context_pad: 1 crop_mode: "square"', 1, True),
    ],
)
def test_context_grows_the_window_and_outside_the_image_is_0(window_file, settings, pad, square):
    net, source = window_net(window_file, settings, 'mirror: true'), stream()
    for _ in range(10):
        for data, (window, flip) in zip(net.forward()['data'], draw(source, True)):
            inside = sampled(PIXELS[window[0]], window, pad, square, flip)
            filled = data.any(0)
            # Rounding of the edge moves a border by at most one pixel of the crop.
            rows, columns = (np.flatnonzero(filled.any(axis)) for axis in (1, 0))
            for found, axis in ((rows, 1), (columns, 0)):
                expected = np.flatnonzero(inside.any(axis))
                assert abs(found[0] - expected[0]) <= 1 and abs(found[-1] - expected[-1]) <= 1
            assert filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_a_window_whose_context_lies_within_is_the_larger_window(window_file):
    window_file.write_text('# 0\n0.png\n3 20 30\n1\n1 1 8 6 15 13\n')
    net = window_net(window_file, 'context_pad: 2', batch=1, fraction=1)
    # 8 x 8 around (12, 10), twice as large: from 4 to 20 and from 2 to 18.
    expected = images.resize(PIXELS[0][2:19, 4:21], CROP, CROP).transpose(2, 0, 1)
    assert np.array_equal(net.forward()['data'][0], expected)


def test_a_mean_image_goes_off_from_its_middle(window_file, tmp_path):
    mean = RANDOM(3).rand(1, 3, CROP + 4, CROP + 4).astype(np.float32)
    caffemodel.write_blob(tmp_path / 'mean.binaryproto', mean)
    net = window_net(window_file, '', f'mean_file: "{tmp_path}/mean.binaryproto"')
    for data, (window, _) in zip(net.forward()['data'], draw(stream(), False)):
        at, _, x1, y1, x2, y2 = window
        part = images.resize(PIXELS[at][y1 : y2 + 1, x1 : x2 + 1], CROP, CROP).transpose(2, 0, 1)
        assert np.array_equal(data, part - mean[0, :, 2:-2, 2:-2])
    caffemodel.write_blob(tmp_path / 'mean.binaryproto', mean[:, :, 5:, 5:])
    net = window_net(window_file, '', f'mean_file: "{tmp_path}/mean.binaryproto"')
    with pytest.raises(caffe.CaffeError, match='the mean 3 x 7 x 7 does not cover 8 x 8'):
        net.forward()


def test_the_host_stream_gives_four_words(window_file):
    window_net(window_file)
    assert rng.draw_words(1) == RANDOM(8).randint(0, 2**32, 5, np.uint32)[4]


def test_a_state_goes_on_to_the_bit(window_file):
    net, other = window_net(window_file), window_net(window_file)
    net.forward()
    state = json.loads(json.dumps(net.module.w.state()))
    expected = [net.forward()['data'].copy() for _ in range(5)]
    other.module.w.set_state(state)
    assert all(np.array_equal(other.forward()['data'], data) for data in expected)
    with pytest.raises(caffe.CaffeError, match='^state of w: does not fit'):
        other.module.w.set_state({'stream': []})


@pytest.mark.parametrize(
    'text, message',
    [
        ('', '2 windows of background in a batch, found none'),
        ('0.png', 'image 0: expected "#", found "0.png"'),
        ('# 0 0.png 3 20 30', 'image 1: the file ends too early'),
        ('# 0 0.png 3 20 30 1 1 0.9 1 1 4', 'image 1: the file ends too early'),
        ('# 0 0.png 3 20 30 1 0 0.9 1 1 4 4', 'image 1: class 0 of an object must be positive'),
        ('# 0 0.png 3 20 x', 'image 1: invalid literal'),
        ('# 0 0.png 3 20 30 1 1 0.9 1 1 4 4', '2 windows of background in a batch, found none'),
        ('# 1 0.png 3 20 30 1 1 0.9 1 1 4 4', 'image index 1 of 1 images'),
    ],
)
def test_a_window_file_that_is_none_is_named(window_file, text, message):
    window_file.write_text(text)
    with pytest.raises(caffe.CaffeError, match=rf'^w \(WindowData\): {window_file}: {message}'):
        window_net(window_file)


def test_a_window_outside_its_image_and_a_missing_image_are_named(window_file, tmp_path):
    window_file.write_text('# 0 0.png 3 20 30 1 1 1 5 5 30 9')
    net = window_net(window_file, fraction=1)
    with pytest.raises(
        caffe.CaffeError, match='0.png: window 5 5 30 9: outside the image, 20 x 30 x 3'
    ):
        net.forward()
    (tmp_path / '0.png').unlink()
    with pytest.raises(caffe.CaffeError, match='0.png: not read: No such file'):
        net.forward()


def test_settings_that_do_not_fit_are_refused(window_file):
    with pytest.raises(caffe.CaffeError, match='batch_size must be positive'):
        window_net(window_file, batch=0)
    with pytest.raises(caffe.CaffeError, match='context_pad 4 leaves nothing of crop_size 8'):
        window_net(window_file, 'context_pad: 4')
    with pytest.raises(caffe.CaffeError, match='crop_size must be positive'):
        net_of(
            f'layer {{ name: "w" type: "WindowData" top: "a" top: "b" window_data_param {{ '
            f'source: "{window_file}" batch_size: 1 }} }}'
        )
