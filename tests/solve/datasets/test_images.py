"""Reading lists, pictures and .mat files: what is read, and what is refused within bounds."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io
from PIL import Image

from caffe_port.errors import CaffeError
from solve.datasets import matfile
from solve.datasets.images import MAX_PIXELS, read_label_png, read_list, read_rgb
from solve.datasets.matfile import read_mat

# Room for .mat files, less than usual to keep these tests quick.
BOUND = 4 * 2**20
LABELS = (np.arange(54).reshape(6, 9) % 21).astype(np.uint8)


# Lists.


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'empty'),
        (b'\n \n\r\n', 'empty'),
        (b'ok\n\xff\xfe\n', 'byte 3 is not UTF-8'),
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


# Pictures.


def test_labels_are_palette_indices_or_grey_values(tmp_path):
    image = Image.fromarray(LABELS)
    image.save(tmp_path / 'grey.png')
    image.putpalette([7] * 768)
    image.save(tmp_path / 'palette.png')
    np.testing.assert_array_equal(read_label_png(tmp_path / 'grey.png'), LABELS)
    np.testing.assert_array_equal(read_label_png(tmp_path / 'palette.png'), LABELS)


def png_of(width, height, body=b''):
    """A PNG whose head promises width x height grey pixels."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(body))
        + chunk(b'IEND', b'')
    )


@pytest.mark.parametrize('width, height', [(8193, 8192), (100_000, 100_000)])
def test_pictures_too_large_are_refused_before_decoding(tmp_path, width, height):
    assert width * height > MAX_PIXELS
    path = tmp_path / 'bomb.png'
    path.write_bytes(png_of(width, height))
    tracemalloc.start()
    try:
        with pytest.raises(CaffeError, match='bomb.png: .*pixels'):
            read_label_png(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def save_packed(path):
    scipy.io.savemat(path, {'x': 'text', 'A': {'T': 1.5, 'S': np.eye(2)}}, do_compression=True)


@pytest.mark.parametrize(
    'file, write, read',
    [
        ('a.png', lambda path: Image.fromarray(LABELS).save(path), read_label_png),
        (
            'a.png',
            lambda path: Image.fromarray(np.dstack([LABELS[:3, :3]] * 3)).save(path),
            read_rgb,
        ),
        (
            'a.mat',
            lambda path: scipy.io.savemat(path, {'S': np.eye(2)}),
            lambda path: read_mat(path, 'S'),
        ),
        ('a.mat', save_packed, lambda path: read_mat(path, 'A', 'S')),
    ],
)
def test_no_changed_byte_leads_to_another_exception(tmp_path, file, write, read):
    path, refused = tmp_path / file, 0
    write(path)
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


# .mat files.


def element(kind, data, order='<'):
    return struct.pack(order + 'II', kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind, shape, name, *rest, order='<'):
    """An array as MATLAB 5 writes it; rest are its remaining elements."""
    return element(
        14,
        element(6, struct.pack(order + 'II', kind, 0), order)
        + element(5, struct.pack(f'{order}{len(shape)}i', *shape), order)
        + element(1, name, order)
        + b''.join(rest),
        order,
    )


def mat_file(*variables, order='<'):
    mark = b'\0\1IM' if order == '<' else b'\1\0MI'
    return b'MATLAB 5.0 MAT-file'.ljust(124) + mark + b''.join(variables)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('dtype', ['u1', 'i1', 'u2', 'i2', 'u4', 'i4', 'u8', 'i8', 'f4', 'f8', '?'])
def test_arrays_are_read_as_scipy_reads_them(tmp_path, dtype, packed):
    array = np.random.RandomState(1).randint(0, 100, (5, 7)).astype(dtype)
    path = tmp_path / 'a.mat'
    scipy.io.savemat(path, {'first': np.eye(4), 'S': array, 'last': 'text'}, do_compression=packed)
    np.testing.assert_array_equal(read_mat(path, 'S'), scipy.io.loadmat(path)['S'])


def test_big_endian_and_narrow_storage_are_read(tmp_path):
    path, values = tmp_path / 'a.mat', np.arange(6, dtype='>i2')
    path.write_bytes(
        mat_file(
            matrix(6, (2, 3), b'label', element(3, values.tobytes(), '>'), order='>'), order='>'
        )
    )
    np.testing.assert_array_equal(read_mat(path, 'label'), [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(scipy.io.loadmat(path)['label'], [[0, 2, 4], [1, 3, 5]])


def test_no_part_of_a_mat_file_is_taken_for_the_whole(tmp_path):
    path = tmp_path / 'a.mat'
    scipy.io.savemat(path, {'A': {'S': np.eye(2), 'T': 'x' * 20}})
    whole = path.read_bytes()
    np.testing.assert_array_equal(read_mat(path, 'A', 'S'), np.eye(2))
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(CaffeError, match='a.mat'):
            read_mat(path, 'A', 'S')


def nested(depth):
    """Cells in cells, which crash scipy.io.loadmat."""
    head = matrix(1, (1, 1), b'')[8:]
    parts = [struct.pack('<II', 14, (depth - i) * (len(head) + 8) - 8) + head for i in range(depth)]
    return b''.join(parts)


@pytest.mark.parametrize(
    'make_content, message',
    [
        (lambda: mat_file(matrix(1, (1, 1), b'S', nested(50_000))), 'real numbers expected'),
        (lambda: mat_file(nested(50_000)), 'it has no variable S'),
        (lambda: mat_file(matrix(1, (1 << 14, 1 << 16), b'S')), 'real numbers expected'),
        (lambda: mat_file(matrix(9, (1 << 16, 1 << 15), b'S', element(2, b'123'))), '3 came'),
        (
            lambda: mat_file(matrix(9, (1 << 16, 1 << 16, 0), b'S', element(2, b''))),
            'two dimensions',
        ),
        (lambda: mat_file(element(15, zlib.compress(bytes(8 * BOUND)))), 'unpacks to more than'),
        (
            lambda: mat_file(
                *[element(15, zlib.compress(matrix(9, (1, 1), b'x', bytes(BOUND // 3))))] * 4
            ),
            'element',
        ),
        (lambda: b'\x89HDF\r\n\x1a\n' + bytes(600), '7.3'),
        (lambda: mat_file(bytes(BOUND)), 'above'),
        (lambda: bytes(600), 'not a MATLAB 5 file'),
        (lambda: b'', 'not a MATLAB 5 file'),
    ],
)
def test_hostile_mat_files_are_refused_within_bounds(tmp_path, monkeypatch, make_content, message):
    monkeypatch.setattr(matfile, 'MAX_BYTES', BOUND)
    path = tmp_path / 'a.mat'
    path.write_bytes(make_content())
    tracemalloc.start()
    try:
        with pytest.raises(CaffeError, match=message):
            read_mat(path, 'S')
        assert tracemalloc.get_traced_memory()[1] < 3 * BOUND
    finally:
        tracemalloc.stop()
