"""Every net file says what the official release says, layer by layer."""

import ast
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format, text_format

from caffe_port.proto import caffe_pb2
from nets import caffenet, googlenet, vgg16
from tests import starting

ROOT = Path(__file__).parents[2]
OFFICIAL = json.loads((ROOT / 'tests/facts/official_nets.json').read_text())
ZOO = json.loads((ROOT / 'tests/facts/zoo_nets.json').read_text())
PHASES = [(name, phase) for name in OFFICIAL for phase in ('train_net', 'test_net')]


def module_of(experiment):
    return importlib.import_module('nets.' + experiment.replace('-', '_'))


def split_of(layers):
    return layers[0]['python_param']['param_str']['split']


def params_of(layer):
    """The param_str of a Python layer; tuples as the lists JSON knows."""
    return json.loads(json.dumps(ast.literal_eval(layer.python_param.param_str)))


def message(layer):
    """A layer of the facts as a LayerParameter, without its param_str."""
    layer = json.loads(json.dumps(layer))
    layer.get('python_param', {}).pop('param_str', None)
    return json_format.ParseDict(layer, caffe_pb2.LayerParameter())


def without_param_str(layer):
    layer = caffe_pb2.LayerParameter.FromString(layer.SerializeToString())
    if layer.HasField('python_param'):
        layer.python_param.ClearField('param_str')
    return layer


def assert_same_layers(net, expected):
    assert [layer.name for layer in net.layer] == [layer['name'] for layer in expected]
    for layer, wanted in zip(net.layer, expected):
        assert without_param_str(layer) == message(wanted)


@pytest.mark.parametrize('experiment, phase', PHASES)
def test_a_net_is_the_official_one(experiment, phase):
    expected = OFFICIAL[experiment][phase]
    net = module_of(experiment).fcn(split_of(expected))
    assert_same_layers(net, expected)
    assert params_of(net.layer[0]) == expected[0]['python_param']['param_str']


@pytest.mark.parametrize('experiment', OFFICIAL)
def test_a_deployed_net_is_the_official_one_between_data_and_loss(experiment):
    expected = OFFICIAL[experiment]['test_net']
    tops = [top for top in expected[0]['top'] if top not in ('label', 'sem', 'geo')]
    middle = [layer for layer in expected[1:] if layer['type'] != 'SoftmaxWithLoss']
    net = module_of(experiment).fcn('deploy')
    assert_same_layers(caffe_pb2.NetParameter(layer=net.layer[len(tops) :]), middle)
    for layer, top in zip(net.layer, tops):
        channels = 1 if top == 'depth' else 3
        assert (layer.type, layer.name, list(layer.top)) == ('Input', top, [top])
        assert list(layer.input_param.shape[0].dim) == [1, channels, 500, 500]


@pytest.mark.parametrize('experiment', OFFICIAL)
def test_a_narrow_net_differs_in_num_output_alone(experiment):
    full = module_of(experiment).fcn('deploy')
    narrow = module_of(experiment).fcn('deploy', width=6, fc=10)
    outputs = {layer.name: layer.convolution_param.num_output for layer in narrow.layer}
    assert next(count for name, count in outputs.items() if name.startswith('conv1')) == 6
    assert {count for name, count in outputs.items() if name.startswith(('fc6', 'fc7'))} == {10}
    for net in (full, narrow):
        for layer in net.layer:
            layer.convolution_param.ClearField('num_output')
    assert full == narrow


@pytest.mark.parametrize('experiment, phase', PHASES)
def test_the_places_of_the_data_can_be_given(experiment, phase):
    wanted = dict(OFFICIAL[experiment][phase][0]['python_param']['param_str'])
    places = {key: f'/somewhere/{key}' for key in wanted if key.endswith('_dir')}
    net = module_of(experiment).fcn(wanted['split'], **places)
    assert params_of(net.layer[0]) == wanted | places


def test_seg11valid_is_derived_from_sbd_only_when_asked_for():
    fcn = module_of('voc-fcn32s').fcn
    assert params_of(fcn('seg11valid', seg11valid_from='/sbd').layer[0])['sbdd_dir'] == '/sbd'
    assert params_of(fcn('train', seg11valid_from='/sbd').layer[0])['sbdd_dir'] != '/sbd'
    assert 'sbdd_dir' not in params_of(fcn('val', seg11valid_from='/sbd').layer[0])


# As scripts.


def files_of(experiment):
    """The two files the official solver names and the deploy net, and the split each is for."""
    solver = OFFICIAL[experiment]['solver']
    return {
        solver['train_net']: split_of(OFFICIAL[experiment]['train_net']),
        solver['test_net'][0]: split_of(OFFICIAL[experiment]['test_net']),
        'deploy.prototxt': 'deploy',
    }


