"""Reading lists and pictures: what is read, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from caffe_port.errors import CaffeError
from solve.datasets.images import read_label_png, read_list, read_rgb

LABELS = (np.arange(54).reshape(6, 9) % 21).astype(np.uint8)


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    (tmp_path / 'train.txt').write_bytes(b'\xef\xbb\xbfone\r\ntwo\r\n')
    assert read_list(tmp_path / 'train.txt') == ['one', 'two']


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'empty'),
        (b'\n \n\r\n', 'empty'),
        (b'ok\n\xff\xfe\n', 'position 3'),
        (b'ok\n../secret\n', "line 2: '../secret' is not an id"),
        (b'/etc/passwd', 'is not an id'),
        (b'a\\b', 'is not an id'),
        (b'..', 'is not an id'),
        (b'ok\nx\0y', 'line 2'),
        (b'x' * 300, 'is not an id'),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path, content, message):
    path = tmp_path / 'train.txt'
    path.write_bytes(content)
    with pytest.raises(CaffeError) as error:
        read_list(path)
    assert str(path) in str(error.value) and message in str(error.value)
    assert len(str(error.value)) < 500


def test_lists_may_have_blank_lines_and_any_line_ends(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'2007_000032\r\n\r\n 2007_000039 \nlast')
    assert read_list(tmp_path / 'a.txt') == ['2007_000032', '2007_000039', 'last']


def test_labels_are_palette_indices_or_grey_values(tmp_path):
    image = Image.fromarray(LABELS)
    image.save(tmp_path / 'grey.png')
    image.putpalette([7] * 768)
    image.save(tmp_path / 'palette.png')
    np.testing.assert_array_equal(read_label_png(tmp_path / 'grey.png'), LABELS)
    np.testing.assert_array_equal(read_label_png(tmp_path / 'palette.png'), LABELS)


@pytest.mark.parametrize('mode', ['RGB', '1', 'LA'])
def test_labels_of_other_pictures_are_refused(tmp_path, mode):
    path = tmp_path / 'a.png'
    Image.fromarray(LABELS).convert(mode).save(path)
    with pytest.raises(CaffeError, match=rf'{path}: PNG of mode {mode}, must be palette \(P\) or'):
        read_label_png(path)


@pytest.mark.parametrize('read, channels', [(read_label_png, 1), (read_rgb, 3)])
def test_no_changed_byte_leads_to_another_exception(tmp_path, read, channels):
    path, refused = tmp_path / 'a.png', 0
    Image.fromarray(np.dstack([LABELS] * channels).squeeze()).save(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :]):
            path.write_bytes(content)
            try:
                assert read(path).ndim in (2, 3)
            except CaffeError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > len(whole) / 2
