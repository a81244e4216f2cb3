"""Reading labels from .mat files, and recoding stored numbers to classes."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from caffe_port.errors import CaffeError
from solve.datasets.labels import read_mat, recode, void_first


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('dtype', ['u1', 'i1', 'u2', 'i2', 'u4', 'i4', 'f4', 'f8', '?'])
def test_what_was_saved_is_read(tmp_path, dtype, packed):
    array = np.random.RandomState(1).randint(0, 100, (5, 7)).astype(dtype)
    path, content = tmp_path / 'a.mat', {'first': 'text', 'S': array, 'A': {'B': 'x', 'C': array}}
    scipy.io.savemat(path, content, do_compression=packed)
    for found in read_mat(path, 'S'), read_mat(path, 'A', 'C'):
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize('packed', [False, True])
def test_no_part_of_a_mat_file_is_taken_for_the_whole(tmp_path, packed):
    path = tmp_path / 'a.mat'
    scipy.io.savemat(path, {'A': {'S': np.eye(2), 'T': 'x' * 20}}, do_compression=packed)
    whole, read = path.read_bytes(), []
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            np.testing.assert_array_equal(read_mat(path, 'A', 'S'), np.eye(2))
            read.append(end)
        except CaffeError as error:
            assert str(error).startswith(f'{path}: .mat file ')
    # All values are there if only the padding of the last element is missing.
    assert read in ([], [*range(len(whole) - 4, len(whole))])


def test_a_file_of_version_7_3_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / 'a.mat'
    with h5py.File(path, 'w', userblock_size=512) as file:
        file['S'] = np.eye(2)
    whole = path.read_bytes()
    path.write_bytes(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\0\2IM' + whole[128:])
    with pytest.raises(CaffeError, match=f'{path}: .* 7.3 .HDF5., 7 expected: save it with -v7'):
        read_mat(path, 'S')


def labelled(value):
    return {'GTcls': {'Segmentation': value}}


STRUCT = 'GTcls must be a struct with a field Segmentation, is a ndarray of '
NUMBERS = 'GTcls.Segmentation must be an H x W array of real numbers, is a '


@pytest.mark.parametrize(
    'content, message',
    [
        ({'other': np.eye(3), 'more': 1}, 'has no variable GTcls, only other, more'),
        ({}, 'has no variable GTcls, only none'),
        ({'GTcls': np.eye(3)}, STRUCT + '3 x 3 float64'),
        ({'GTcls': scipy.sparse.csc_matrix(np.eye(3))}, 'must be a struct'),
        ({'GTcls': {'Present': np.eye(3)}}, STRUCT + "1 x 1 [('Present', 'O')]"),
        ({'GTcls': np.zeros((1, 2), [('Segmentation', 'O')])}, STRUCT + '1 x 2'),
        (labelled('abc'), NUMBERS + 'ndarray of 1 <U3'),
        (labelled(np.ones((6, 9)) * 1j), NUMBERS + 'ndarray of 6 x 9 complex128'),
        (labelled(np.zeros((6, 9, 2))), NUMBERS + 'ndarray of 6 x 9 x 2 float64'),
        (labelled(scipy.sparse.csc_matrix(np.eye(3))), NUMBERS + 'c'),
        (labelled(np.array([['a', 1]], object)), NUMBERS + 'ndarray of 1 x 2 object'),
    ],
)
def test_a_file_without_labels_is_refused(tmp_path, content, message):
    path = tmp_path / 'a.mat'
    scipy.io.savemat(path, content)
    with pytest.raises(CaffeError) as error:
        read_mat(path, 'GTcls', 'Segmentation')
    assert str(error.value).startswith(f'{path}: .mat file')
    assert message in str(error.value)


# Recoding.


@pytest.mark.parametrize('dtype', ['u1', 'i1', 'u2', 'i2', 'i4', 'u8', 'f4', 'f8'])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_every_number_becomes_what_the_table_says(dtype, order):
    table = {5: 1, 0: 255, 100: 0, 7: 59}
    labels = np.random.RandomState(1).choice([0, 5, 7, 100], (40, 30)).astype(dtype, order)
    found = recode(labels, table, Path('a.mat'), '')
    assert found.dtype == np.uint8 and found.shape == labels.shape
    assert all(found[at] == table[int(number)] for at, number in np.ndenumerate(labels))


def test_labels_stored_from_one_lose_one_and_zero_is_void():
    stored = np.arange(41, dtype=np.uint8)
    # What the release does: uint8 arithmetic, which wraps around.
    expected = stored - np.uint8(1)
    assert [void_first(40)[number] for number in stored.tolist()] == expected.tolist()
    assert set(void_first(40)) == set(range(41))


@pytest.mark.parametrize('value', [-1, 2, 3, 1.5, np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize('y, x', [(0, 0), (1, 3), (699, 499), (524, 144)])
def test_the_first_number_that_is_not_in_the_table_is_named(y, x, value):
    labels = np.ones((700, 500))
    labels[y, x] = labels[699, 499] = value
    with pytest.raises(CaffeError) as error:
        recode(labels, {0: 255, 1: 0, 4: 1}, Path('there/a.mat'), '0, 1 or 4')
    assert str(error.value) == (
        f'there/a.mat: image a has label {float(value)} at row {y}, column {x}; 0, 1 or 4 expected'
    )
