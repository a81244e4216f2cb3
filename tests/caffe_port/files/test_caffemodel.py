"""Weight files against Caffe's own, against protobuf's parser, and against damage."""

import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given

from caffe_port import prototxt
from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel, wire
from caffe_port.proto.caffe_pb2 import BlobProto, BlobShape, NetParameter, SolverState
from tests.examples import examples
from tests.mutations import damaged
from tests.vectors import load
from tests.weight_files import (
    FORMATS,
    MEAN,
    MODEL,
    SOLVER,
    STATE,
    V1,
    V1_UPGRADED,
    VALUES,
    arrays_of,
    refused,
)


def one_blob(tmp_path, blob: bytes | BlobProto, name: str = 'conv'):
    """Read a .caffemodel whose one layer has one blob, given as a message or its bytes."""
    data = blob if isinstance(blob, bytes) else blob.SerializeToString()
    layer = NetParameter(layer=[dict(name=name)]).layer[0].SerializeToString()
    path = tmp_path / 'one.caffemodel'
    layer += wire.encode_header(7, len(data)) + data
    path.write_bytes(wire.encode_header(100, len(layer)) + layer)
    return caffemodel.read(path)[0].blobs[0]


# Reading.


def test_v1_file_equals_the_one_caffe_upgraded_it_to():
    old, new = caffemodel.read(V1), caffemodel.read(V1_UPGRADED)
    # The upgraded net has its inputs in a layer.
    assert [(layer.name, layer.type) for layer in old] == [
        (layer.name, layer.type) for layer in new if layer.type != 'Input'
    ]
    recorded = load('formats/legacy_v1.npz')
    for layer in old:
        twin = next(each for each in new if each.name == layer.name)
        assert len(layer.blobs) == len(twin.blobs)
        for i, (a, b) in enumerate(zip(layer.blobs, twin.blobs)):
            expected = recorded[f'param:{layer.name}:{i}']
            assert len(a.shape) == 4 and b.shape == expected.shape
            np.testing.assert_array_equal(a.array().reshape(b.shape), expected)
            np.testing.assert_array_equal(b.array(), expected)


def test_v1_net_is_upgraded_as_caffe_did():
    expected = caffemodel.read_net(V1_UPGRADED)
    for layer in expected.layer:
        layer.ClearField('phase')
    assert caffemodel.read_net(V1) == expected


@pytest.mark.parametrize('iteration', [4, 8])
def test_snapshot_holds_the_parameters_of_its_iteration(iteration):
    recorded = load('solver/snapshot.npz')
    found = arrays_of(SOLVER / f'snapshot_iter_{iteration}.caffemodel')
    for key in (key for key in recorded if key.startswith(f'iter{iteration}:')):
        _, layer, i = key.split(':')
        np.testing.assert_array_equal(found[layer][int(i)], recorded[key])


@pytest.mark.parametrize('path', [V1_UPGRADED, MODEL])
def test_net_without_blobs_is_what_protobuf_reads_less_blobs(path):
    net = NetParameter.FromString(path.read_bytes())
    for layer in net.layer:
        layer.ClearField('blobs')
    assert caffemodel.read_net(path) == net


@pytest.mark.parametrize('number', [4, 8])
def test_solver_state_is_what_protobuf_reads(number):
    path = SOLVER / f'snapshot_iter_{number}.solverstate'
    expected = SolverState.FromString(path.read_bytes())
    found = caffemodel.read_state(path)
    assert (found.iter, found.learned_net, found.current_step) == (
        number,
        f'snapshot_iter_{number}.caffemodel',
        expected.current_step,
    )
    assert len(found.history) == len(expected.history) == 7
    for blob, proto in zip(found.history, expected.history):
        assert blob.shape == tuple(proto.shape.dim)
        np.testing.assert_array_equal(blob.array().reshape(-1), np.float32(proto.data))


def test_mean_is_what_protobuf_reads():
    expected = BlobProto.FromString(MEAN.read_bytes())
    found = caffemodel.read_blob(MEAN)
    assert found.shape == (1, 3, 4, 5) and found.dtype == np.float32
    np.testing.assert_array_equal(found.reshape(-1), np.float32(expected.data))


