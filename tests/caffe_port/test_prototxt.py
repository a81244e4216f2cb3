"""Prototxts of every format, and what is none."""

import logging
import os

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from caffe_port import prototxt
from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel
from caffe_port.files.upgrade import V1_TYPES
from caffe_port.proto.caffe_pb2 import NetParameter, SolverParameter, V1LayerParameter
from caffe_port.prototxt.__main__ import main
from tests import starting
from tests.examples import examples
from tests.mutations import damaged
from tests.vectors import GOLDEN, load

LEGACY = GOLDEN / 'formats' / 'legacy_v1.prototxt'

V0 = """
name: "v0"
input: "data" input_dim: 1 input_dim: 3 input_dim: 9 input_dim: 9
layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "data" top: "pad1" }
layers { layer { name: "conv1" type: "conv" num_output: 4 kernelsize: 5 stride: 2 group: 2
                 biasterm: false weight_filler { type: "gaussian" std: 0.5 }
                 bias_filler { value: 0.25 } blobs_lr: 1 blobs_lr: 2 weight_decay: 1 }
         bottom: "pad1" top: "conv1" }
layers { layer { name: "relu1" type: "relu" } bottom: "conv1" top: "conv1" }
layers { layer { name: "pool1" type: "pool" pool: AVE kernelsize: 3 stride: 2 pad: 1 }
         bottom: "conv1" top: "pool1" }
layers { layer { name: "norm1" type: "lrn" local_size: 3 alpha: 0.5 beta: 0.25 k: 2 }
         bottom: "pool1" top: "norm1" }
layers { layer { name: "cat" type: "concat" concat_dim: 2 } bottom: "norm1" bottom: "pool1"
         top: "cat" }
layers { layer { name: "drop" type: "dropout" dropout_ratio: 0.75 } bottom: "cat" top: "cat" }
layers { layer { name: "fc" type: "innerproduct" num_output: 7 biasterm: true
                 weight_filler { type: "xavier" } bias_filler { value: 1 } }
         bottom: "cat" top: "fc" }
layers { layer { name: "db" type: "data" source: "a" batchsize: 8 rand_skip: 3 scale: 0.5
                 meanfile: "m" cropsize: 5 mirror: true } top: "x" }
layers { layer { name: "pics" type: "images" source: "b" batchsize: 9 rand_skip: 4
                 shuffle_images: true new_height: 6 new_width: 7 } top: "y" top: "z" }
layers { layer { name: "h5" type: "hdf5_data" source: "c" batchsize: 10 } top: "h" }
layers { layer { name: "win" type: "window_data" source: "d" batchsize: 11
                 det_fg_threshold: 0.75 det_bg_threshold: 0.25 det_fg_fraction: 0.125
                 det_context_pad: 16 det_crop_mode: "square" } top: "w" }
layers { layer { name: "gain" type: "infogain_loss" source: "e" } bottom: "y" bottom: "z" }
layers { layer { name: "out" type: "hdf5_output" hdf5_output_param { file_name: "f" } }
         bottom: "fc" }
layers { layer { name: "loss" type: "softmax_loss" } bottom: "fc" bottom: "z" }
"""
V0_UPGRADED = """
name: "v0"
layer { name: "input" type: "Input" top: "data" input_param { shape { dim: [1, 3, 9, 9] } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 }
        convolution_param { num_output: 4 pad: 2 kernel_size: 5 stride: 2 group: 2 bias_term: false
                            weight_filler { type: "gaussian" std: 0.5 }
                            bias_filler { value: 0.25 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1"
        lrn_param { local_size: 3 alpha: 0.5 beta: 0.25 k: 2 } }
layer { name: "cat" type: "Concat" bottom: "norm1" bottom: "pool1" top: "cat"
        concat_param { concat_dim: 2 } }
layer { name: "drop" type: "Dropout" bottom: "cat" top: "cat"
        dropout_param { dropout_ratio: 0.75 } }
layer { name: "fc" type: "InnerProduct" bottom: "cat" top: "fc"
        inner_product_param { num_output: 7 bias_term: true weight_filler { type: "xavier" }
                              bias_filler { value: 1 } } }
layer { name: "db" type: "Data" top: "x"
        data_param { source: "a" batch_size: 8 rand_skip: 3 }
        transform_param { scale: 0.5 mean_file: "m" crop_size: 5 mirror: true } }
layer { name: "pics" type: "ImageData" top: "y" top: "z"
        image_data_param { source: "b" batch_size: 9 rand_skip: 4 shuffle: true
                           new_height: 6 new_width: 7 } }
layer { name: "h5" type: "HDF5Data" top: "h" hdf5_data_param { source: "c" batch_size: 10 } }
layer { name: "win" type: "WindowData" top: "w"
        window_data_param { source: "d" batch_size: 11 fg_threshold: 0.75 bg_threshold: 0.25
                            fg_fraction: 0.125 context_pad: 16 crop_mode: "square" } }
layer { name: "gain" type: "InfogainLoss" bottom: "y" bottom: "z"
        infogain_loss_param { source: "e" } }
layer { name: "out" type: "HDF5Output" bottom: "fc" hdf5_output_param { file_name: "f" } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "z" }
"""


