"""SECURITY.md: a stranger's file runs nothing, costs little, and ends in one CaffeError."""

import io
import os
import pickle
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import torch

from caffe_port.files import wire
from caffe_port.proto.caffe_pb2 import BlobProto, NetParameter, SolverState
from tests.costs import costs

MEGABYTES, SECONDS = 150, 10
FLOATS = np.arange(4, dtype=np.float32)

MARK_STORAGE = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\n'


def archive(pickled: bytes) -> bytes:
    """The zip that torch.save writes, of a pickle and one storage."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as file:
        file.writestr('a/data.pkl', pickled)
        file.writestr('a/data/0', FLOATS.tobytes())
    return out.getvalue()


def torch_bytes(state) -> bytes:
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def nested_tuple(depth: int = 60) -> bytes:
    """Opcodes for a tuple of itself twice, and so on: its hash takes 2**depth steps."""
    return b')' + b'q\x00h\x00\x86' * depth


def many_dicts_of_one_list() -> bytes:
    """A dict of a list of pairs, made again and again."""
    items = b']q\x01(' + b'X\x01\x00\x00\x00kX\x01\x00\x00\x00v\x86' * 50_000 + b'e'
    return items + b'(ccollections\nOrderedDict\nq\x02' + b'h\x02h\x01\x85R' * 100_000 + b't'


PICKLES = {
    'bytearray': b'\x80\x05\x96' + struct.pack('<Q', 1 << 32) + b'.',
    'frame': b'\x80\x04\x95' + struct.pack('<Q', 1 << 40) + b'.',
    'memo': b'\x80\x02K\x00r\xff\xff\xff\xff.',
    'text': b'\x80\x02X' + struct.pack('<I', (1 << 32) - 1) + b'.',
    'dicts': b'\x80\x02(' + b'}' * 2_000_000 + b't.',
    'key': b'\x80\x02}' + nested_tuple() + b'Ns.',
    'storage key': b'\x80\x02' + MARK_STORAGE + nested_tuple() + b'X\x03\x00\x00\x00cpuK\x04tQ.',
    'kind': b'\x80\x02}X\x08\x00\x00\x00a.weightctorch._utils\n_rebuild_tensor_v2\n('
    + nested_tuple()
    + b'K\x00)))tRs.',
    'pairs': b'\x80\x02' + many_dicts_of_one_list() + b'.',
    'repeated list': b'\x80\x02]q\x00' + b'(h\x00h\x00e' * 100_000 + b'.',
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('strangers')


def check(folder, files: dict[str, bytes], size: int = 1) -> dict[str, str]:
    """Read all files; each must cost little and be refused in one line that names it."""
    paths = [folder / name for name in files]
    for path, data in zip(paths, files.values()):
        path.write_bytes(data)
    words = {}
    for path, cost in zip(paths, costs(*paths)):
        assert cost.megabytes < MEGABYTES and cost.seconds < SECONDS, (path.name, cost)
        assert str(path) in cost.words and '\n' not in cost.words, (path.name, cost)
        words[path.name] = cost.words
    return words


def test_pickles_that_ask_for_much_cost_little(folder):
    files = {f'{name}.pth': archive(pickled) for name, pickled in PICKLES.items()}
    magic = b''.join(
        pickle.dumps(part, 2)
        for part in (0x1950A86A20F9469CFC6C, 1001, dict(little_endian=True, protocol_version=1001))
    )
    files |= {f'{name} flat.pth': magic + pickled for name, pickled in PICKLES.items()}
    for words in check(folder, files).values():
        assert 'not a state_dict that torch.save wrote' in words or 'found a' in words


def test_a_second_directory_of_an_archive_is_not_looked_at(folder):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('a/data.pkl', torch_pickle())
        file.writestr('a/data/0', bytes(1 << 28))
    good = torch_bytes({'x.weight': torch.from_numpy(FLOATS)})
    (folder / 'two.pth').write_bytes(bomb.getvalue() + good)
    (cost,) = costs(folder / 'two.pth')
    assert cost.megabytes < MEGABYTES and cost.seconds < SECONDS
    assert 'compressed' in check(folder, {'bomb.pth': bomb.getvalue()})['bomb.pth']


def torch_pickle() -> bytes:
    with zipfile.ZipFile(io.BytesIO(torch_bytes({'a.weight': torch.zeros(1 << 26)}))) as file:
        return file.read('archive/data.pkl')


def directory(count: int) -> bytes:
    """An archive whose directory has one empty member so many times."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as file:
        file.writestr('a', b'')
    data = out.getvalue()
    start = data.index(b'PK\1\2')
    end = data.index(b'PK\5\6')
    entries = data[start:end] * count
    tail = struct.pack('<4sHHHHLLH', b'PK\5\6', 0, 0, 0xFFFF, 0xFFFF, len(entries), start, 0)
    return data[:start] + entries + tail


