"""Files of named tensors: their layout, and that forged or damaged ones do no harm."""

import argparse
import pathlib
import tempfile
import time
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

import caffe_port as caffe
from caffe_port.errors import CaffeError
from caffe_port.files import weights
from nets import voc_fcn32s
from tests.conversion import bits, bits_of, refused, run, write_tiny
from tests.examples import examples
from tests.mutations import damaged
from tests.vectors import GOLDEN

MODEL = GOLDEN / 'solver/snapshot_iter_4.caffemodel'


def test_safetensors_is_what_its_library_reads_and_the_other_way_round(tmp_path):
    library = pytest.importorskip('safetensors.numpy', reason='safetensors reads .safetensors')
    path, arrays = write_tiny(tmp_path)
    assert run(path, tmp_path / 'b.safetensors') == 0
    found = library.load_file(tmp_path / 'b.safetensors')
    assert {key: array.tobytes() for key, array in found.items()} == {
        f'{name}.{blob}': array.tobytes()
        for name, each in arrays.items()
        for blob, array in zip(('weight', 'bias'), each)
    }
    halves = {'x.weight': np.float16([[1, 2]]), 'x.bias': np.float64([1 / 3])}
    library.save_file(halves, tmp_path / 'c.safetensors')
    assert bits(tmp_path / 'c.safetensors') == bits_of(
        {'x': [array.astype(np.float32) for array in halves.values()]}
    )
    library.save_file({'x.weight': np.int8([1])}, tmp_path / 'd.safetensors')
    with pytest.raises(CaffeError, match='x.weight: expected F16, F32, F64, found I8'):
        weights.read(tmp_path / 'd.safetensors')


@pytest.mark.parametrize('suffix', ['.pth', '.npz'])
def test_a_net_saves_itself_in_the_kind_that_the_suffix_says(suffix, tmp_path):
    net, other = (caffe.Net(voc_fcn32s.fcn('deploy', width=1, fc=1), caffe.TEST) for _ in range(2))
    for blobs in net.params.values():
        blobs[0].data[...] = np.random.RandomState(0).randn(*blobs[0].shape)
    path = tmp_path / f'a{suffix}'
    net.save(path)
    loaded = torch.load(path) if suffix == '.pth' else np.load(path)
    assert set(loaded) == set(net.module.state_dict())
    other.copy_from(path)
    assert all(
        np.array_equal(a.data, b.data)
        for name, blobs in net.params.items()
        for a, b in zip(blobs, other.params[name])
    )


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