def assert_upgrades(old: str, new: str) -> None:
    expected = text_format.Parse(new, NetParameter())
    assert prototxt.to_text(prototxt.parse_net(old)) == prototxt.to_text(expected)


def refused(text: str, solver: bool = False) -> str:
    with pytest.raises(CaffeError) as caught:
        (prototxt.parse_solver if solver else prototxt.parse_net)(text, 'my.prototxt')
    assert str(caught.value).startswith('my.prototxt') and '\n' not in str(caught.value)
    return str(caught.value)


def file_refused(path) -> str:
    for read in (prototxt.read_solver, prototxt.read_net):
        with pytest.raises(CaffeError) as caught:
            read(path)
        assert str(path) in str(caught.value)
    return str(caught.value)


# Upgrades.


def test_v1_prototxt_upgrades_to_what_caffe_made_of_it():
    expected = caffemodel.read_net(GOLDEN / 'formats' / 'legacy_v1_upgraded.caffemodel')
    for layer in expected.layer:
        layer.ClearField('phase')
    assert prototxt.read_net(LEGACY) == expected


def test_v0_fields_move_to_their_layers_messages_and_padding_is_folded():
    assert_upgrades(V0, V0_UPGRADED)


def test_padding_folds_into_a_pooling_layer_too():
    net = prototxt.parse_net(
        'input: "d" layers { layer { name: "p" type: "padding" pad: 3 } '
        'bottom: "d" top: "p" } layers { layer { name: "q" type: "pool" } '
        'bottom: "p" top: "q" }'
    )
    assert [layer.name for layer in net.layer] == ['q']
    assert net.layer[0].pooling_param.pad == 3 and list(net.layer[0].bottom) == ['d']


@pytest.mark.parametrize(
    'layer, words',
    [
        ('layer { name: "x" type: "relu" } bottom: "p" top: "x"', 'x: padding layer "p" feeds'),
        (
            'layer { name: "x" type: "conv" } bottom: "p" bottom: "d" top: "x"',
            'x: expected one bottom',
        ),
        ('layer { name: "x" type: "conv" } bottom: "q" top: "x"', 'x: unknown bottom "q"'),
        ('layer { name: "x" type: "tanhh" } top: "x"', 'x: unknown V0 layer type "tanhh"'),
        ('name: "x" type: RELU top: "x"', 'x: a V1 layer in a V0 net'),
    ],
)
def test_v0_nets_that_caffe_refuses(layer, words):
    text = (
        'input: "d" layers { layer { name: "p" type: "padding" pad: 1 } '
        'bottom: "d" top: "p" } layers { %s }'
    )
    assert words in refused(text % layer)