def npz(header: bytes, values: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', method) as file:
        file.writestr('a.weight.npy', header + values)
    return out.getvalue()


def header(shape: tuple) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, dict(descr='<f4', fortran_order=False, shape=shape))
    return out.getvalue()


def test_archives_of_blanks_or_members_without_end_cost_little(folder):
    blanks = b'\x93NUMPY\x02\x00' + struct.pack('<I', 1 << 28) + b' ' * (1 << 28)
    words = check(
        folder,
        {
            'blanks.npz': npz(blanks, b'', zipfile.ZIP_DEFLATED),
            'members.npz': directory(200_000),
            'members.pth': directory(200_000),
            'lzma.npz': npz(header((4,)), FLOATS.tobytes(), zipfile.ZIP_LZMA),
            'zeros.npz': npz(header((1 << 25,)), bytes(4 << 25), zipfile.ZIP_DEFLATED),
        },
    )
    assert 'format 1.0' in words['blanks.npz'] and 'directory' in words['members.npz']
    assert 'another method' in words['lzma.npz'] and 'bytes of values' in words['zeros.npz']


def test_an_npz_must_have_as_many_values_as_its_shape_says(folder):
    # Of a deflated member the directory may lie about its size.
    lying = bytearray(npz(header((1000,)), FLOATS[:1].tobytes(), zipfile.ZIP_DEFLATED))
    at = lying.index(b'PK\1\2')
    lying[at + 24 : at + 28] = struct.pack('<I', len(header((1000,))) + 4000)
    words = check(
        folder,
        {
            'one.npz': npz(header((1000,)), FLOATS[:1].tobytes()),
            'surplus.npz': npz(header((2,)), FLOATS.tobytes()),
            'lying.npz': bytes(lying),
        },
    )
    assert 'expected 4000 bytes for shape (1000,), found 4' in words['one.npz']
    assert 'expected 8 bytes for shape (2,), found 16' in words['surplus.npz']
    assert 'damaged' in words['lying.npz']


def hdf5(path, forge) -> bytes:
    with h5py.File(path, 'w') as file:
        forge(file.create_group('data/a'))
    return path.read_bytes()


def short_chunk(group):
    """A gzip chunk that unpacks to fewer bytes than its chunk: the rest is what the heap held."""
    dataset = group.create_dataset('0', (1024,), 'f4', chunks=(1024,), compression='gzip')
    dataset.id.write_direct_chunk((0,), zlib.compress(bytes(16)))


def compact(group):
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((4,))
    dataset = h5py.h5d.create(group.id, b'0', h5py.h5t.IEEE_F32LE, space, created)
    h5py.Dataset(dataset)[...] = FLOATS


def virtual(group):
    layout = h5py.VirtualLayout((4,), 'f4')
    layout[:] = h5py.VirtualSource('/etc/hostname', 'x', (4,))
    group.create_virtual_dataset('0', layout)


