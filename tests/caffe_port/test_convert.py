"""The converter: every pair of kinds bit for bit, nets held against files, errors in one line."""

import functools
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import caffe_port as caffe
from caffe_port import convert, plugins, prototxt
from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel, weights
from caffe_port.files.stored import StoredBlob, StoredLayer
from caffe_port.files.weights import fit
from caffe_port.proto.caffe_pb2 import NetParameter
from caffe_port.verify import verify
from nets import voc_fcn8s
from tests import starting
from tests.conversion import (
    KINDS,
    ODD,
    TINY,
    bits,
    bits_of,
    h5py_for,
    refused,
    run,
    tiny_weights,
    write_tiny,
)
from tests.vectors import GOLDEN, assert_close, load, net_of

V1 = GOLDEN / 'formats/legacy_v1.caffemodel'


@pytest.fixture
def tiny(tmp_path):
    return write_tiny(tmp_path)


# Kinds.


@pytest.mark.parametrize('first', KINDS)
@pytest.mark.parametrize('second', KINDS)
def test_every_pair_of_kinds_keeps_every_bit(tmp_path, tiny, first, second):
    h5py_for(first, second)
    path, arrays = tiny
    one, two, three = (tmp_path / f'{i}{kind}' for i, kind in enumerate((first, second, first)))
    assert [run(path, one), run(one, two), run(two, three)] == [0, 0, 0]
    assert bits(one) == bits(two) == bits(three) == bits_of(arrays)


def test_each_kind_is_what_its_own_library_reads(tmp_path, tiny):
    path, arrays = tiny
    for kind in ('.caffemodel', '.pth', '.npz'):
        assert run(path, tmp_path / f'b{kind}') == 0
    keys = ['a/conv.1.weight', 'a/conv.1.bias', 'fc.weight', 'fc.bias']
    values = [array.tobytes() for each in arrays.values() for array in each]
    state = torch.load(tmp_path / 'b.pth', weights_only=True)
    assert list(state) == keys
    assert [tensor.numpy().tobytes() for tensor in state.values()] == values
    with np.load(tmp_path / 'b.npz') as file:
        assert list(file) == keys and [file[key].tobytes() for key in keys] == values
    net = NetParameter.FromString((tmp_path / 'b.caffemodel').read_bytes())
    assert [np.float32(blob.data).shape for layer in net.layer for blob in layer.blobs] == [
        (array.size,) for each in arrays.values() for array in each
    ]


def test_caffemodel_keeps_its_net_and_one_without_a_net_serves_by_name(tmp_path, tiny):
    path, arrays = tiny
    assert run(path, tmp_path / 'same.caffemodel') == 0
    assert (tmp_path / 'same.caffemodel').read_bytes() == path.read_bytes()
    assert run(path, tmp_path / 'b.npz') == run(tmp_path / 'b.npz', tmp_path / 'b.caffemodel') == 0
    assert [layer.name for layer in caffemodel.read_net(tmp_path / 'b.caffemodel').layer] == [
        'a/conv.1',
        'fc',
    ]
    net = net_of(TINY)
    net.copy_from(tmp_path / 'b.caffemodel')
    assert net.params['fc'][1].data.tobytes() == arrays['fc'][1].tobytes()


def test_old_file_gets_todays_shapes_so_that_caffe_takes_it_in_a_new_file(tmp_path):
    recorded = load('formats/legacy_v1.npz')
    expected = {key: array for key, array in recorded.items() if key.startswith('param:')}
    for kind in ('.caffemodel', '.pth'):
        assert run(V1, tmp_path / f'new{kind}') == 0
        layers = {layer.name: layer.blobs for layer in weights.read(tmp_path / f'new{kind}')}
        for key, array in expected.items():
            _, layer, i = key.split(':')
            assert layers[layer][int(i)].shape == array.shape
            np.testing.assert_array_equal(layers[layer][int(i)].array(), array)


