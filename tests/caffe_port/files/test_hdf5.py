"""HDF5 weights and solver states: Caffe's layout, told from other files, damaged, a full disk."""

import os
import resource
import sys

import numpy as np
import pytest

from caffe_port.errors import CaffeError, WriteError
from caffe_port.files import caffemodel, hdf5
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
    (layer,) = caffemodel.read(tmp_path / 'a.h5')
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


def test_hdf5_values_are_floats_in_the_file_and_numbered_from_0(tmp_path):
    path = tmp_path / 'a.h5'
    forgeries = {
        'expected floats': lambda group: group.create_dataset('0', data=[1, 2]),
        'is missing': lambda group: group.create_dataset('1', data=[1.0]),
        'elements': lambda group: group.create_dataset('0', (1 << 31,), 'f4', chunks=(1024,)),
    }
    for words, forge in forgeries.items():
        with h5py.File(path, 'w') as file:
            forge(file.create_group('data/a'))
        refused(caffemodel.read, path, words)
    with h5py.File(path, 'w') as file:
        dataset = file.create_group('data/a').create_dataset('0', data=VALUES)
        end = dataset.id.get_offset() + VALUES.nbytes
    os.truncate(path, end - 4)
    refused(caffemodel.read, path, 'damaged')


@pytest.mark.parametrize('dtype', ['<f2', '>f4', '<f8', '>f8'])
def test_hdf5_floats_of_any_kind_become_float32(tmp_path, dtype):
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        file.create_group('data/a').create_dataset('0', data=VALUES.astype(dtype))
    np.testing.assert_array_equal(arrays_of(tmp_path / 'a.h5')['a'][0], VALUES)


@pytest.mark.parametrize('name', ['/x', 'a/', 'a//b', 'a\0b', 'a/.', './a', '.', ''])
def test_hdf5_refuses_to_write_names_that_it_loses(tmp_path, name):
    net = NetParameter(layer=[dict(name=name)])
    with pytest.raises(CaffeError, match='a.h5: not written: HDF5 can hold no layer named'):
        caffemodel.write_hdf5(tmp_path / 'a.h5', net, {name: [VALUES]})
    assert os.listdir(tmp_path) == []


def test_hdf5_refuses_a_layer_in_the_place_of_anothers_blob(tmp_path):
    net = NetParameter(layer=[dict(name='a'), dict(name='a/0')])
    with pytest.raises(CaffeError, match='a.h5: not written'):
        caffemodel.write_hdf5(tmp_path / 'a.h5', net, {'a': [VALUES], 'a/0': [VALUES]})
    assert os.listdir(tmp_path) == []


def forged(path, forge) -> None:
    """An HDF5 file with one good layer and whatever `forge` puts in beside it."""
    with h5py.File(path, 'w', libver='latest') as file:
        forge(file)
        if 'data/good/0' not in file:
            file.create_group('data/good').create_dataset('0', data=np.float32([1, 2]))


def link(place: str, to):
    def forge(file):
        file.create_group('data/good').create_dataset('0', data=np.float32([1, 2]))
        file[place] = to

    return forge


@pytest.mark.parametrize('place', ['data/a/0', 'data/a', 'data/good/1', 'diff/good/0', 'diff'])
@pytest.mark.parametrize(
    'to',
    [
        h5py.SoftLink('/nowhere'),
        h5py.SoftLink('/data/good/0'),
        h5py.ExternalLink('b.h5', '/data/good/0'),
        h5py.ExternalLink('none.h5', '/x'),
    ],
)
def test_hdf5_links_are_refused_wherever_they_lead(tmp_path, place, to):
    forged(tmp_path / 'b.h5', lambda file: None)
    forged(tmp_path / 'a.h5', link(place, to))
    refused(
        caffemodel.read, tmp_path / 'a.h5', f'/{place}: expected values, found a link to', to.path
    )


def test_hdf5_values_reached_by_two_names_belong_to_both_layers(tmp_path):
    forged(tmp_path / 'a.h5', lambda file: None)
    with h5py.File(tmp_path / 'a.h5', 'r+') as file:
        file.create_group('data/twin')['0'] = file['data/good/0']
    assert {name: list(*values) for name, values in arrays_of(tmp_path / 'a.h5').items()} == {
        'good': [1, 2],
        'twin': [1, 2],
    }


