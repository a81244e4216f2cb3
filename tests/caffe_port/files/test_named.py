"""Files of named tensors: their layout, and that forged or damaged ones do no harm."""

import json
import os
import pathlib
import pickle
import struct
import tempfile
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given

from caffe_port.errors import CaffeError
from caffe_port.files import weights
from tests.conversion import bits, bits_of, refused, run, write_tiny
from tests.examples import examples
from tests.mutations import damaged
from tests.vectors import GOLDEN

MODEL = GOLDEN / 'solver/snapshot_iter_4.caffemodel'


def test_safetensors_has_its_documented_layout(tmp_path):
    path, arrays = write_tiny(tmp_path)
    assert run(path, tmp_path / 'b.safetensors') == 0
    data = (tmp_path / 'b.safetensors').read_bytes()
    (length,) = struct.unpack('<Q', data[:8])
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    for key, array in zip(header, (array for each in arrays.values() for array in each)):
        start, end = header[key]['data_offsets']
        assert (header[key]['dtype'], header[key]['shape']) == ('F32', list(array.shape))
        assert data[8 + length :][start:end] == array.tobytes()


def test_other_floats_become_float32_and_fortran_order_c(tmp_path, capsys):
    values = np.arange(6).reshape(2, 3) / 8
    np.savez_compressed(
        tmp_path / 'a.npz',
        **{
            'x.weight': np.asfortranarray(values),
            'y.weight': values.astype('>f4'),
            'z.weight': values.astype(np.float16),
        },
    )
    torch.save(
        {
            f'{name}.weight': torch.from_numpy(values).to(dtype)
            for name, dtype in (('x', torch.float64), ('y', torch.bfloat16), ('z', torch.float16))
        },
        tmp_path / 'a.pth',
    )
    for source in ('a.npz', 'a.pth'):
        assert run(tmp_path / source, tmp_path / 'b.caffemodel', '--force') == 0
        assert 'note: 1 blobs are stored as float64' in capsys.readouterr().out
        assert bits(tmp_path / 'b.caffemodel') == bits_of(
            {name: [values.astype(np.float32)] for name in 'xyz'}
        )


def test_strided_tensors_and_pths_of_old_pytorch_are_read(tmp_path):
    values = torch.arange(6.0).reshape(2, 3)
    torch.save(
        {'x.weight': values.t(), 'x.bias': values[:, 1]},
        tmp_path / 'a.pth',
        _use_new_zipfile_serialization=False,
    )
    torch.save({'x.weight': values.t(), 'x.bias': values[:, 1]}, tmp_path / 'b.pth')
    expected = bits_of({'x': [values.numpy().T.copy(), values.numpy()[:, 1].copy()]})
    assert bits(tmp_path / 'a.pth') == bits(tmp_path / 'b.pth') == expected


class Evil:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('zipped', [True, False])
def test_pickle_that_calls_something_is_refused_unexecuted(tmp_path, capsys, zipped):
    torch.save(
        {'a.weight': torch.ones(2), 'b.weight': Evil(str(tmp_path / 'pwned'))},
        tmp_path / 'a.pth',
        _use_new_zipfile_serialization=zipped,
    )
    line = refused(capsys, tmp_path / 'a.pth', tmp_path / 'b.npz')
    assert 'posix.mkdir' in line and 'nothing but tensors' in line
    (tmp_path / 'c.pth').write_bytes(pickle.dumps(Evil(str(tmp_path / 'pwned'))))
    assert 'Weights only load failed' in refused(capsys, tmp_path / 'c.pth', tmp_path / 'b.npz')
    assert not (tmp_path / 'pwned').exists()


def test_checkpoint_with_more_than_tensors_is_told_from_a_state_dict(tmp_path, capsys):
    torch.save({'epoch': 3, 'model_state_dict': {'a.weight': torch.ones(1)}}, tmp_path / 'a.pth')
    line = refused(capsys, tmp_path / 'a.pth', tmp_path / 'b.npz')
    assert "expected a plain state_dict, names to tensors, found a dict with 'epoch'" in line
    for key, tensor, words in (
        ('a.weight', torch.ones(2, dtype=torch.int64), 'expected a dense tensor of floats'),
        ('a.weight', torch.ones(2).to_sparse(), 'expected a dense tensor of floats'),
        ('a.running_mean', torch.ones(2), 'expected <layer>.weight'),
        ('weight', torch.ones(2), 'expected <layer>.weight'),
        ('a.3', torch.ones(2), 'expected one blob 0, found 3'),
        ('a\0b.weight', torch.ones(2), 'has a zero in it'),
    ):
        torch.save({key: tensor}, tmp_path / 'a.pth')
        assert words in refused(capsys, tmp_path / 'a.pth', tmp_path / 'b.npz')