WITH_PARAMS = [
    path.name
    for path in sorted((GOLDEN / 'layers').glob('*.npz'))
    if any(key.startswith('param:') for key in np.load(path))
]


@pytest.mark.parametrize('name', WITH_PARAMS)
def test_names_without_a_net_are_those_of_the_module(name):
    vector = load(f'layers/{name}')
    net = net_of(
        str(vector['prototxt']), caffe.TRAIN if str(vector['phase']) == 'TRAIN' else caffe.TEST
    )
    for node in net.module.nodes:
        layer = StoredLayer(node.name, node.op.param.type, node.op.blobs())
        assert weights.name_blobs(layer) == list(node.op.blob_names)


def test_third_blob_has_a_number_and_order_is_caffes_whatever_the_files(tmp_path):
    np.savez(
        tmp_path / 'a.npz',
        **{
            'x.2': np.float32([3]),
            'x.bias': np.float32([2]),
            'bn.scale_factor': np.float32([6]),
            'only.bias': ODD,
            'bn.variance': np.float32([5]),
            'x.weight': np.float32([1]),
            'bn.mean': np.float32([4]),
        },
    )
    found = {
        layer.name: [float(blob.array()[0]) for blob in layer.blobs]
        for layer in weights.read(tmp_path / 'a.npz')
    }
    assert found['x'] == [1, 2, 3] and found['bn'] == [4, 5, 6] and len(found['only']) == 1
    assert run(tmp_path / 'a.npz', tmp_path / 'b.pth') == 0
    assert set(torch.load(tmp_path / 'b.pth')) >= {'x.weight', 'x.bias', 'x.2'}


def test_equal_values_make_equal_files(tmp_path, tiny):
    for kind in ('.pth', '.npz', '.safetensors'):
        one, two = tmp_path / f'1{kind}', tmp_path / f'two{kind}'
        assert run(tiny[0], one) == run(tiny[0], two) == 0
        assert one.read_bytes() == two.read_bytes()


# Nets.


def write_text(path, text: str):
    path.write_text(text)
    return path


def test_module_loads_the_pth_strictly_and_verify_finds_no_difference(tmp_path, capsys):
    path, arrays = tmp_path / 'a.caffemodel', tiny_weights()
    arrays['conv1'], text = arrays.pop('a/conv.1'), TINY.replace('a/conv.1', 'conv1')
    caffemodel.write(path, prototxt.parse_net(text), arrays)
    proto = write_text(tmp_path / 'tiny.prototxt', text)
    for kind in ('.pth', '.npz', '.caffemodel'):
        assert run(path, tmp_path / f'b{kind}', '--prototxt', proto, '--verify') == 0
        said = capsys.readouterr().out
        assert '4 of 4 blobs bit for bit' in said
        assert 'weights read back: largest difference of fc 0,' in said
        assert ('load_state_dict, strict: largest difference of fc 0,' in said) == (kind == '.pth')
    net_of(text).module.load_state_dict(
        torch.load(tmp_path / 'b.pth', weights_only=True), strict=True
    )


def test_verify_says_that_pytorch_loads_no_names_with_dots_strictly(tmp_path, capsys, tiny):
    proto = write_text(tmp_path / 'tiny.prototxt', TINY)
    assert run(tiny[0], tmp_path / 'b.pth', '--prototxt', proto, '--verify') == 0
    assert 'load_state_dict not tried' in capsys.readouterr().out


def test_verify_tells_one_changed_weight(tmp_path):
    net, arrays = net_of(TINY), tiny_weights()
    for name in ('a', 'b'):
        caffemodel.write(tmp_path / f'{name}.caffemodel', net.module.param, arrays)
        arrays['fc'][0][2, 7] += 1
    sides = [
        fit(weights.read(tmp_path / f'{name}.caffemodel'), net.layer_dict).layers for name in 'ab'
    ]
    said = verify(net, *sides)
    assert next(said) == 'verify: 3 of 4 blobs bit for bit'
    with pytest.raises(CaffeError, match='fc: weights read back: .* apart'):
        list(said)
    # A layer that is not loaded does not keep what the other side left.
    with pytest.raises(CaffeError, match='fc: weights read back: nan apart'):
        list(verify(net, sides[0], sides[0][:1]))


