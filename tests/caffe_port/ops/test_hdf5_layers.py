"""HDF5Data and HDF5Output on drawn files."""

import json
import sys

import h5py
import numpy as np
import pytest

import caffe_port as caffe
from caffe_port import parallel
from tests.formulas import RANDOM
from tests.vectors import net_of

ROWS = 5, 4  # of the two files
DATA = RANDOM(0).randn(sum(ROWS), 2, 3).astype(np.float32)
LABELS = np.arange(sum(ROWS))


@pytest.fixture
def listing(tmp_path):
    return make(tmp_path, ROWS)


def make(folder, rows):
    names, begin = [], 0
    for i, count in enumerate(rows):
        names.append(str(folder / f'{i}.h5'))
        with h5py.File(names[-1], 'w') as file:
            file['data'] = DATA[begin : begin + count]
            file.create_dataset('label', data=LABELS[begin : begin + count], compression='gzip')
            file['other'] = np.zeros(3)
        begin += count
    (folder / 'list.txt').write_text('\n'.join(names))
    return folder / 'list.txt'


def hdf5_net(
    listing, settings='batch_size: 3', phase=caffe.TRAIN, extra='', tops=('data', 'label')
):
    return net_of(
        f'layer {{ name: "h" type: "HDF5Data" {" ".join(f"top: {json.dumps(t)}" for t in tops)} '
        f'hdf5_data_param {{ source: "{listing}" {settings} }} {extra} }}',
        phase,
    )


def fed(net, count):
    """The labels of so many batches; their rows of data are held against them."""
    found = []
    for _ in range(count):
        out = net.forward()
        found += out['label'].astype(int).tolist()
        assert np.array_equal(out['data'], DATA[out['label'].astype(int)])
    return found


def test_rows_come_file_by_file_in_batches_that_may_span_them(listing):
    net = hdf5_net(listing)
    assert net.blobs['data'].shape == (3, 2, 3) and net.blobs['label'].shape == (3,)
    assert fed(net, 7) == [i % 9 for i in range(21)]


def test_one_file_comes_over_and_over(tmp_path):
    assert fed(hdf5_net(make(tmp_path, (4,))), 4) == [i % 4 for i in range(12)]


def test_shuffle_draws_files_and_rows_anew_for_each_pass(listing):
    order = fed(hdf5_net(listing, 'batch_size: 9 shuffle: true'), 40)
    passes = [order[i : i + 9] for i in range(0, len(order), 9)]
    assert all(sorted(one) == list(range(9)) for one in passes)
    assert len({tuple(one) for one in passes}) > 30
    # Files stay whole, and either comes first.
    assert {tuple(sorted(one[:5])) == (0, 1, 2, 3, 4) for one in passes} == {True, False}
    assert order == fed(hdf5_net(listing, 'batch_size: 9 shuffle: true'), 40)


def test_one_shuffled_file_has_another_order_for_each_pass(tmp_path):
    order = fed(hdf5_net(make(tmp_path, (5,)), 'batch_size: 5 shuffle: true'), 20)
    passes = {tuple(order[i : i + 5]) for i in range(0, 100, 5)}
    assert all(sorted(one) == list(range(5)) for one in passes) and len(passes) > 10


def test_of_many_ranks_each_takes_every_nth_row(listing, monkeypatch):
    monkeypatch.setattr(parallel, '_count', 2)
    for rank in (0, 1):
        monkeypatch.setattr(parallel, '_rank', rank)
        assert fed(hdf5_net(listing), 4) == [(2 * i + rank) % 9 for i in range(12)]
        assert fed(hdf5_net(listing, phase=caffe.TEST), 1) == [0, 1, 2]


@pytest.mark.parametrize('shuffle', ['', 'shuffle: true'])
@pytest.mark.parametrize('before', [0, 1, 4, 11])
def test_a_state_is_that_of_the_next_batch(listing, shuffle, before):
    settings = f'batch_size: 2 {shuffle}'
    net = hdf5_net(listing, settings)
    fed(net, before)
    state = json.loads(json.dumps(net.module.h.state()))
    expected = fed(net, 12)
    other = hdf5_net(listing, settings)
    fed(other, 3)
    for _ in range(2):
        other.module.h.set_state(state)
        assert fed(other, 12) == expected


def test_a_state_of_other_files_is_refused_and_changes_nothing(listing):
    net = hdf5_net(listing)
    net.forward()
    good = net.module.h.state()
    for bad in ({}, None, {**good, 'files': 3}, {**good, 'file': 2}, {**good, 'row': 99}):
        with pytest.raises(caffe.CaffeError, match='^state of h: does not fit'):
            net.module.h.set_state(bad)
        assert net.module.h.state() == good
    assert fed(net, 2) == [3, 4, 5, 6, 7, 8]


def broken(change):
    def apply(folder):
        with h5py.File(folder / '1.h5', 'r+') as file:
            change(file)

    return apply


def replace(name, values):
    def change(file):
        del file[name]
        file[name] = values

    return broken(change)


