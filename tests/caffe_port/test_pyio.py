"""caffe.io against its own arithmetic."""

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port.proto.caffe_pb2 import BlobProto, Datum

RANDOM = np.random.RandomState(1)
PHOTO = RANDOM.randint(0, 256, (6, 8, 3)).astype(np.uint8)


@pytest.fixture
def photo(tmp_path) -> str:
    Image.fromarray(PHOTO).save(tmp_path / 'photo.png')
    return str(tmp_path / 'photo.png')


def test_load_image_is_rgb_from_0_to_1(photo):
    image = caffe.io.load_image(photo)
    assert image.dtype == np.float32 and np.allclose(image, PHOTO / 255, atol=1e-6)


def test_load_image_in_grey_has_one_channel(photo):
    image = caffe.io.load_image(photo, color=False)
    assert image.shape == (6, 8, 1)
    assert np.allclose(image[..., 0], PHOTO @ [0.2125, 0.7154, 0.0721] / 255, atol=1e-6)


def test_load_image_spreads_grey_and_drops_alpha(tmp_path):
    grey = PHOTO[..., 0]
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    assert np.allclose(caffe.io.load_image(tmp_path / 'grey.png'), grey[..., None] / 255, atol=1e-6)
    alpha = np.dstack([PHOTO, PHOTO[..., :1]])
    Image.fromarray(alpha).save(tmp_path / 'alpha.png')
    assert np.allclose(caffe.io.load_image(tmp_path / 'alpha.png'), PHOTO / 255, atol=1e-6)


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_load_image_keeps_the_16_bits_of_grey(tmp_path, suffix):
    grey = RANDOM.randint(0, 2**16, (6, 8)).astype(np.uint16)
    path = tmp_path / f'grey.{suffix}'
    Image.fromarray(grey).save(path)
    for color, channels in ((False, 1), (True, 3)):
        image = caffe.io.load_image(path, color)
        expected = np.repeat(grey[..., None] / 65535, channels, 2)
        assert image.dtype == np.float32 and image.shape == expected.shape
        assert np.allclose(image, expected, rtol=0, atol=1e-7) and image.flags.writeable


@pytest.mark.parametrize('mode', ['L', '1'])
def test_load_image_leaves_grey_as_it_is(tmp_path, mode):
    grey = Image.fromarray(PHOTO[..., 0]).convert(mode)
    grey.save(tmp_path / 'grey.png')
    image = caffe.io.load_image(tmp_path / 'grey.png', color=False)
    assert np.allclose(image[..., 0], np.asarray(grey.convert('L')) / 255, rtol=0, atol=1e-7)


@pytest.mark.parametrize('content', [None, b'', b'no image', b'\x89PNG\r\n\x1a\n broken'])
def test_load_image_names_the_file_it_cannot_read(tmp_path, content):
    path = tmp_path / 'bad.png'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(caffe.CaffeError, match=r'bad\.png: not read as an image'):
        caffe.io.load_image(path)


def test_resize_to_the_same_size_changes_nothing():
    image = PHOTO / np.float32(255)
    assert np.allclose(caffe.io.resize_image(image, (6, 8)), image, atol=1e-6)


def test_resize_interpolates_linearly_between_pixel_centres():
    ramp = np.repeat(np.arange(8, dtype=np.float32)[None, :, None], 4, 0)
    big = caffe.io.resize_image(ramp, (4, 16))
    assert big.shape == (4, 16, 1) and big.dtype == np.float32
    inner = (np.arange(16) + 0.5) / 2 - 0.5
    assert np.allclose(big[0, 1:-1, 0], inner[1:-1], atol=1e-5)
    small = caffe.io.resize_image(ramp, (4, 4))
    assert np.allclose(small[0, :, 0], [0.5, 2.5, 4.5, 6.5], atol=1e-5)


@pytest.mark.parametrize('channels', [1, 3, 5])
def test_resize_keeps_channels_and_constants(channels):
    constant = np.full((5, 7, channels), 0.25, np.float32)
    out = caffe.io.resize_image(constant, (9, 3))
    assert out.shape == (9, 3, channels) and np.allclose(out, 0.25)