def test_v0_layers_have_their_blobs_and_todays_types(tmp_path):
    net = NetParameter(name='v0')
    for name, kind in (('conv1', 'conv'), ('fc', 'innerproduct')):
        old = net.layers.add(bottom=['data'], top=['data']).layer
        old.name, old.type = name, kind
        old.blobs.add(num=1, channels=1, height=3, width=4, data=VALUES.reshape(-1))
    path = tmp_path / 'v0.caffemodel'
    path.write_bytes(net.SerializeToString())
    layers = caffemodel.read(path)
    assert [(each.name, each.type) for each in layers] == [
        ('conv1', 'Convolution'),
        ('fc', 'InnerProduct'),
    ]
    for layer in layers:
        assert layer.blobs[0].shape == (1, 1, 3, 4)
        np.testing.assert_array_equal(layer.blobs[0].array().reshape(3, 4), VALUES)


def test_layers_of_one_name_are_all_kept(tmp_path):
    net = NetParameter()
    for value in (1, 2):
        net.layer.add(name='twin').blobs.add(data=[value], shape=BlobShape(dim=[1]))
    (tmp_path / 'a').write_bytes(net.SerializeToString())
    assert [layer.blobs[0].array()[0] for layer in caffemodel.read(tmp_path / 'a')] == [1, 2]


SHAPE = BlobProto(shape=BlobShape(dim=VALUES.shape)).SerializeToString()
FLAT = VALUES.reshape(-1)


def tagged(tag: int, values: np.ndarray) -> bytes:
    return b''.join(bytes([tag]) + value.tobytes() for value in values)


@pytest.mark.parametrize(
    'data',
    [
        BlobProto(data=FLAT).SerializeToString(),
        BlobProto(data=FLAT[:5]).SerializeToString() + BlobProto(data=FLAT[5:]).SerializeToString(),
        tagged(0x2D, FLAT),
        tagged(0x2D, FLAT[:5])
        + BlobProto(data=FLAT[5:9]).SerializeToString()
        + tagged(0x2D, FLAT[9:]),
        BlobProto(double_data=FLAT).SerializeToString(),
        tagged(0x41, FLAT.astype(np.float64)),
        BlobProto(double_data=FLAT, data=[9] * 12).SerializeToString(),
    ],
    ids=['packed', 'split', 'unpacked', 'mixed', 'double', 'double unpacked', 'both'],
)
@pytest.mark.parametrize('shape_first', [True, False])
def test_values_are_found_however_they_are_encoded(tmp_path, data, shape_first):
    blob = one_blob(tmp_path, SHAPE + data if shape_first else data + SHAPE)
    assert blob.shape == VALUES.shape and blob.diff is None
    found = blob.array()
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, VALUES)
    np.testing.assert_array_equal(
        BlobProto.FromString(data).double_data or BlobProto.FromString(data).data, FLAT
    )


def test_blobs_without_values_are_read(tmp_path):
    assert one_blob(tmp_path, BlobProto(shape=BlobShape(dim=[0, 4]))).array().shape == (0, 4)
    # Protobuf leaves an empty list out; others may write it.
    empty = BlobProto(shape=BlobShape(dim=[0])).SerializeToString() + b'\x2a\x00'
    assert one_blob(tmp_path, empty).array().shape == (0,)


def test_long_unpacked_runs_are_read_whole(tmp_path):
    values = np.arange(600_000, dtype=np.float32)
    raw = np.empty((values.size, 5), np.uint8)
    raw[:, 0], raw[:, 1:] = 0x2D, values.view(np.uint8).reshape(-1, 4)
    shape = BlobProto(shape=BlobShape(dim=[values.size])).SerializeToString()
    np.testing.assert_array_equal(one_blob(tmp_path, raw.tobytes() + shape).array(), values)


def test_diffs_are_read_with_the_shape_of_their_blob(tmp_path):
    blob = one_blob(tmp_path, SHAPE + BlobProto(data=FLAT, diff=-FLAT).SerializeToString())
    np.testing.assert_array_equal(blob.diff.array(), -VALUES)