def test_only_contiguous_hdf5_is_read(folder):
    words = check(
        folder,
        {
            f'{name}.caffemodel.h5': hdf5(folder / 'forged', forge)
            for name, forge in {
                'short chunk': short_chunk,
                'chunks of one': lambda group: group.create_dataset(
                    '0', (1 << 26,), 'f4', chunks=(1,)
                ),
                'unwritten': lambda group: group.create_dataset('0', (1 << 29,), 'f4'),
                'compact': compact,
                'virtual': virtual,
                'external': lambda group: group.create_dataset(
                    '0', (2,), 'f4', external=[('/etc/hostname', 0, 8)]
                ),
            }.items()
        },
    )
    assert all('a: blob 0: expected contiguous values' in each for each in words.values())


def safetensors(header: bytes, data: bytes = b'') -> bytes:
    return struct.pack('<Q', len(header)) + header + data


def test_headers_of_safetensors_cost_little_and_are_refused_in_one_line(folder):
    entry = b'{"a.weight":{"dtype":"F32","shape":%s,"data_offsets":[0,4]}}'
    files = {
        f'{i}.safetensors': safetensors(entry % shape, bytes(4))
        for i, shape in enumerate((b'null', b'"x"', b'[1.5]', b'[-1]', b'[2]', b'[[1]]'))
    }
    many = b','.join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(80000)
    )
    files['many.safetensors'] = safetensors(b'{' + many + b'}')
    files['length.safetensors'] = struct.pack('<Q', 1 << 60) + b'{}'
    files['nested.safetensors'] = safetensors(b'[' * 500_000)
    check(folder, files)


def test_a_multitude_of_layers_blobs_or_dims_costs_little(folder):
    blob = BlobProto(shape=dict(dim=[0])).SerializeToString()
    blobs = (
        (wire.encode_header(7, len(blob)) + blob) * 500_000
        + wire.encode_header(1, 1000)
        + b'a' * 1000
    )
    check(
        folder,
        {
            'layers.caffemodel': b'\xa2\x06\x00' * 1_000_000,
            'blobs.caffemodel': wire.encode_header(100, len(blobs)) + blobs,
            'dims.caffemodel': NetParameter(
                layer=[dict(blobs=[dict(shape=dict(dim=[1] * 5_000_000))])]
            ).SerializeToString(),
            'history.solverstate': SolverState(iter=1).SerializeToString()
            + (wire.encode_header(3, len(blob)) + blob) * 500_000,
        },
    )


def test_prototxts_of_one_long_string_or_name_cost_little(folder):
    literal = '[' + '1,' * 500_000 + ']'
    net = 'layer { name: "d" type: "Python" top: "x" python_param { module: "m" param_str: "%s" } }'
    words = check(
        folder,
        {
            'literal.prototxt': (net % literal).encode(),
            'huge.prototxt': (net % (literal * 8)).encode(),
            'quotes.prototxt': b'name: "' + b'x' * 1_000_000 + b'"',
            'messages.prototxt': b'layer{}' * 500_000,
        },
    )
    assert 'param_str: 1000002 characters, expected at most 65536' in words['literal.prototxt']
    assert 'a prototxt has at most' in words['huge.prototxt']


def test_a_net_whose_name_is_too_long_for_a_file_is_refused_in_one_line(folder):
    (folder / 'net.solver').write_text(f'net: "{"a" * 300}" base_lr: 1 lr_policy: "fixed"')
    (cost,) = costs(folder / 'net.solver')
    assert cost.words == 'a' * 300 + ': File name too long'


class Runs:
    def __reduce__(self):
        return os.mkdir, ('ran',)


@pytest.mark.parametrize('zipped', [True, False])
def test_no_pickle_runs_anything(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({'a.weight': Runs()}, 'a.pth', _use_new_zipfile_serialization=zipped)
    words = check(tmp_path, {'b.pth': (tmp_path / 'a.pth').read_bytes()})
    assert 'it asks for posix.mkdir' in words['b.pth'] and not (tmp_path / 'ran').exists()