def test_v0_field_of_another_type_is_dropped_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, 'caffe_port'):
        assert_upgrades(
            'layers { layer { name: "r" type: "relu" stride: 2 } }',
            'layer { name: "r" type: "ReLU" }',
        )
    assert 'r: stride means nothing' in caplog.text


def test_every_v1_type_has_its_string():
    assert set(V1_TYPES) == set(V1LayerParameter.LayerType.keys())
    for name, string in V1_TYPES.items():
        net = prototxt.parse_net(f'layers {{ name: "x" type: {name} }}')
        assert net.layer[0].type == string
        assert string.upper().replace('WITH', '') == name.replace('_', '').replace('NONE', '')


def test_v1_shares_rates_and_decays_become_params():
    assert_upgrades(
        """layers { name: "a" type: CONVOLUTION param: "w" param: "b"
                    blob_share_mode: PERMISSIVE blob_share_mode: STRICT
                    blobs_lr: 1 blobs_lr: 2 blobs_lr: 0 weight_decay: 0 loss_weight: 0.5
                    include { phase: TEST min_level: 1 } exclude { stage: "s" } }""",
        """layer { name: "a" type: "Convolution" loss_weight: 0.5
                   param { name: "w" share_mode: PERMISSIVE lr_mult: 1 decay_mult: 0 }
                   param { name: "b" share_mode: STRICT lr_mult: 2 } param { lr_mult: 0 }
                   include { phase: TEST min_level: 1 } exclude { stage: "s" } }""",
    )


@pytest.mark.parametrize(
    'old, new, param',
    [
        ('DATA', 'Data', 'data_param'),
        ('IMAGE_DATA', 'ImageData', 'image_data_param'),
        ('WINDOW_DATA', 'WindowData', 'window_data_param'),
    ],
)
def test_v1_data_layers_give_their_transformation_to_transform_param(old, new, param):
    assert_upgrades(
        f"""layers {{ name: "d" type: {old} {param} {{ source: "s" scale: 0.5 mean_file: "m"
                      crop_size: 7 mirror: true }} transform_param {{ mean_value: 3 }} }}""",
        f'''layer {{ name: "d" type: "{new}" {param} {{ source: "s" }} transform_param {{
                     scale: 0.5 mean_file: "m" crop_size: 7 mirror: true mean_value: 3 }} }}''',
    )


def test_current_data_layers_keep_their_fields_as_in_caffe():
    text = 'layer { name: "d" type: "Data" data_param { scale: 0.5 } }'
    assert prototxt.parse_net(text).layer[0].data_param.scale == 0.5


@pytest.mark.parametrize(
    'shapes',
    [
        'input_dim: [1, 3, 4, 5, 6, 1, 1, 1]',
        'input_dim: [1, 3, 4, 5, 6, 1, 1, 1, 7, 7, 7, 7]',
        'input_shape { dim: [1, 3, 4, 5] } input_shape { dim: [6, 1, 1, 1] }',
        'input_shape { dim: [1, 3, 4, 5] } input_shape { dim: [6, 1, 1, 1] } input_dim: 9',
    ],
)
def test_inputs_become_one_layer_at_the_front(shapes):
    assert_upgrades(
        f'input: "a" input: "b" {shapes} layer {{ name: "x" type: "ReLU" bottom: "a" top: "a" }}',
        """layer { name: "input" type: "Input" top: "a" top: "b"
                   input_param { shape { dim: [1, 3, 4, 5] } shape { dim: [6, 1, 1, 1] } } }
           layer { name: "x" type: "ReLU" bottom: "a" top: "a" }""",
    )


def test_inputs_without_shapes_are_dropped_as_in_caffe():
    assert_upgrades('name: "n" input: "a" layer { name: "x" }', 'name: "n" layer { name: "x" }')