def test_old_dims_go_before_shape_as_in_caffe(tmp_path):
    both = BlobProto(num=12, channels=1, height=1, width=1).SerializeToString()
    blob = one_blob(tmp_path, SHAPE + BlobProto(data=FLAT).SerializeToString() + both)
    assert blob.shape == (12, 1, 1, 1)


def test_read_into_fills_an_array_of_any_shape_of_the_count(tmp_path):
    blob = one_blob(tmp_path, SHAPE + BlobProto(data=FLAT).SerializeToString())
    out = np.zeros((2, 6), np.float32)
    blob.read_into(out)
    np.testing.assert_array_equal(out.reshape(3, 4), VALUES)
    read_only = np.zeros(12, np.float32)
    read_only.flags.writeable = False
    for bad in (
        np.zeros(11, np.float32),
        np.zeros(12),
        np.zeros((12, 2), np.float32)[:, 0],
        read_only,
    ):
        with pytest.raises(CaffeError, match='conv: blob 0: expected'):
            blob.read_into(bad)


def test_blobs_outlive_the_replacement_of_their_file_but_not_its_truncation(tmp_path):
    blob = one_blob(tmp_path, SHAPE + BlobProto(data=FLAT).SerializeToString())
    path = tmp_path / 'one.caffemodel'
    path.rename(tmp_path / 'moved')
    path.write_bytes(b'other')
    np.testing.assert_array_equal(blob.array(), VALUES)
    os.truncate(tmp_path / 'moved', 40)
    with pytest.raises(CaffeError, match='truncated'):
        blob.array()


def test_reading_takes_no_memory_beside_the_arrays_read_into(tmp_path):
    values = [np.full(1_000_000, i, np.float32) for i in range(3)]
    path = tmp_path / 'large.caffemodel'
    caffemodel.write(path, NetParameter(layer=[dict(name='a')]), {'a': values})
    out = [np.zeros_like(array) for array in values]
    tracemalloc.start()
    try:
        for blob, array in zip(caffemodel.read(path)[0].blobs, out, strict=True):
            blob.read_into(array)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < 200_000
    np.testing.assert_array_equal(out, values)


# Writing.


@pytest.mark.parametrize('path', [V1_UPGRADED, MODEL])
def test_model_written_again_is_caffes_own_file_byte_for_byte(tmp_path, path):
    out = tmp_path / 'out.caffemodel'
    caffemodel.write(out, caffemodel.read_net(path), arrays_of(path))
    assert out.read_bytes() == path.read_bytes()


def test_state_written_again_is_caffes_own_file_byte_for_byte(tmp_path):
    state, out = caffemodel.read_state(STATE), tmp_path / 'out.solverstate'
    caffemodel.write_state(
        out,
        state.iter,
        state.learned_net,
        [blob.array() for blob in state.history],
        state.current_step,
    )
    assert out.read_bytes() == STATE.read_bytes()


def test_model_with_diffs_is_what_protobuf_writes(tmp_path):
    net = NetParameter(
        name='n',
        layer=[
            dict(name='a', type='T', bottom=['x'], phase=1),
            dict(name='b', blobs=[dict(data=[3])]),
        ],
    )
    values = {'a': [VALUES, np.float64(VALUES[0]), np.zeros((0, 4)), np.array(7)]}
    diffs = {'a': [2 * array for array in values['a']]}
    caffemodel.write(tmp_path / 'a', net, values, diffs)
    for array, diff in zip(values['a'], diffs['a']):
        blob = net.layer[0].blobs.add(data=array.reshape(-1), diff=diff.reshape(-1))
        if array.ndim:
            blob.shape.dim.extend(array.shape)
    assert (tmp_path / 'a').read_bytes() == net.SerializeToString()


def test_arrays_that_are_not_contiguous_are_written_in_c_order(tmp_path):
    caffemodel.write(tmp_path / 'a', NetParameter(layer=[dict(name='a')]), {'a': [VALUES.T]})
    np.testing.assert_array_equal(arrays_of(tmp_path / 'a')['a'][0], VALUES.T)