@pytest.mark.parametrize('zipped', [True, False])
def test_every_tensor_of_a_pth_is_the_one_that_torch_loads(tmp_path, zipped):
    values = torch.from_numpy(np.random.RandomState(0).randn(4, 6).astype(np.float32))
    state = {
        'whole.weight': values,
        'slice.weight': values[1:3, ::2],
        'turned.weight': values.t(),
        'repeated.weight': values[:1].expand(2, 6),
        'half.weight': values.half(),
        'half.bias': values.bfloat16()[0],
        'double.weight': values.double(),
        'scalar.weight': values[1, 2],
        'none.weight': values[:0],
        'parameter.weight': nn.Parameter(values[0]),
    }
    torch.save(state, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    found = {layer.name: layer.blobs for layer in weights.read(tmp_path / 'a.pth')}
    for key, tensor in torch.load(tmp_path / 'a.pth', weights_only=True).items():
        name, _, blob = key.partition('.')
        expected = tensor.detach().float().numpy()
        np.testing.assert_array_equal(found[name][blob == 'bias'].array(), expected)
        assert found[name][blob == 'bias'].shape == expected.shape


def test_a_modules_own_state_dict_is_read(tmp_path):
    module = nn.Sequential(OrderedDict(a=nn.Conv2d(2, 3, 3), b=nn.Linear(3, 2)))
    torch.save(module.state_dict(), tmp_path / 'a.pth')
    names = [layer.name for layer in weights.read(tmp_path / 'a.pth')]
    assert names == ['a', 'b']
    module.add_module('c', nn.BatchNorm2d(2))
    torch.save(module.state_dict(), tmp_path / 'a.pth')
    with pytest.raises(
        CaffeError, match='expected dense tensors of floats only, found a LongTensor'
    ):
        weights.read(tmp_path / 'a.pth')


def test_an_ordered_dict_as_python_2_pickled_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as file:
        # OrderedDict([['x.bias', <tensor>]]): with a list for the pairs, and byte strings.
        file.writestr(
            'a/data.pkl',
            b'\x80\x02ccollections\nOrderedDict\n]](U\x06x.biasctorch._utils\n_rebuild_tensor\n'
            b'((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x02NtQK\x00K\x02\x85K\x01\x85tRea\x85R.',
        )
        file.writestr('a/data/0', np.float32([3, 4]).tobytes())
    assert bits(tmp_path / 'a.pth') == bits_of({'x': [np.float32([3, 4])]})


def test_a_big_endian_archive_is_refused(tmp_path):
    torch.save({'x.weight': torch.ones(2)}, tmp_path / 'a.pth')
    data = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(data.replace(b'little', b'bigbig'))
    with pytest.raises(CaffeError, match='not little endian'):
        weights.read(tmp_path / 'a.pth')


class Trainer:
    """What frameworks leave in a checkpoint: an object of a class of theirs."""

    def __init__(self):
        self.steps, self.seen = [1, 2], {'a': torch.tensor(3)}


@pytest.mark.parametrize('name', ['a.pth', 'model_best.pth.tar', 'last.ckpt'])
def test_what_else_a_checkpoint_holds_is_not_looked_at(tmp_path, name):
    state = {'net.conv.weight': torch.ones(2, 3), 'net.conv.bias': torch.zeros(2)}
    content = {
        'best_mean_iu': np.float64(0.6),  # as pytorch-fcn's trainer has it
        'trainer': Trainer(),
        'seen': {1, 2},
        'kinds': OrderedDict(a=argparse.Namespace(lr=[torch.long, slice(2)])),
        'steps': torch.arange(3),
        'state_dict': state,
    }
    torch.save(content, tmp_path / name)
    expected = {'conv': [np.ones((2, 3), np.float32), np.zeros(2, np.float32)]}
    assert bits(tmp_path / name) == bits_of(expected)
    torch.save({**content, 'state_dict': {**state, 'net.fc.bias': Trainer()}}, tmp_path / name)
    with pytest.raises(CaffeError, match='it asks for .*Trainer, and a weight file may hold'):
        weights.read(tmp_path / name)


def trained_checkpoint(key: str, prefix: str) -> dict:
    """What a training script saves: the weights under `key`, an optimizer's state beside."""
    module = nn.Sequential(OrderedDict(a=nn.Conv2d(2, 3, 3), b=nn.Linear(3, 2)))
    optimizer = torch.optim.Adam(module.parameters())
    module.b(module.a(torch.ones(1, 2, 5, 5)).mean((2, 3))).sum().backward()
    optimizer.step()
    state = OrderedDict((prefix + name, value) for name, value in module.state_dict().items())
    return {'epoch': 3, 'best': 0.5, 'arch': 'x', key: state, 'optimizer': optimizer.state_dict()}


@pytest.mark.parametrize(
    'key, prefix', [('state_dict', 'module.'), ('model', ''), ('model_state_dict', 'module.model.')]
)
def test_a_checkpoint_and_a_shared_prefix_are_unwrapped_and_named(tmp_path, caplog, key, prefix):
    content = trained_checkpoint(key, prefix)
    torch.save(content, tmp_path / 'a.pth')
    found = {layer.name: layer.blobs for layer in weights.read(tmp_path / 'a.pth')}
    assert list(found) == ['a', 'b']
    for name, (weight, bias) in found.items():
        np.testing.assert_array_equal(weight.array(), content[key][f'{prefix}{name}.weight'])
        np.testing.assert_array_equal(bias.array(), content[key][f'{prefix}{name}.bias'])
    assert f'a checkpoint; its weights are under {key}' in caplog.text
    assert (f'all keys begin with {prefix}, which' in caplog.text) == bool(prefix)


@pytest.mark.parametrize(
    'keys, names',
    [
        (('module.a.weight', 'b.weight'), ['module.a', 'b']),
        (('model.weight', 'model.bias'), ['model']),
        (('module.' * 9 + 'weight',), [('module.' * 5)[:-1]]),
    ],
)
def test_a_prefix_that_not_all_share_or_that_is_the_layer_stays(tmp_path, keys, names):
    torch.save({key: torch.ones(2) for key in keys}, tmp_path / 'a.pth')
    assert [layer.name for layer in weights.read(tmp_path / 'a.pth')] == names


def test_a_key_of_nothing_but_prefixes_takes_no_time(tmp_path):
    np.savez(tmp_path / 'a.npz', **{'module.' * 4000 + 'weight': np.ones(2, np.float32)})
    began = time.process_time()
    weights.read(tmp_path / 'a.npz')
    assert time.process_time() - began < 1


def test_checkpoint_with_more_than_tensors_is_told_from_a_state_dict(tmp_path, capsys):
    torch.save({'epoch': 3, 'my_weights': {'a.weight': torch.ones(1)}}, tmp_path / 'a.pth')
    line = refused(capsys, tmp_path / 'a.pth', tmp_path / 'b.npz')
    assert "expected a plain state_dict, names to tensors, found a dict with 'epoch'" in line
    for key, tensor, words in (
        ('a.weight', torch.ones(2, dtype=torch.int64), 'found a LongTensor'),
        ('a.weight', torch.ones(2).to_sparse(), 'nothing but dense tensors'),
        ('a.running_mean', torch.ones(2), 'expected <layer>.weight'),
        ('weight', torch.ones(2), 'expected <layer>.weight'),
        ('a.3', torch.ones(2), 'expected blobs 0 to 0, found a.3'),
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


def written_files() -> list[bytes]:
    """A whole file of each kind, to be damaged."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for kind in ('.pth', '.npz', '.safetensors'):
            paths.append(pathlib.Path(folder) / f'a{kind}')
            weights.write(paths[-1], weights.read(MODEL))
        return [path.read_bytes() for path in paths]


@examples(75)
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