@pytest.mark.parametrize(
    'shapes',
    ['input_dim: [1, 3, 4, 5]', 'input_dim: [1, 1, 1, 1, 1, 1, 1]', 'input_shape { dim: 1 }'],
)
def test_inputs_without_enough_shapes_are_refused(shapes):
    assert 'each of 2 inputs' in refused(f'input: "a" input: "b" {shapes}')


def test_batch_norm_with_three_params_is_frozen():
    assert_upgrades(
        """layer { name: "a" type: "BatchNorm" param { lr_mult: 1 } param { name: "v" } param { } }
           layer { name: "b" type: "BatchNorm" param { lr_mult: 1 } }""",
        """layer { name: "a" type: "BatchNorm" param { lr_mult: 0 decay_mult: 0 }
                   param { name: "v" lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 } }
           layer { name: "b" type: "BatchNorm" param { lr_mult: 1 } }""",
    )


def test_layers_of_two_formats_in_one_net_are_refused():
    assert '`layer`' in refused('layers { name: "a" type: RELU } layer { name: "b" type: "ReLU" }')


def test_upgrade_leaves_its_argument_alone():
    net = NetParameter(input=['a'], input_dim=[1, 1, 1, 1])
    net.layers.add(name='x', type=V1LayerParameter.RELU)
    before = net.SerializeToString()
    assert [layer.type for layer in prototxt.upgrade_net(net).layer] == ['Input', 'ReLU']
    assert net.SerializeToString() == before


@pytest.mark.parametrize(
    'number, string', list(enumerate(['SGD', 'Nesterov', 'AdaGrad', 'RMSProp', 'AdaDelta', 'Adam']))
)
def test_solver_types_become_strings(number, string):
    solver = prototxt.parse_solver(f'net: "n" solver_type: {number}')
    assert solver == SolverParameter(net='n', type=string)


def test_solver_with_both_kinds_of_type_is_refused():
    assert '`solver_type`' in refused('type: "SGD" solver_type: SGD', solver=True)


def test_nets_within_a_solver_are_upgraded():
    net = '{ layers { name: "a" type: RELU } }'
    solver = prototxt.parse_solver(f'net_param {net} train_net_param {net} test_net_param {net}')
    for param in (solver.net_param, solver.train_net_param, solver.test_net_param[0]):
        assert param.layer[0].type == 'ReLU' and not param.layers


# Text.


@pytest.mark.parametrize('name', ['conv_k5s2p2g2', 'scale_bias', 'loss_default', 'lrn_within'])
def test_text_of_a_net_says_the_same_net(name):
    net = prototxt.parse_net(str(load(f'layers/{name}.npz')['prototxt']))
    assert prototxt.parse_net(prototxt.to_text(net)) == net


def test_lists_comments_strings_and_any_script_are_read(tmp_path):
    path = tmp_path / 'netz.prototxt'
    braces = '{<' * 40
    path.write_text(
        f'# ü {braces} "\nname: "größe \\"{braces}" \'{braces} 日本\' # }}\n'
        'layer < name: "a" crop_param { offset: [1, 2] } >',
        encoding='utf-8',
    )
    net = prototxt.read_net(path)
    assert net.name == f'größe "{braces}{braces} 日本'
    assert list(net.layer[0].crop_param.offset) == [1, 2]
    prototxt.write(net, path)
    assert '日本' in path.read_text(encoding='utf-8') and prototxt.read_net(path) == net


def test_write_replaces_a_file_whole_or_leaves_it(tmp_path):
    path = tmp_path / 'a.prototxt'
    path.write_text('name: "old"')
    prototxt.write(NetParameter(name='new'), path)
    assert path.read_text() == 'name: "new"\n'
    (tmp_path / 'folder').mkdir()
    for target in (tmp_path / 'folder', tmp_path / 'none' / 'a.prototxt'):
        with pytest.raises(CaffeError, match=target.name):
            prototxt.write(NetParameter(name='new'), target)
    assert sorted(os.listdir(tmp_path)) == ['a.prototxt', 'folder']


