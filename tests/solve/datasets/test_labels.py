"""Recoding stored numbers to classes: by the table, to the pixel, in bounded memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from caffe_port.errors import CaffeError
from solve.datasets.labels import recoded, void_first


@pytest.mark.parametrize('dtype', ['u1', 'i1', 'u2', 'i2', 'i4', 'u8', 'f4', 'f8'])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_every_number_becomes_what_the_table_says(dtype, order):
    table = {5: 1, 0: 255, 100: 0, 7: 59}
    labels = np.random.RandomState(1).choice([0, 5, 7, 100], (40, 30)).astype(dtype, order)
    found = recoded(labels, table, Path('a.mat'), '')
    assert found.dtype == np.uint8 and found.shape == labels.shape
    assert all(found[at] == table[int(number)] for at, number in np.ndenumerate(labels))


def test_labels_stored_from_one_lose_one_and_zero_is_void():
    stored = np.arange(41, dtype=np.uint8)
    # What the release does: uint8 arithmetic, which comes round.
    expected = stored - np.uint8(1)
    assert [void_first(40)[number] for number in stored.tolist()] == expected.tolist()
    assert set(void_first(40)) == set(range(41))


@pytest.mark.parametrize('value', [-1, 2, 3, 1.5, np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize('y, x', [(0, 0), (1, 3), (699, 499), (524, 144), (524, 143)])
def test_the_first_number_that_is_not_in_the_table_is_named(y, x, value):
    labels = np.ones((700, 500))
    labels[y, x] = labels[699, 499] = value
    with pytest.raises(CaffeError) as error:
        recoded(labels, {0: 255, 1: 0, 4: 1}, Path('there/a.mat'), '0, 1 or 4')
    assert str(error.value) == (
        f'there/a.mat: image a has label {float(value)} at row {y}, column {x}; 0, 1 or 4 expected'
    )


def test_memory_stays_within_a_few_times_the_labels():
    labels = np.zeros((4096, 2048), np.uint8)
    tracemalloc.start()
    try:
        recoded(labels, {0: 255}, Path('a.mat'), '')
        assert tracemalloc.get_traced_memory()[1] < 3 * labels.size
    finally:
        tracemalloc.stop()