def test_blob_written_is_read_by_protobuf_and_by_us(tmp_path):
    caffemodel.write_blob(tmp_path / 'mean', VALUES)
    proto = BlobProto.FromString((tmp_path / 'mean').read_bytes())
    assert tuple(proto.shape.dim) == (3, 4) and list(proto.data) == list(FLAT)
    np.testing.assert_array_equal(caffemodel.read_blob(tmp_path / 'mean'), VALUES)


def test_more_than_protobuf_can_read_is_refused_before_anything_is_written(tmp_path):
    # 2.4 GB for a writer, 4 bytes in memory.
    huge = np.broadcast_to(np.float32(0), (30_000, 20_000))
    with pytest.raises(CaffeError, match='2400000.* bytes.*protobuf.*HDF5'):
        caffemodel.write(tmp_path / 'a', NetParameter(layer=[dict(name='a')]), {'a': [huge]})
    with pytest.raises(CaffeError, match='protobuf.*HDF5'):
        caffemodel.write_state(tmp_path / 'a', 1, '', [huge], 0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    'blobs, diffs, words',
    [
        ({'b': [VALUES]}, None, 'no layer "b"'),
        ({'a': [VALUES]}, {'a': [VALUES.T]}, 'expected diffs of shapes'),
        ({'a': [np.array(['x'])]}, None, 'a: blob 0: expected numbers'),
    ],
)
@pytest.mark.parametrize('write', [caffemodel.write, caffemodel.write_hdf5])
def test_arrays_that_do_not_fit_the_net_are_refused(tmp_path, write, blobs, diffs, words):
    if write is caffemodel.write_hdf5:
        pytest.importorskip('h5py', reason='h5py reads HDF5')
    (tmp_path / 'a').write_bytes(b'old')
    with pytest.raises(CaffeError, match=words):
        write(tmp_path / 'a', NetParameter(layer=[dict(name='a')]), blobs, diffs)
    assert os.listdir(tmp_path) == ['a'] and (tmp_path / 'a').read_bytes() == b'old'


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(CaffeError, match='none/a.caffemodel'):
        caffemodel.write(tmp_path / 'none' / 'a.caffemodel', NetParameter(), {})


# Refusals.

READS = [caffemodel.read, caffemodel.read_net, caffemodel.read_state, caffemodel.read_blob]
READERS = {
    'a .caffemodel': caffemodel.read,
    'a .solverstate': caffemodel.read_state,
    'a .binaryproto': caffemodel.read_blob,
    'text': None,
}


@pytest.mark.parametrize(
    'path, kind',
    [
        (V1, 'a .caffemodel'),
        (V1_UPGRADED, 'a .caffemodel'),
        (MODEL, 'a .caffemodel'),
        (STATE, 'a .solverstate'),
        (MEAN, 'a .binaryproto'),
        (FORMATS / 'legacy_v1.prototxt', 'text'),
    ],
    ids=lambda value: getattr(value, 'name', value),
)
def test_a_file_of_another_kind_is_named_for_what_it_is(path, kind):
    for due, read in READERS.items():
        if read and due != kind:
            refused(read, path, f'expected {due}', kind)


@pytest.mark.parametrize('read', READS)
@pytest.mark.parametrize(
    'data, words',
    [
        (b'', 'empty'),
        (b'\xff\xd8\xff\xe0\0\x10JFIF' + bytes(99), 'a JPEG image'),
        (b'\x89PNG\r\n\x1a\n' + bytes(99), 'a PNG image'),
        (b'PK\x03\x04' + bytes(99), 'a zip archive'),
        (bytes(1000), 'not a protobuf message'),
        ('größe: 1\n'.encode() * 900, 'found text'),
    ],
    ids=lambda value: str(value)[:12],
)
def test_other_bytes_are_refused_and_named(tmp_path, read, data, words):
    (tmp_path / 'x').write_bytes(data)
    refused(read, tmp_path / 'x', words)


