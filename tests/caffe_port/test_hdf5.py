"""HDF5 weights and solver states: Caffe's layout, told from other files, damaged, a full disk."""

import os
import resource
import sys

import numpy as np
import pytest

from caffe_port import caffemodel
from caffe_port.errors import CaffeError, WriteError
from caffe_port.proto.caffe_pb2 import NetParameter
from tests.weight_files import MODEL, VALUES, arrays_of, refused

h5py = pytest.importorskip('h5py', reason='h5py reads HDF5')


def test_hdf5_model_has_caffes_layout_and_reads_back(tmp_path):
    net, arrays, path = caffemodel.read_net(MODEL), arrays_of(MODEL), tmp_path / 'a.caffemodel.h5'
    caffemodel.write_hdf5(path, net, arrays, {'conv1': arrays['conv1']})
    with h5py.File(path) as file:
        assert set(file) == {'data', 'diff'} and set(file['data']) == set(arrays)
        assert file['data/conv1/0'].dtype == np.float32
        np.testing.assert_array_equal(file['data/conv1/1'][()], arrays['conv1'][1])
    layers = caffemodel.read(path)
    assert {layer.name for layer in layers} == {name for name in arrays if arrays[name]}
    for layer in layers:
        for blob, expected in zip(layer.blobs, arrays[layer.name], strict=True):
            np.testing.assert_array_equal(blob.array(), expected)
            assert (blob.diff is not None) == (layer.name == 'conv1')
            out = np.zeros(blob.count, np.float32)
            blob.read_into(out)
            np.testing.assert_array_equal(out, expected.reshape(-1))


def test_hdf5_keeps_names_with_slashes_and_eleven_blobs_in_order(tmp_path):
    net = NetParameter(layer=[dict(name='inception_3a/1x1'), dict(name='inception_3a/3x3')])
    arrays = {'inception_3a/1x1': [np.full(2, i) for i in range(11)]}
    caffemodel.write_hdf5(tmp_path / 'a.h5', net, arrays)
    layer, = caffemodel.read(tmp_path / 'a.h5')
    assert layer.name == 'inception_3a/1x1'
    assert [blob.array()[0] for blob in layer.blobs] == list(range(11))


def test_hdf5_state_has_caffes_layout_and_reads_back(tmp_path):
    path, history = tmp_path / 'a.solverstate.h5', [VALUES, -VALUES[0]]
    caffemodel.write_state_hdf5(path, 7, 'dir/größe.caffemodel.h5', history, 2)
    with h5py.File(path) as file:
        assert file['iter'].shape == file['current_step'].shape == (1,)
        assert file['iter'].dtype == np.int32
        kind = file['learned_net'].id.get_type()
        # Caffe reads the string into a buffer of this size, and up to its zero.
        assert kind.get_size() == len('dir/größe.caffemodel.h5'.encode()) + 1
        assert kind.get_strpad() == h5py.h5t.STR_NULLTERM
    state = caffemodel.read_state(path)
    assert state.learned_net == 'dir/größe.caffemodel.h5'
    assert (state.iter, state.current_step) == (7, 2)
    for blob, expected in zip(state.history, history, strict=True):
        np.testing.assert_array_equal(blob.array(), expected)


def test_hdf5_is_told_by_its_content_and_from_other_hdf5(tmp_path):
    model, state = tmp_path / 'a.caffemodel', tmp_path / 'a.solverstate'
    caffemodel.write_hdf5(model, NetParameter(layer=[dict(name='a')]), {'a': [VALUES]})
    caffemodel.write_state_hdf5(state, 1, '', [VALUES], 0)
    assert caffemodel.read(model)[0].blobs[0].shape == (3, 4)
    refused(caffemodel.read, state, 'a .caffemodel.h5', 'learned_net')
    refused(caffemodel.read_state, model, 'a .solverstate.h5', 'data')
    refused(caffemodel.read_net, model, 'HDF5')


def test_hdf5_values_must_be_in_the_file_and_not_beyond_its_size(tmp_path):
    path = tmp_path / 'a.h5'
    caffemodel.write_hdf5(tmp_path / 'b.h5', NetParameter(layer=[dict(name='a')]), {'a': [VALUES]})
    forgeries = {
        'expected at most': lambda group: group.create_dataset('0', (1 << 29,), 'f4'),
        'its values are in another file': lambda group: group.create_dataset(
            '0', (4,), 'f4', external=[(str(tmp_path / 'b.h5'), 0, 16)]),
        'expected floats': lambda group: group.create_dataset('0', data=[1, 2]),
        'is missing': lambda group: group.create_dataset('1', data=[1.0]),
        'elements': lambda group: group.create_dataset('0', (1 << 31,), 'f4', chunks=(1024,)),
    }
    for words, forge in forgeries.items():
        with h5py.File(path, 'w') as file:
            forge(file.create_group('data/a'))
        refused(caffemodel.read, path, words)
    with h5py.File(path, 'w') as file:
        file.create_group('data/a').create_dataset('1', data=[1.0])
        file['data/a']['0'] = h5py.ExternalLink('b.h5', '/data/a/0')
    refused(caffemodel.read, path, 'its values are in another file')


def test_damaged_hdf5_is_refused(tmp_path):
    path = tmp_path / 'a.h5'
    caffemodel.write_hdf5(path, NetParameter(layer=[dict(name='a')]), {'a': [VALUES]})
    data = path.read_bytes()
    for size in (8, 100, len(data) // 2):
        path.write_bytes(data[:size])
        refused(caffemodel.read, path, 'damaged')


def test_two_layers_of_one_name_do_not_fit_into_hdf5(tmp_path):
    net = NetParameter(layer=[dict(name='a'), dict(name='a')])
    with pytest.raises(CaffeError, match='two layers named "a"'):
        caffemodel.write_hdf5(tmp_path / 'a.h5', net, {'a': [VALUES]})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('write', [
    lambda path: caffemodel.write_hdf5(path, NetParameter(layer=[dict(name='a')]),
                                       {'a': [VALUES]}),
    lambda path: caffemodel.write_state_hdf5(path, 1, '', [VALUES], 0)])
def test_a_full_disk_leaves_what_was_there_and_the_process_alive(tmp_path, write):
    path, limits = tmp_path / 'a.h5', resource.getrlimit(resource.RLIMIT_FSIZE)
    write(path)
    before = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(WriteError, match='a.h5: not written'):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['a.h5']


def test_without_h5py_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'h5py', None)
    path = tmp_path / 'a.caffemodel.h5'
    path.write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(100))
    refused(caffemodel.read, path, 'need h5py, which is not installed: pip install h5py')
    with pytest.raises(CaffeError, match='pip install h5py'):
        caffemodel.write_hdf5(path, NetParameter(), {})