@pytest.mark.parametrize('channels', [2, 4, 5])
def test_resize_of_other_channels_keeps_the_outermost_pixels_in_place(channels):
    ramp = np.tile(np.arange(5.0)[None, :, None], (4, 1, channels))
    big = caffe.io.resize_image(ramp, (4, 9))
    assert big.dtype == np.float32 and big.shape == (4, 9, channels)
    assert np.allclose(big, np.arange(9)[None, :, None] / 2, atol=1e-6)


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.uint8])
def test_resize_by_cubics_stays_in_the_images_range(dtype):
    step = np.repeat(np.array([10, 10, 20, 20], dtype)[None, :, None], 4, 0)
    big = caffe.io.resize_image(step, (4, 16), interp_order=3)
    assert big.dtype == np.float32 and (big.min(), big.max()) == (10, 20)


def transformer() -> caffe.io.Transformer:
    t = caffe.io.Transformer({'data': (1, 3, 6, 8)})
    t.set_transpose('data', (2, 0, 1))
    t.set_channel_swap('data', (2, 1, 0))
    t.set_raw_scale('data', 255)
    t.set_mean('data', np.array([104, 117, 123]))
    t.set_input_scale('data', 0.5)
    return t


def test_preprocess_is_the_release_s_arithmetic():
    image = PHOTO / np.float32(255)
    out = transformer().preprocess('data', image)
    bgr = PHOTO[:, :, ::-1].astype(np.float64) - (104, 117, 123)
    assert out.dtype == np.float32 and np.allclose(out, 0.5 * bgr.transpose(2, 0, 1), atol=1e-3)
    assert np.array_equal(image, PHOTO / np.float32(255)), 'the image given is left alone'


def test_deprocess_undoes_preprocess():
    t, image = transformer(), PHOTO / np.float32(255)
    assert np.allclose(t.deprocess('data', t.preprocess('data', image)), image, atol=1e-5)
    assert np.allclose(t.deprocess('data', t.preprocess('data', image)[None]), image, atol=1e-5)


def test_preprocess_resizes_to_the_input():
    t = caffe.io.Transformer({'data': (1, 3, 12, 4)})
    t.set_transpose('data', (2, 0, 1))
    image = PHOTO / np.float32(255)
    expected = caffe.io.resize_image(image, (12, 4)).transpose(2, 0, 1)
    assert np.allclose(t.preprocess('data', image), expected)


def test_a_mean_may_be_a_channel_each_or_an_image():
    image = PHOTO / np.float32(255)
    for mean in (np.full(3, 0.1), np.full((3, 6, 8), 0.1), np.full(1, 0.1)):
        t = caffe.io.Transformer({'data': (1, 3, 6, 8)})
        t.set_transpose('data', (2, 0, 1))
        t.set_mean('data', mean)
        assert np.allclose(t.preprocess('data', image), image.transpose(2, 0, 1) - 0.1, atol=1e-6)