# Refusals.


@pytest.mark.parametrize(
    'text, words',
    [
        ('layer {\n  name: "a"\n  kernle: 3\n}', 'my.prototxt:3:3: '),
        ('layer { convolution_param { kernle: 3 } }', '"kernle"'),
        ('layer { name: "a"', 'my.prototxt:1:'),
        ('layer { name: "a }', 'my.prototxt:1:'),
        ('layer { phase: DEPLOY }', 'DEPLOY'),
        ('input_dim: 99999999999', '99999999999'),
        ('name: "a" name: "b"', '"name"'),
        ('layer { name: "c" clip_param { min: 1 } }', 'clip_param.max'),
        ('', 'holds nothing'),
        ('\n # nothing\n', 'holds nothing'),
        ('[type.googleapis.com/caffe_port.NetParameter] { }', 'my.prototxt'),
        ('layer { ' * 50_000, 'no field named "layer"'),
        ('layer < ' * 50_000, 'no field named "layer"'),
        ('layer{}' * 140_000, 'more than 131072 messages'),
        ('layer{}' * 10_001, '10001 layers, expected at most 10000'),
        ('layers{}' * 10_001, '10001 layers, expected at most 10000'),
        ('"' * 100_000, 'my.prototxt:1:'),
        ('name: "' + '\\"' * 100_000, 'my.prototxt:1:'),
    ],
)
def test_what_is_no_net_is_refused_with_its_place(text, words):
    assert words in refused(text)


RELU = 'layer { name: "r" type: "ReLU" }\n'


@pytest.mark.parametrize(
    'text, place, name, type_',
    [
        (
            'layer { name: "perm" type: "Permute" param { name: "w" }\n'
            '  permute_param { order: [0, 2] x { y: "}" } } }',
            '3:3',
            'perm',
            'Permute',
        ),
        (
            "layer < roi_pooling_param { pooled_w: 7 } # }\n name: 'roi' type: 'ROIPooling' >",
            '2:9',
            'roi',
            'ROIPooling',
        ),
        ('layers { name: "c" bottom: "}" type: CROPP }', '2:38', 'c', 'CROPP'),
    ],
)
def test_settings_that_no_message_has_name_the_layer_and_its_type(text, place, name, type_):
    for before, after in ((RELU, ''), (RELU, '\n' + RELU), ('#{\n', '\nstate { }')):
        words = refused(before + text + after)
        assert words.startswith(f'my.prototxt:{place}: {name} ({type_}): ')
    words = refused('net_param {\n' + text + ' }', solver=True)
    assert words.startswith(f'my.prototxt:{place}: {name} ({type_}): ')


@pytest.mark.parametrize(
    'text, words',
    [
        (
            'layer { name: "drop6" type: "Dropout" dropout_param { scale_train: true } }',
            'my.prototxt:2:55: drop6 (Dropout): Message type "DropoutParameter" has no field',
        ),
        (
            'layers { name: "c" type: CONVOLUTION kernle: 3 }',
            'my.prototxt:2:38: c (CONVOLUTION): Message type "V1LayerParameter" has no field',
        ),
        (
            'layer { name: "d" type: "Data" data_param { sauce: "x" } }',
            ':2:45: d (Data): Message type "Data',
        ),
        ('layer { name: "p" type: "Permute" top: }', ':2:40: p (Permute): '),
        ('layer { name: "p" type: "Permute" }\nnam: 3', ':3:1: Message type "NetParameter" has no'),
        ('nam: 3 layer { name: "p" type: "Permute" }', ':2:1: Message type "NetParameter" has no'),
        ('state { phase: DEPLOY }', "my.prototxt:2:16: 'state {"),
    ],
)
def test_other_faults_name_the_layer_they_are_in(text, words):
    assert words in refused(RELU + text)