def test_hdf5_without_a_blob_is_refused_like_a_model_without_layers(tmp_path):
    for groups in (['data'], ['data/a', 'data/b']):
        with h5py.File(tmp_path / 'a.h5', 'w') as file:
            for group in groups:
                file.create_group(group)
        refused(caffemodel.read, tmp_path / 'a.h5', 'expected a .caffemodel.h5, found no blobs')


def test_hdf5_nests_loops_and_multitudes_are_refused_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, 'MAX_OBJECTS', 200)

    def many(file):
        for i in range(200):
            file.create_group(f'data/a{i}')

    def loop(file):
        group = file.create_group('data')
        group['a'] = group['b'] = group

    for forge, words in (
        (lambda file: file.create_group('data/' + 'a/' * 33), 'nested more than 32 deep'),
        (lambda file: file.create_group('data/' + 'a' * 1025), 'more than 1024 characters'),
        (many, 'more than 200 objects'),
        (loop, 'nested more than 32 deep'),
    ):
        forged(tmp_path / 'a.h5', forge)
        refused(caffemodel.read, tmp_path / 'a.h5', words)
    forged(tmp_path / 'a.h5', lambda file: file.create_group('data/' + 'a/' * 32))
    assert [layer.name for layer in caffemodel.read(tmp_path / 'a.h5')] == ['good']


def test_hdf5_is_read_as_it_was_while_its_blobs_are_held(tmp_path, monkeypatch):
    path, opened, h5file = tmp_path / 'a.h5', [], h5py.File
    net = NetParameter(layer=[dict(name='a')])
    caffemodel.write_hdf5(path, net, {'a': [VALUES, VALUES[0]]})
    monkeypatch.setattr(h5py, 'File', lambda *args: opened.append(args) or h5file(*args))
    (layer,) = caffemodel.read(path)
    monkeypatch.undo()
    caffemodel.write_hdf5(path, net, {'a': [-VALUES, -VALUES[0]]})
    path.rename(tmp_path / 'moved')
    np.testing.assert_array_equal(layer.blobs[0].array(), VALUES)
    np.testing.assert_array_equal(layer.blobs[1].array(), VALUES[0])
    assert len(opened) == 1 and len(held(tmp_path)) == 1
    del layer
    assert held(tmp_path) == []


def held(folder) -> list[str]:
    """The files in `folder` that this process has open, replaced ones among them."""
    places = [f'/proc/self/fd/{number}' for number in os.listdir('/proc/self/fd')]
    files = [os.readlink(place) for place in places if os.path.islink(place)]
    return [file for file in files if file.startswith(str(folder))]


def test_hdf5_that_is_refused_is_no_longer_locked(tmp_path):
    forged(tmp_path / 'a.h5', link('data/a', h5py.SoftLink('/nowhere')))
    with pytest.raises(CaffeError) as caught:
        hdf5.read(tmp_path / 'a.h5')
    with h5py.File(tmp_path / 'a.h5', 'r+') as file:
        del file['data/a']
    assert caught.value.args and list(arrays_of(tmp_path / 'a.h5')) == ['good']


def test_hdf5_may_exceed_2_gib(tmp_path):
    forged(tmp_path / 'a.h5', lambda file: None)
    os.truncate(tmp_path / 'a.h5', 1 << 31)
    assert list(arrays_of(tmp_path / 'a.h5')) == ['good']


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


@pytest.mark.parametrize(
    'write',
    [
        lambda path: caffemodel.write_hdf5(
            path, NetParameter(layer=[dict(name='a')]), {'a': [VALUES]}
        ),
        lambda path: caffemodel.write_state_hdf5(path, 1, '', [VALUES], 0),
    ],
)
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
    refused(caffemodel.read, path, 'needs h5py, which is not installed: pip install h5py')
    with pytest.raises(CaffeError, match='pip install h5py'):
        caffemodel.write_hdf5(path, NetParameter(), {})