def test_missing_files_and_folders_are_named(tmp_path):
    refused(caffemodel.read, tmp_path / 'none', 'No such file')
    refused(caffemodel.read, tmp_path, 'a directory')


@pytest.mark.parametrize('path', [V1, MODEL, STATE, MEAN], ids=lambda path: path.name)
def test_every_truncation_is_noticed_or_leaves_whole_layers(tmp_path, path):
    data = path.read_bytes()
    read = {
        '.caffemodel': caffemodel.read,
        '.solverstate': caffemodel.read_state,
        '.binaryproto': caffemodel.read_blob,
    }[path.suffix]
    whole = 0
    for size in range(1, len(data), 17):
        (tmp_path / 'x').write_bytes(data[:size])
        try:
            read(tmp_path / 'x')
        except CaffeError as error:
            assert str(tmp_path / 'x') in str(error)
        else:
            whole += 1
    # A cut between two fields of a message can't be told from an end.
    assert whole < 6


@pytest.mark.parametrize(
    'dims, count, found', [([3, 5], 15, 12), ([], 1, 12), ([2], 2, 12), ([0], 0, 12)]
)
def test_count_that_differs_from_the_shape_is_refused(tmp_path, dims, count, found):
    with pytest.raises(
        CaffeError,
        match=rf'one.caffemodel: conv: blob 0: expected {count} values '
        rf'for shape .*, found {found}',
    ):
        one_blob(tmp_path, BlobProto(data=FLAT, shape=BlobShape(dim=dims)))


@pytest.mark.parametrize(
    'shape',
    [
        dict(shape=dict(dim=[-1, 12])),
        dict(shape=dict(dim=[-1, -12])),
        dict(num=-1),
        dict(shape=dict(dim=[1 << 40, 1 << 40])),
        dict(shape=dict(dim=[1 << 31])),
        dict(shape=dict(dim=[1] * 33)),
        dict(shape=dict(dim=[1] * 100_000)),
    ],
    ids=lambda shape: str(shape)[:40],
)
def test_impossible_shapes_are_refused_before_memory_is_taken(tmp_path, shape):
    with pytest.raises(CaffeError, match='one.caffemodel: conv: blob 0: '):
        one_blob(tmp_path, BlobProto(data=FLAT, **shape))


def test_empty_blobs_have_possible_shapes_too(tmp_path):
    with pytest.raises(CaffeError, match='one.caffemodel: conv: blob 0: shape'):
        one_blob(tmp_path, BlobProto(shape=BlobShape(dim=[0, 1 << 40])))


def test_declared_shape_alone_takes_no_memory(tmp_path):
    with pytest.raises(CaffeError, match='expected 2147483647 values .* found 1'):
        one_blob(tmp_path, BlobProto(data=[1], shape=BlobShape(dim=[(1 << 31) - 1])))


@pytest.mark.parametrize(
    'blob, words',
    [
        (b'\x2a\x03abc', 'not a multiple of 4'),
        (b'\x2a\x7f', 'needs 127 bytes'),
        (b'\x2a\x04abc', 'needs 4 bytes, 3 are left'),
        (b'\x28\x01', 'BlobProto.data .* expected wire type 5, found 0'),
        (b'\x2b', 'wire type 3'),
        (b'\x00', 'field number 0'),
        (b'\xff' * 11, 'no number at byte'),
    ],
    ids=lambda value: str(value)[:16],
)
def test_broken_fields_are_refused_with_their_place(tmp_path, blob, words):
    with pytest.raises(CaffeError, match=words):
        one_blob(tmp_path, blob)


def test_names_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / 'x').write_bytes(b'\xa2\x06\x04\x0a\x02\xff\xfe')
    for read in (caffemodel.read, caffemodel.read_net):
        refused(read, tmp_path / 'x', 'not UTF-8')


def test_layers_of_two_formats_are_refused(tmp_path):
    net = NetParameter(layer=[dict(name='a')], layers=[dict(name='b')])
    (tmp_path / 'x').write_bytes(net.SerializeToString())
    for read in (caffemodel.read, caffemodel.read_net):
        refused(read, tmp_path / 'x', '`layers`')