def test_verify_warns_where_a_net_gives_zeros_alone(tmp_path):
    net = net_of(TINY)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = 0
    net.save(tmp_path / 'zero.caffemodel')
    layers = fit(weights.read(tmp_path / 'zero.caffemodel'), net.layer_dict).layers
    said = list(verify(net, layers, layers))
    assert said[-1] == 'verify: warning: fc is 0 everywhere, so that nothing is shown by it'


def test_file_that_does_not_fit_the_net_is_refused_with_every_difference(tmp_path, capsys, tiny):
    text = TINY.replace('num_output: 4', 'num_output: 5').replace('"a/conv.1"', '"other"')
    proto = write_text(tmp_path / 'other.prototxt', text)
    assert run(tiny[0], tmp_path / 'b.pth', '--prototxt', proto) == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        'left over, not written: a/conv.1: 3 x 2 x 3 x 3, 3',
        'missing: other: 3 x 2 x 3 x 3, 3',
        'mismatched: fc: expected 5 x 48, 5, found 4 x 48, 4',
    ]
    assert 'does not fit the net: 1 layer missing, 1 layer of other shapes' in said.err
    assert not (tmp_path / 'b.pth').exists()


def test_what_is_left_over_is_told_and_not_written(tmp_path, capsys, tiny):
    proto = write_text(tmp_path / 'less.prototxt', TINY[: TINY.index('layer { name: "fc"')])
    for kind in ('.pth', '.caffemodel'):
        assert run(tiny[0], tmp_path / f'b{kind}', '--prototxt', proto) == 0
        assert 'left over, not written: fc: 4 x 48, 4' in capsys.readouterr().out
        assert list(bits(tmp_path / f'b{kind}')) == ['a/conv.1']


def test_fully_connected_layer_computes_as_the_convolution_it_becomes(tmp_path, capsys):
    conv = TINY.replace('InnerProduct', 'Convolution').replace(
        'inner_product_param { num_output: 4 }',
        'convolution_param { num_output: 4 kernel_size: 4 }',
    )
    proto, path = write_text(tmp_path / 'conv.prototxt', conv), tmp_path / 'a.caffemodel'
    caffemodel.write(path, prototxt.parse_net(TINY), tiny_weights())
    assert '--fully-conv casts it' not in refused(
        capsys, path, tmp_path / 'b.pth', '--prototxt', tmp_path / 'none.prototxt'
    )
    assert run(path, tmp_path / 'b.pth', '--prototxt', proto) == 2
    assert 'the counts agree: --fully-conv casts it' in capsys.readouterr().out
    assert (
        run(path, tmp_path / 'b.caffemodel', '--prototxt', proto, '--fully-conv', '--verify') == 0
    )
    assert 'cast: fc: 4 x 48, 4 to 4 x 3 x 4 x 4, 4' in capsys.readouterr().out
    turned = [
        StoredLayer(
            'fc',
            '',
            [StoredBlob('fc', shape, ODD.dtype, lambda out: None) for shape in ((48, 4), (4,))],
        )
    ]
    assert len(fit(turned, net_of(conv).layer_dict, fully_conv=True).mismatched) == 1
    image = np.random.RandomState(0).randn(1, 2, 6, 6).astype(np.float32)
    plain, convolved = net_of(TINY), net_of(conv)
    plain.copy_from(path)
    convolved.copy_from(tmp_path / 'b.caffemodel')
    assert_close(
        convolved.forward(data=image)['fc'].reshape(1, 4), plain.forward(data=image)['fc'], 1e-6
    )