def test_values_beyond_the_size_of_the_file_are_refused_before_memory_is_taken(tmp_path, capsys):
    torch.save({'a.weight': torch.ones(1).expand(1 << 30)}, tmp_path / 'a.pth')
    assert 'the file has 4' in refused(capsys, tmp_path / 'a.pth', tmp_path / 'x.npz')
    many = torch.ones(1 << 16)
    torch.save({f'l{i}.weight': many for i in range(400)}, tmp_path / 'b.pth')
    assert 'bytes of values' in refused(capsys, tmp_path / 'b.pth', tmp_path / 'x.npz')
    huge = dict(descr='<f4', fortran_order=False, shape=(1 << 29,))
    with zipfile.ZipFile(tmp_path / 'c.npz', 'w') as archive:
        with archive.open('a.weight.npy', 'w') as member:
            np.lib.format.write_array_header_1_0(member, huge)
    assert 'bytes of values' in refused(capsys, tmp_path / 'c.npz', tmp_path / 'x.npz')
    with zipfile.ZipFile(tmp_path / 'd.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', b'\0' * 100000)
    assert 'a compressed one' in refused(capsys, tmp_path / 'd.pth', tmp_path / 'x.npz')


def safetensors(header: dict | bytes, data: bytes = b'') -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


@pytest.mark.parametrize(
    'data, words',
    [
        (b'123', 'truncated'),
        (struct.pack('<Q', 1 << 60) + b'{}', 'found a header of'),
        (safetensors(b'[' * 5000), 'damaged'),
        (safetensors(b'[]'), 'damaged'),
        (
            safetensors(
                {'a.weight': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 4]}}, b'1234'
            ),
            'expected 8 bytes',
        ),
        (
            safetensors(
                {
                    k: {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}
                    for k in ('a.weight', 'a.bias')
                },
                b'1234',
            ),
            'expected its values at byte 4',
        ),
        (
            safetensors(
                {'a.weight': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}, b'12345678'
            ),
            'expected 4 bytes of values, found 8',
        ),
        (
            safetensors(
                {'a.weight': {'dtype': 'I8', 'shape': [4], 'data_offsets': [0, 4]}}, b'1234'
            ),
            'expected F16, F32, F64',
        ),
        (
            safetensors(
                {'a.weight': {'dtype': 'F32', 'shape': [-1, -1], 'data_offsets': [0, 4]}}, b'1234'
            ),
            'negative',
        ),
        (
            safetensors(
                {'a.weight': {'dtype': 'F32', 'shape': 'x', 'data_offsets': [0, 4]}}, b'1234'
            ),
            'no shape',
        ),
    ],
)
def test_forged_safetensors_are_refused(tmp_path, capsys, data, words):
    (tmp_path / 'a.safetensors').write_bytes(data)
    assert words in refused(capsys, tmp_path / 'a.safetensors', tmp_path / 'b.npz')


def written_files() -> list[bytes]:
    """A whole file of each kind, to be damaged."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for kind in ('.pth', '.npz', '.safetensors'):
            paths.append(pathlib.Path(folder) / f'a{kind}')
            weights.write(paths[-1], weights.read(MODEL))
        return [path.read_bytes() for path in paths]


@examples(150)
@given(damaged(written_files()))
def test_damaged_files_give_values_or_caffe_error(tmp_path_factory, data):
    for kind in ('.pth', '.npz', '.safetensors'):
        path = tmp_path_factory.getbasetemp() / f'damaged{kind}'
        path.write_bytes(data)
        try:
            for layer in weights.read(path):
                for blob in layer.blobs:
                    assert blob.array().size == blob.count
        except CaffeError as error:
            assert str(path) in str(error)
