"""Pictures in: what arguments name, and every format, mode and orientation right."""

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from caffe_port.errors import CaffeError
from solve.run import inputs, results


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new('RGB', (3, 2)).save(folder / name)
    return folder


def names(paths):
    return [path.name for path in paths]


def test_a_folder_gives_its_frames_in_the_order_of_their_numbers(tmp_path):
    folder = touch(tmp_path / 'film', 'f10.png', 'f2.png', 'f1.jpg', 'F3.TIF', '.hidden.png')
    (folder / 'notes.txt').write_text('no picture')
    (folder / 'sub.png').mkdir()
    assert names(inputs.find_pictures(folder)) == ['F3.TIF', 'f1.jpg', 'f2.png', 'f10.png']


def test_a_folder_leaves_out_results(tmp_path):
    folder = touch(tmp_path, 'a.png', 'b_labels.png')
    info = results_text()
    Image.new('P', (3, 2)).save(folder / 'a_labels.png', pnginfo=info)
    assert names(inputs.find_pictures(folder)) == ['a.png', 'b_labels.png']


def results_text():
    info = PngInfo()
    info.add_text(results.SOFTWARE, results.OURS)
    return info


def test_a_pattern_gives_what_it_matches_and_a_name_with_brackets_itself(tmp_path):
    touch(tmp_path, 'a1.png', 'a2.png', 'b.png', 'a[1].png')
    assert names(inputs.find_pictures(tmp_path / 'a?.png')) == ['a1.png', 'a2.png']
    assert names(inputs.find_pictures(tmp_path / 'a[1].png')) == ['a[1].png']
    with pytest.raises(CaffeError, match='no file matches'):
        inputs.find_pictures(tmp_path / 'c*')


def test_a_list_names_files_from_its_own_folder_with_or_without_a_byte_order_mark(tmp_path):
    for text in ('x/a.png\r\n\nb c.png\n', '\ufeffx/a.png\nb c.png'):
        (tmp_path / 'list.txt').write_bytes(text.encode())
        found = inputs.find_pictures(tmp_path / 'list.txt')
        assert found == [tmp_path / 'x/a.png', tmp_path / 'b c.png']
    (tmp_path / 'list.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(CaffeError, match='list.txt: not a list of files'):
        inputs.find_pictures(tmp_path / 'list.txt')


COLOURS = np.array([[[250, 10, 20], [10, 240, 30]], [[5, 15, 235], [128, 128, 128]]], np.uint8)


@pytest.mark.parametrize('suffix', 'png bmp tif gif webp ppm tga ico jp2 sgi'.split())
def test_formats_of_pillow_are_read(suffix, tmp_path):
    path = tmp_path / f'a.{suffix}'
    colours = np.kron(COLOURS, np.ones((16, 16, 1), np.uint8))
    Image.fromarray(colours).save(path, **({'lossless': True} if suffix == 'webp' else {}))
    read = inputs.read_upright(path).astype(int)
    assert read.shape == (32, 32, 3) and read.dtype == int
    assert abs(read - colours).max() <= 6


@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_orientation_is_applied(orientation, tmp_path):
    """Of each orientation: where EXIF says that the stored first row and column are shown."""
    shown = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3) * 5
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: shown.transpose(1, 0, 2)[::-1],
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: shown.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / 'a.png', exif=exif)
    assert np.array_equal(inputs.read_upright(tmp_path / 'a.png'), shown)


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_grey_of_16_bits_is_scaled_and_not_clipped(name, tmp_path):
    grey = np.array([[0, 256, 32768, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / name)
    assert inputs.read_upright(tmp_path / name)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize('kind', [np.int32, np.float32])
def test_values_without_a_known_white_are_refused_by_name(kind, tmp_path):
    Image.fromarray(np.ones((2, 2), kind)).save(tmp_path / 'a.tif')
    with pytest.raises(CaffeError, match='a.tif: .*whose white is not known'):
        inputs.read_upright(tmp_path / 'a.tif')


def test_what_is_transparent_lies_over_white(tmp_path):
    clear = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(clear).save(tmp_path / 'rgba.png')
    expected = [[255, 0, 0], [255, 255, 255], [127, 127, 127]]
    assert inputs.read_upright(tmp_path / 'rgba.png')[0].tolist() == expected
    grey = Image.fromarray(np.array([[[0, 255], [0, 0]]], np.uint8), 'LA')
    grey.save(tmp_path / 'la.png')
    assert inputs.read_upright(tmp_path / 'la.png')[0].tolist() == [[0] * 3, [255] * 3]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([9, 8, 7, 60, 50, 40])
    palette.save(tmp_path / 'p.png', transparency=1)
    assert inputs.read_upright(tmp_path / 'p.png')[0].tolist() == [[9, 8, 7], [255, 255, 255]]
    palette.save(tmp_path / 'opaque.png')
    assert inputs.read_upright(tmp_path / 'opaque.png')[0].tolist() == [[9, 8, 7], [60, 50, 40]]


def test_inks_become_colours(tmp_path):
    cyan = np.zeros((16, 16, 4), np.uint8)
    cyan[..., 0] = 255
    for name in ('a.jpg', 'a.tif'):
        Image.fromarray(cyan, 'CMYK').save(tmp_path / name)
        assert abs(inputs.read_upright(tmp_path / name)[8, 8].astype(int) - [0, 255, 255]).max() < 4


@pytest.mark.parametrize('content', [b'', b'%!PS-Adobe-3.0 EPSF-3.0\n', b'\x89PNG\r\n\x1a\n0000'])
def test_what_is_no_picture_is_named(content, tmp_path):
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(CaffeError, match='a.png: (not a picture|broken)'):
        inputs.read_upright(tmp_path / 'a.png')