def test_unknown_field_of_a_solver_is_refused_with_its_place():
    assert 'my.prototxt:2:1' in refused('net: "a"\nbase_rl: 1', solver=True)


@pytest.mark.parametrize(
    'name, words',
    [
        ('formats/legacy_v1.caffemodel', 'a .caffemodel'),
        ('solver/snapshot_iter_4.caffemodel', 'a .caffemodel'),
        ('solver/snapshot_iter_4.solverstate', 'a .solverstate'),
        ('formats/mean.binaryproto', 'a .binaryproto'),
        ('solver/step.npz', 'a zip archive'),
        ('', 'a directory'),
        ('none', 'No such file'),
    ],
)
def test_other_files_are_refused_and_named_for_what_they_are(name, words):
    assert words in file_refused(GOLDEN / name)


@pytest.mark.parametrize(
    'data, words',
    [
        (b'', 'empty'),
        (b'\xff\xd8\xff\xe0' + bytes(100), 'a JPEG image'),
        (b'\x89PNG\r\n\x1a\n' + bytes(100), 'a PNG image'),
        (b'\x89HDF\r\n\x1a\n' + bytes(100), 'an HDF5 file'),
        (bytes(range(256)), 'binary data'),
        (b'name: "a"\n' * 500 + b'# gr\xfc\xdfe\n', ':501: not UTF-8'),
        (b'name: "a"\n\0', 'binary data'),
    ],
)
def test_other_bytes_are_refused_and_named_for_what_they_are(tmp_path, data, words):
    path = tmp_path / 'x.prototxt'
    path.write_bytes(data)
    assert words in file_refused(path)


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / 'x.prototxt')
    assert 'no regular file' in file_refused(tmp_path / 'x.prototxt')


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / 'x.prototxt'
    with open(path, 'wb') as file:
        file.truncate(1 << 40)
    assert 'a prototxt has at most' in file_refused(path)


@examples(250)
@given(damaged([LEGACY.read_bytes(), V0.encode(), V0_UPGRADED.encode()]))
def test_damaged_prototxts_give_a_net_or_caffe_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'damaged.prototxt'
    path.write_bytes(data)
    try:
        net = prototxt.read_net(path)
    except CaffeError as error:
        assert '\n' not in str(error)
    else:
        prototxt.to_text(net)


@examples(150)
@given(st.text(st.sampled_from('layernm{}<>[]:;,"\'\\#-.0159e \n\x00é'), max_size=60))
def test_any_text_gives_a_net_or_caffe_error(text):
    for parse in (prototxt.parse_net, prototxt.parse_solver):
        try:
            parse(text)
        except CaffeError as error:
            assert '\n' not in str(error)


# The command.


def test_command_upgrades_and_refuses_to_overwrite(tmp_path, capsys):
    target = tmp_path / 'new.prototxt'
    assert main([str(LEGACY), str(target)]) == 0
    assert prototxt.read_net(target) == prototxt.read_net(LEGACY)
    target.write_text('name: "mine"')
    assert main([str(LEGACY), str(target)]) == 2
    assert capsys.readouterr().err == f'error: {target}: exists; --force replaces it\n'
    assert target.read_text() == 'name: "mine"'
    assert main([str(LEGACY), str(target), '--force']) == 0
    assert 'type: "ReLU"' in target.read_text()


def test_command_upgrades_a_solver_to_standard_output(tmp_path, capsys):
    (tmp_path / 's').write_text('net: "n" solver_type: ADAM')
    assert main(['--solver', str(tmp_path / 's')]) == 0
    assert capsys.readouterr().out == 'net: "n"\ntype: "Adam"\n'


def test_command_runs_as_a_module_and_says_what_is_wrong_in_one_line():
    code = 'import runpy; runpy.run_module("caffe_port.prototxt", run_name="__main__")'
    run = starting.start(code, 'none.prototxt')
    assert run.communicate() == ('', 'error: none.prototxt: No such file or directory\n')
    assert run.returncode == 2