@pytest.mark.parametrize(
    'setting, value, message',
    [
        ('set_mean', np.zeros(2), 'mean of shape'),
        ('set_mean', np.zeros((3, 5, 8)), 'mean of shape'),
        ('set_channel_swap', (0, 1), 'channel swap of 2'),
        ('set_transpose', (0, 1), 'transpose of 2'),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting, value, message):
    t = caffe.io.Transformer({'data': (1, 3, 6, 8)})
    with pytest.raises(caffe.CaffeError, match=f'^data: {message}'):
        getattr(t, setting)('data', value)
    with pytest.raises(caffe.CaffeError, match='^image is not one of the net inputs: data'):
        getattr(t, setting)('image', value)


def test_oversample_takes_corners_centre_and_mirrors():
    image = np.arange(6 * 8 * 3, dtype=np.float32).reshape(6, 8, 3)
    crops = caffe.io.oversample([image, image + 1000], (4, 4))
    assert crops.shape == (20, 4, 4, 3)
    for i, (y, x) in enumerate([(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]):
        assert np.array_equal(crops[i], image[y : y + 4, x : x + 4])
        assert np.array_equal(crops[5 + i], image[y : y + 4, x : x + 4][:, ::-1])
        assert np.array_equal(crops[10 + i], crops[i] + 1000)


@pytest.mark.parametrize('shape', [(2, 3, 4, 5), (7,), (1,), (2, 0)])
def test_blobprotos_carry_arrays_both_ways(shape):
    data, diff = (RANDOM.randn(*shape).astype(np.float32) for _ in range(2))
    blob = BlobProto.FromString(caffe.io.array_to_blobproto(data, diff).SerializeToString())
    assert np.array_equal(caffe.io.blobproto_to_array(blob), data)
    assert np.array_equal(caffe.io.blobproto_to_array(blob, return_diff=True), diff)


def test_legacy_and_double_blobprotos_are_read():
    old = BlobProto(num=1, channels=2, height=1, width=3, data=range(6))
    assert np.array_equal(caffe.io.blobproto_to_array(old), np.arange(6).reshape(1, 2, 1, 3))
    old.shape.dim.extend([3, 2])  # as in Caffe, the legacy dims come first
    assert caffe.io.blobproto_to_array(old).shape == (1, 2, 1, 3)
    double = BlobProto(double_data=[1.5, 2.5])
    double.shape.dim.append(2)
    assert caffe.io.blobproto_to_array(double).tolist() == [1.5, 2.5]


@pytest.mark.parametrize('dims', [[2], [-1, -3], [10**12], [3, 10**18, 10**18]])
def test_a_blobproto_of_another_count_is_refused(dims):
    blob = BlobProto(data=[1, 2, 3])
    blob.shape.dim.extend(dims)
    with pytest.raises(caffe.CaffeError, match='BlobProto: 3 values for shape'):
        caffe.io.blobproto_to_array(blob)


def test_io_has_the_messages_as_pycaffes_does():
    message = BlobProto(data=[1, 2], num=2, channels=1, height=1, width=1)
    blob = caffe.io.caffe_pb2.BlobProto.FromString(message.SerializeToString())
    assert caffe.io.blobproto_to_array(blob).shape == (2, 1, 1, 1)


def test_a_blobproto_without_a_shape_is_a_scalar_or_refused():
    assert caffe.io.blobproto_to_array(BlobProto(data=[123])) == 123
    for data in ([], [1, 2], range(100)):
        with pytest.raises(ValueError, match=rf'BlobProto: {len(data)} values for shape \(\)'):
            caffe.io.blobproto_to_array(BlobProto(data=data))


def test_a_datum_without_a_label_has_none():
    with_label, without = (
        caffe.io.array_to_datum(np.ones((4, 4, 3)), label) for label in (1, None)
    )
    assert with_label.HasField('label') and not without.HasField('label')
    assert len(with_label.SerializeToString()) > len(without.SerializeToString())


def test_vectors_of_arrays_go_through_a_string():
    arrays = [RANDOM.randn(2, 3).astype(np.float32), np.zeros(4, np.float32)]
    string = caffe.io.arraylist_to_blobprotovector_str(arrays)
    back = caffe.io.blobprotovector_str_to_arraylist(string)
    assert isinstance(string, bytes)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, back, strict=True))


def test_a_broken_string_of_arrays_is_refused():
    with pytest.raises(caffe.CaffeError, match='BlobProtoVector'):
        caffe.io.blobprotovector_str_to_arraylist(b'\xff\xff\xff')


@pytest.mark.parametrize(
    'array',
    [RANDOM.randint(0, 256, (3, 4, 5)).astype(np.uint8), RANDOM.randn(3, 4, 5).astype(np.float32)],
)
def test_datums_carry_images_both_ways(array):
    datum = Datum.FromString(caffe.io.array_to_datum(array, label=7).SerializeToString())
    back = caffe.io.datum_to_array(datum)
    assert np.array_equal(back, array) and datum.label == 7
    assert (back.dtype == np.uint8) == (array.dtype == np.uint8)


def test_datums_of_other_shapes_are_refused():
    with pytest.raises(caffe.CaffeError, match='3 axes expected'):
        caffe.io.array_to_datum(np.zeros((2, 2)))
    for dims in (
        dict(channels=1, height=2, width=2),
        dict(channels=-1, height=-3, width=1),
        dict(channels=2**31 - 1, height=2**31 - 1, width=2**31 - 1),
    ):
        with pytest.raises(caffe.CaffeError, match='Datum: 3 values for shape'):
            caffe.io.datum_to_array(Datum(data=b'abc', **dims))