class FCN8s(nn.Module):
    """Modules of the names that pytorch-fcn's FCN8s has, which are Caffe's."""

    def __init__(self, width: int, fc: int, classes: int = 21):
        super().__init__()
        inputs = 3
        for block, (convs, factor) in enumerate(zip((2, 2, 3, 3, 3), (1, 2, 4, 8, 8)), start=1):
            for i in range(1, convs + 1):
                pad = 100 if (block, i) == (1, 1) else 1
                outputs = factor * width
                self.add_module(f'conv{block}_{i}', nn.Conv2d(inputs, outputs, 3, padding=pad))
                inputs = outputs
        self.fc6, self.fc7 = nn.Conv2d(inputs, fc, 7), nn.Conv2d(fc, fc, 1)
        self.score_fr = nn.Conv2d(fc, classes, 1)
        self.score_pool3 = nn.Conv2d(4 * width, classes, 1)
        self.score_pool4 = nn.Conv2d(8 * width, classes, 1)
        for name, size in (('upscore2', 4), ('upscore8', 16), ('upscore_pool4', 4)):
            self.add_module(name, nn.ConvTranspose2d(classes, classes, size, size // 2, bias=False))


def test_pytorch_fcns_fcn8s_loads_the_pth_of_voc_fcn8s_strictly(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(voc_fcn8s, 'fcn', functools.partial(voc_fcn8s.fcn, width=2, fc=4))
    net, random = caffe.Net(voc_fcn8s.fcn('deploy'), caffe.TEST), np.random.RandomState(3)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = random.randn(*blob.shape)
    net.save(tmp_path / 'a.caffemodel')
    assert run(tmp_path / 'a.caffemodel', tmp_path / 'b.pth', '--net', 'voc_fcn8s') == 0
    model = FCN8s(width=2, fc=4)
    model.load_state_dict(torch.load(tmp_path / 'b.pth', weights_only=True), strict=True)
    for name, blobs in net.params.items():
        np.testing.assert_array_equal(getattr(model, name).weight.detach(), blobs[0].data)
    line = refused(capsys, tmp_path / 'a.caffemodel', tmp_path / 'c.pth', '--net', 'os')
    assert '--net os: no such net; there are' in line and 'voc_fcn32s' in line


def test_a_named_net_is_as_narrow_as_the_weights(tmp_path, capsys):
    net = caffe.Net(voc_fcn8s.fcn('deploy', width=2, fc=4), caffe.TEST)
    net.save(tmp_path / 'a.caffemodel')
    arguments = tmp_path / 'a.caffemodel', tmp_path / 'b.pth', '--net', 'voc_fcn8s', '--verify'
    assert run(*arguments) == 0
    assert 'load_state_dict, strict' in capsys.readouterr().out


# The table.


def test_info_tells_types_shapes_and_numbers_and_marks_dead_layers(tmp_path, capsys):
    net = NetParameter(
        layer=[
            dict(name='live', type='InnerProduct'),
            dict(name='dead'),
            dict(name='ill\x1b[2J'),
            dict(name='data', type='Input'),
        ]
    )
    caffemodel.write(
        tmp_path / 'a.caffemodel',
        net,
        {
            'live': [np.float32([[1, 2], [3, 6]]), np.zeros(2, np.float32)],
            'dead': [np.zeros((2, 1, 3), np.float32)],
            'ill\x1b[2J': [ODD],
        },
    )
    assert run(tmp_path / 'a.caffemodel', '--info') == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1] == 'live InnerProduct weight 2 x 2 4 1 3 6 1.871'.split()
    assert rows[2] == 'bias 2 2 0 0 0 0'.split()
    assert rows[3] == 'dead weight 2 x 1 x 3 6 0 0 0 0 ALL ZERO'.split()
    assert rows[4][0] == 'ill\\x1b[2J' and rows[4][-2:] == ['NOT', 'FINITE']
    assert ' '.join(rows[5]) == '3 layers, 4 blobs, 16 parameters, 64 bytes'


def test_large_files_show_a_bar_and_small_ones_do_not(tmp_path, capsys, tiny, monkeypatch):
    assert run(tiny[0], tmp_path / 'a.npz') == 0 and not capsys.readouterr().err
    monkeypatch.setattr(convert, 'BAR_FROM', 0)
    assert run(tiny[0], tmp_path / 'b.npz') == 0 and '100%' in capsys.readouterr().err


# What is refused.


def test_errors_are_one_line_with_status_2_and_leave_nothing(tmp_path, capsys, tiny):
    path, out = tiny[0], tmp_path / 'out'
    (tmp_path / 'folder.pth').mkdir()
    (tmp_path / 'text.pth').write_text('hello')
    (tmp_path / 'text.caffemodel').write_text('hello there, this is text\n')
    out.mkdir()
    for source, target, options, words in (
        (path, out / 'b.tflite', [], 'b.tflite: expected a name that ends in .caffemodel'),
        (tmp_path / 'a.bin', out / 'b.pth', [], 'a.bin: expected a name that ends in'),
        (tmp_path / 'none.pth', out / 'b.npz', [], 'none.pth: No such file'),
        (tmp_path / 'folder.pth', out / 'b.npz', [], 'expected a file, found a directory'),
        (tmp_path / 'text.pth', out / 'b.npz', [], 'text.pth: not a state_dict that torch'),
        (tmp_path / 'text.caffemodel', out / 'b.npz', [], 'found text'),
        (path, tmp_path / 'folder.pth', ['--force'], 'expected a file, found a directory'),
        (path, tmp_path / 'text.pth', [], 'text.pth: exists; --force replaces it'),
        (path, tmp_path / 'none/b.pth', [], 'b.pth: not written: No such file or directory'),
        (path, out / 'b.pth', ['--verify'], '--verify needs the net'),
        (path, out / 'b.pth', ['--fully-conv'], '--fully-conv needs the net'),
        (path, out / 'b.pth', ['--mean', '1,2,3'], '--mean goes with --from-torchvision'),
        (path, out / 'b.pth', ['--info'], '--info looks at SRC alone'),
    ):
        assert words in refused(capsys, source, target, *options)
    assert 'DST is missing' in refused(capsys, path)
    assert (tmp_path / 'text.pth').read_text() == 'hello'
    assert run(path, tmp_path / 'text.pth', '--force') == 0
    # Even onto itself: what is mapped is the file as it was.
    assert run(tmp_path / 'text.pth', tmp_path / 'text.pth', '--force') == 0
    assert bits(tmp_path / 'text.pth') == bits_of(tiny[1])


@pytest.mark.parametrize('kind', KINDS)
def test_full_disk_leaves_no_half_file(tmp_path, capsys, tiny, kind):
    h5py_for(kind)
    (tmp_path / f'b{kind}').write_text('before')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        line = refused(capsys, tiny[0], tmp_path / f'b{kind}', '--force')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line.endswith(f'b{kind}: not written: File too large')
    assert (tmp_path / f'b{kind}').read_text() == 'before'


@pytest.mark.parametrize(
    'module, kind', [('h5py', '.caffemodel.h5'), ('safetensors.numpy', '.safetensors')]
)
def test_a_library_that_is_missing_is_named_with_what_to_install(
    tmp_path, capsys, tiny, monkeypatch, module, kind
):
    h5py_for(kind)
    monkeypatch.setitem(sys.modules, module, None)
    name = module.partition('.')[0]
    line = refused(capsys, tiny[0], tmp_path / f'b{kind}')
    assert f'b{kind}: needs {name}, which is not installed: pip install {name}, or' in line


def test_a_bare_checkout_run_in_any_folder_ends_in_one_line_with_status_2(tmp_path, tiny):
    (tmp_path / 'folder.pth').mkdir()
    before = sorted(tmp_path.iterdir())
    bare = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    unfit = subprocess.run(
        [sys.executable, convert.__file__, *'tiny.caffemodel b.pth --net googlenet'.split()],
        cwd=tmp_path,
        env=bare,
        text=True,
        capture_output=True,
    )
    assert unfit.returncode == 2 and 'does not fit the net: 58 layers' in unfit.stderr
    assert unfit.stderr.startswith('error: ') and unfit.stderr.count('\n') == 1
    assert 'missing: conv1/7x7_s2: 64 x 3 x 7 x 7, 64' in unfit.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_a_command_without_room_ends_in_one_line_with_status_2(tmp_path, tiny):
    code = (
        'import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)); '
        'from caffe_port import convert; sys.exit(convert.main())'
    )
    before = sorted(tmp_path.iterdir())
    little = starting.start(code, 'tiny.caffemodel', 'b.pth', cwd=tmp_path)
    told, errors = little.communicate()
    assert little.returncode == 2 and 'b.pth: not written: File too large' in errors
    assert errors.startswith('error: ') and errors.count('\n') == 1 and 'missing: ' not in told
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    'arguments, words',
    [
        ('tiny.caffemodel b.tflite', 'b.tflite: expected a name that ends in .caffemodel'),
        ('tiny.caffemodel b.pth --net os', '--net os: no such net; there are'),
        ('none.pth b.npz', 'none.pth: No such file or directory'),
        ('folder.pth b.npz', 'folder.pth: expected a file, found a directory'),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_status_2(
    tmp_path, tiny, monkeypatch, capsys, arguments, words
):
    (tmp_path / 'folder.pth').mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run(*arguments.split()) == 2
    out, errors = capsys.readouterr()
    assert words in errors and errors.startswith('error: ') and errors.count('\n') == 1
    assert sorted(tmp_path.iterdir()) == before


# A stranger's prototxt.


def test_a_strangers_prototxt_imports_registered_modules_only(tmp_path, capsys, tiny, monkeypatch):
    (tmp_path / 'strange_layers.py').write_text('open("ran", "w")\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = (
        TINY
        + """layer { name: "p" type: "Python" top: "p"
                      python_param { module: "%s" layer: "L" } }"""
    )
    for module in ('strange_layers', 'venv.__main__'):
        proto = write_text(tmp_path / 'a.prototxt', text % module)
        line = refused(capsys, tiny[0], tmp_path / 'b.pth', '--prototxt', proto)
        assert f'module {module} is not registered' in line
        assert 'entry point' in line and 'caffe_port.python_layers' in line
    assert not (tmp_path / 'ran').exists() and 'strange_layers' not in sys.modules
    # Registered modules are imported: it is their class that is asked for.
    proto = write_text(tmp_path / 'a.prototxt', text % 'voc_layers')
    line = refused(capsys, tiny[0], tmp_path / 'b.pth', '--prototxt', proto)
    assert 'module voc_layers has no class L' in line
    # In code any module on the path is.
    with pytest.raises(CaffeError, match='module strange_layers has no class L'):
        net_of(text % 'strange_layers')
    assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'code, words',
    [
        ('raise SystemExit(3)', 'cannot be imported: SystemExit: 3'),
        ('1 / 0', 'cannot be imported: ZeroDivisionError: division by zero'),
        ('def', 'cannot be imported: SyntaxError: '),
        ('import no_such_thing', 'needs no_such_thing, which is not installed'),
    ],
)
def test_a_module_that_fails_on_import_is_an_error_in_one_line(tmp_path, monkeypatch, code, words):
    (tmp_path / 'failing_layers.py').write_text(code + '\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CaffeError, match=f'module failing_layers {words}') as caught:
        plugins.import_layer_module('failing_layers')
    assert '\n' not in str(caught.value)