def assert_written(folder, experiment):
    files = files_of(experiment)
    assert {path.name for path in folder.iterdir()} == set(files)
    for name, split in files.items():
        net = text_format.Parse((folder / name).read_text(), caffe_pb2.NetParameter())
        assert net == module_of(experiment).fcn(split)


@pytest.mark.parametrize('experiment', OFFICIAL)
def test_a_script_writes_the_files_the_official_solver_names(experiment, tmp_path, monkeypatch):
    path = ROOT / 'nets' / f'{experiment.replace("-", "_")}.py'
    monkeypatch.setattr(sys, 'argv', [str(path)])
    monkeypatch.setattr(sys, 'path', [str(path.parent), *sys.path])
    monkeypatch.delitem(sys.modules, '_checkout', raising=False)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name='__main__')
    assert sys.path[0] == str(ROOT)
    assert_written(tmp_path, experiment)


def run_script(name, *arguments, **settings):
    """Run a script of nets/ in a process that has imported the packages; status and errors."""
    run = starting.start_script(f'nets/{name}', *arguments, **settings)
    errors = run.communicate()[1]
    return run.returncode, errors


def test_a_script_runs_from_any_folder_and_tells_what_is_wrong(tmp_path):
    (tmp_path / 'here').mkdir()
    command = [sys.executable, str(ROOT / 'nets/voc_fcn32s.py')]
    subprocess.run([*command, '--output', '../out'], cwd=tmp_path / 'here', check=True)
    assert_written(tmp_path / 'out', 'voc-fcn32s')
    (tmp_path / 'file').touch()
    status, errors = run_script('voc_fcn32s.py', '--output', 'file', cwd=tmp_path)
    assert (status, errors) == (2, 'error: file: cannot be made: File exists\n')


def test_a_script_replaces_files_with_force_alone(tmp_path):
    (tmp_path / 'val.prototxt').write_text('mine')
    status, errors = run_script('voc_fcn32s.py', '--output', tmp_path)
    assert status == 2 and errors.endswith('--force replaces it\n')
    assert str(tmp_path / 'val.prototxt') in errors
    assert [path.read_text() for path in tmp_path.iterdir()] == ['mine']
    assert run_script('voc_fcn32s.py', '--output', tmp_path, '--force') == (0, '')
    assert_written(tmp_path, 'voc-fcn32s')


# The classifiers.


@pytest.mark.parametrize(
    'name, net',
    [
        ('bvlc_reference_caffenet', caffenet.classifier),
        ('bvlc_alexnet', caffenet.alexnet),
        ('bvlc_googlenet', googlenet.classifier),
    ],
)
def test_a_classifier_is_the_model_zoo_s(name, net):
    assert_same_layers(net(), ZOO[name])


def test_vgg16_s_trunk_is_that_of_the_fcn_but_for_the_padding():
    fcn = module_of('voc-fcn32s').fcn('deploy')
    net = vgg16.classifier()
    assert net.layer[1].convolution_param.pad == [1]
    net.layer[1].convolution_param.pad[0] = 100
    assert net.layer[1:32] == fcn.layer[1:32]
    assert net.layer[31].name == 'pool5'
    names = 'fc6 relu6 drop6 fc7 relu7 drop7 fc8 prob'.split()
    types = [*['InnerProduct', 'ReLU', 'Dropout'] * 2, 'InnerProduct', 'Softmax']
    assert [(layer.name, layer.type) for layer in net.layer[32:]] == list(zip(names, types))
    outputs = [layer.inner_product_param.num_output for layer in net.layer[32:39:3]]
    assert outputs == [4096, 4096, 1000]
    assert list(net.layer[0].input_param.shape[0].dim) == [10, 3, 224, 224]


@pytest.mark.parametrize(
    'net, convolutions',
    [
        (vgg16, dict(fc6=(7, 4096), fc7=(1, 4096), fc8=(1, 1000))),
        (caffenet, dict(fc6=(6, 4096), fc7=(1, 4096), fc8=(1, 1000))),
        (googlenet, {'loss3/classifier': (1, 1000)}),
    ],
)
def test_a_fully_convolutional_form_is_the_classifier_but_for_its_convolutions(net, convolutions):
    layers, before = (
        {layer.name: layer for layer in param.layer}
        for param in (net.fully_conv(), net.classifier())
    )
    assert list(layers) == list(before)
    assert [name for name in layers if layers[name] != before[name]] == ['data', *convolutions]
    for name, (size, outputs) in convolutions.items():
        new, old = layers[name], before[name]
        conv, product = new.convolution_param, old.inner_product_param
        assert (new.type, conv.kernel_size, conv.num_output) == ('Convolution', [size], outputs)
        assert {*conv.pad} <= {0} and {*conv.stride} <= {1}
        fillers = product.weight_filler, product.bias_filler
        assert (conv.weight_filler, conv.bias_filler) == fillers
        assert (new.bottom, new.top, [*new.param]) == (old.bottom, old.top, [*old.param])