@pytest.mark.parametrize(
    'change, message',
    [
        (broken(lambda file: file.pop('label')), '"label", found data, other'),
        (replace('label', np.zeros(3)), '"label": expected 4 rows as "data" has, found 3'),
        (replace('data', np.zeros((4, 2, 2))), '"data": expected rows of 2 x 3, found 2 x 2'),
        (
            replace('data', np.float32(1)),
            '"data": expected rows of numbers, found float32 of shape s',
        ),
        (replace('data', np.array([b'x'] * 4)), r'"data": expected rows of numbers, found \|S1'),
        (lambda folder: (folder / '1.h5').write_bytes(b'none'), 'not read as an HDF5 file'),
        (lambda folder: (folder / '1.h5').unlink(), 'not read as an HDF5 file'),
    ],
)
def test_a_file_that_does_not_fit_is_named(listing, tmp_path, change, message):
    change(tmp_path)
    net = hdf5_net(listing)
    assert fed(net, 1) == [0, 1, 2]
    with pytest.raises(caffe.CaffeError, match=rf'^h \(HDF5Data\): {tmp_path}/1.h5: .*{message}'):
        net.forward()


@pytest.mark.parametrize(
    'settings, extra, message',
    [
        ('', '', 'batch_size must be positive'),
        ('batch_size: 1', 'transform_param { scale: 2 }', 'takes no transform_param'),
    ],
)
def test_settings_that_caffe_refuses_are_refused(listing, settings, extra, message):
    with pytest.raises(caffe.CaffeError, match=message):
        hdf5_net(listing, settings, extra=extra)


def test_a_list_without_files_or_that_is_missing_is_named(tmp_path):
    (tmp_path / 'empty.txt').write_text('\n')
    for name, message in (('empty.txt', 'expected file names'), ('none.txt', 'not read as a list')):
        with pytest.raises(caffe.CaffeError, match=f'{tmp_path}/{name}: {message}'):
            hdf5_net(tmp_path / name)


def test_a_missing_top_is_named_at_once(listing, tmp_path):
    with pytest.raises(
        caffe.CaffeError,
        match=rf'^h \(HDF5Data\): {tmp_path}/0.h5: expected a dataset "image", found data, label',
    ):
        hdf5_net(listing, tops=('image',))


# HDF5Output.


def output_net(path, data=(3, 2), label=(3,)):
    shapes = ' '.join(
        'shape { ' + ' '.join(f'dim: {dim}' for dim in shape) + ' }' for shape in (data, label)
    )
    return net_of(
        f'layer {{ name: "in" type: "Input" top: "x" top: "y" input_param {{ {shapes} }} }} '
        f'layer {{ name: "out" type: "HDF5Output" bottom: "x" bottom: "y" hdf5_output_param {{ '
        f'file_name: "{path}" }} }}'
    )


def test_output_writes_data_and_label_with_four_axes_and_adds_rows(tmp_path):
    path = tmp_path / 'out.h5'
    path.write_text('stale')
    net = output_net(path)
    assert path.read_text() == 'stale', 'nothing is written before a forward'
    for times in (1, 2, 3):
        net.forward(x=times + DATA[:3, :, 0], y=times * LABELS[:3])
        with h5py.File(path) as file:
            assert sorted(file) == ['data', 'label']
            assert file['data'].shape == (3 * times, 2, 1, 1) and file['data'].dtype == np.float32
            assert np.array_equal(file['data'][-3:, :, 0, 0], times + DATA[:3, :, 0])
            assert file['label'][:, 0, 0, 0].tolist() == [
                t * i for t in range(1, times + 1) for i in range(3)
            ]


def test_what_output_writes_data_reads(tmp_path):
    net = output_net(tmp_path / 'out.h5', (3, 2, 3), (3,))
    net.forward(x=DATA[:3], y=LABELS[:3])
    (tmp_path / 'list.txt').write_text(f'{tmp_path}/out.h5')
    out = hdf5_net(tmp_path / 'list.txt').forward()
    assert np.array_equal(out['data'][..., 0], DATA[:3]) and out['label'].shape == (3, 1, 1, 1)


def test_only_rank_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, '_rank', 1)
    output_net(tmp_path / 'out.h5').forward()
    assert not (tmp_path / 'out.h5').exists()


def test_output_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(caffe.CaffeError, match=r'^out \(HDF5Output\): .* must have as many rows'):
        output_net(tmp_path / 'out.h5', (3, 2), (2,))
    with pytest.raises(caffe.CaffeError, match='at most 4 axes'):
        output_net(tmp_path / 'out.h5', (3, 2, 1, 1, 1), (3,))
    with pytest.raises(caffe.CaffeError, match='file_name is not given'):
        output_net('')
    with pytest.raises(caffe.CaffeError, match='no/out.h5: not written'):
        output_net(tmp_path / 'no' / 'out.h5').forward()


def test_both_need_h5py(listing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(caffe.CaffeError, match='0.h5: HDF5 files need h5py: pip install h5py'):
        hdf5_net(listing)
    with pytest.raises(caffe.CaffeError, match='out.h5: HDF5 files need h5py'):
        output_net(tmp_path / 'out.h5').forward()