@pytest.mark.parametrize(
    'data',
    [b'\xa2\x06\x00' * 2000, b'\x12\x06\x32\x04\x3a\x02\x08\x00' * 2000],
    ids=['layers', 'blobs'],
)
def test_a_forged_multitude_is_refused(tmp_path, monkeypatch, data):
    monkeypatch.setattr(wire, 'MAX_FIELDS', 1000)
    (tmp_path / 'x').write_bytes(data)
    for read in (caffemodel.read, caffemodel.read_net):
        refused(read, tmp_path / 'x', 'no net has so many')


def named(tmp_path, name: str, blobs: int) -> list[caffemodel.StoredLayer]:
    """Read a layer of that name with so many empty blobs."""
    net = NetParameter(layer=[dict(name=name, blobs=[dict(shape=dict(dim=[0]))] * blobs)])
    (tmp_path / 'x').write_bytes(net.SerializeToString())
    return caffemodel.read(tmp_path / 'x')


def test_absurdly_long_names_are_refused(tmp_path):
    assert named(tmp_path, 'a' * 1024, 1)[0].name == 'a' * 1024
    with pytest.raises(
        CaffeError, match='x: name at byte .*: expected at most 1024 bytes, found 1025'
    ):
        named(tmp_path, 'a' * 1025, 1)


@pytest.mark.parametrize('length', [1, 2, 100])
def test_short_runs_of_numbers_are_not_read_over_and_over(tmp_path, monkeypatch, length):
    counts, readinto = [], wire.WireFile.readinto

    def counted(source, start, out):
        counts.append(len(out))
        readinto(source, start, out)

    monkeypatch.setattr(wire.WireFile, 'readinto', counted)
    run = np.zeros(length, np.float32)
    body = (tagged(0x2D, run) + tagged(0x35, run)) * (10_000 // length)
    with pytest.raises(CaffeError, match=r'expected 1 values for shape \(\), found 10000'):
        one_blob(tmp_path, body)
    # A look at 64 rows behind each run of two, which the file may hold.
    assert sum(counts) < 40 * len(body)


@pytest.mark.parametrize('read', READS)
def test_binary_files_beyond_2_gib_are_refused_with_the_reason(tmp_path, read):
    path = tmp_path / 'x'
    path.write_bytes(
        {caffemodel.read_state: STATE, caffemodel.read_blob: MEAN}.get(read, MODEL).read_bytes()
    )
    read(path)
    os.truncate(path, 1 << 31)  # a hole, which takes no room on the disk
    refused(read, path, '2147483648 bytes, and protobuf reads no message of more than 2147483647')


ORIGINALS = [path.read_bytes() for path in (V1, V1_UPGRADED, MODEL, STATE, MEAN)]


@examples(300)
@given(damaged(ORIGINALS))
def test_damaged_files_give_a_value_or_caffe_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'damaged'
    path.write_bytes(data)
    for read in (read_whole, caffemodel.read_state, caffemodel.read_blob):
        try:
            read(path)
        except CaffeError as error:
            assert str(path) in str(error) and '\n' not in str(error)


def read_whole(path) -> None:
    """Read all that a weight file has: what protobuf takes as a net, and each blob."""
    prototxt.to_text(caffemodel.read_net(path))
    for layer in caffemodel.read(path):
        for blob in layer.blobs:
            assert blob.array().size == blob.count


@pytest.mark.parametrize('part', [1, 7, 100, 1000, 1001])
def test_large_values_are_read_in_parts_side_by_side(monkeypatch, tmp_path, part):
    data = np.random.RandomState(part).bytes(1000)
    (tmp_path / 'a.caffemodel').write_bytes(data)
    monkeypatch.setattr(wire, '_PART', part)
    source = wire.WireFile(tmp_path / 'a.caffemodel')
    for start, end in (0, 1000), (3, 990), (5, 6):
        assert source.read(start, end) == data[start:end]
    os.truncate(tmp_path / 'a.caffemodel', 900)
    with pytest.raises(CaffeError, match=r'a\.caffemodel: truncated: expected \d+ bytes at byte '):
        source.read(0, 1000)
