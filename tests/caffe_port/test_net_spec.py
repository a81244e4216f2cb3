"""NetSpec writes the nets that pycaffe's writes, and refuses a mistake where it is made."""

import copy
import pickle

import pytest
from google.protobuf import text_format

from caffe_port.errors import CaffeError
from caffe_port.net_spec import NetSpec, to_proto
from caffe_port.net_spec import layers as L
from caffe_port.net_spec import params as P
from caffe_port.proto import caffe_pb2


def net(text):
    return text_format.Parse(text, caffe_pb2.NetParameter())


def image():
    return L.Input(shape=dict(dim=[1, 3, 8, 8]))


def only(top):
    """The last layer of the net that computes `top`."""
    return top.to_proto().layer[-1]


def test_a_net_is_what_its_prototxt_says():
    n = NetSpec()
    n.data, n.label = L.Python(
        module='voc_layers', layer='VOCSegDataLayer', ntop=2, param_str="{'split': 'val'}"
    )
    n.conv1 = L.Convolution(
        n.data,
        kernel_size=3,
        num_output=64,
        pad=1,
        weight_filler=dict(type='xavier'),
        param=[dict(lr_mult=1, decay_mult=1), dict(lr_mult=2, decay_mult=0)],
    )
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.AVE, kernel_size=2, stride=2)
    n.loss = L.SoftmaxWithLoss(n.pool1, n.label, loss_param=dict(ignore_label=255))
    assert n.to_proto() == net("""
        layer { name: "data" type: "Python" top: "data" top: "label" python_param {
            module: "voc_layers" layer: "VOCSegDataLayer" param_str: "{'split': 'val'}" } }
        layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
            param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
            convolution_param { num_output: 64 pad: 1 kernel_size: 3
                weight_filler { type: "xavier" } } }
        layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
        layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
            pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "pool1" bottom: "label" top: "loss"
            loss_param { ignore_label: 255 } }""")


def test_items_and_attributes_are_the_same_tops():
    n = NetSpec()
    n['conv1/7x7'] = image()
    n.data = n['conv1/7x7']
    assert n.data is n['data'] is n['conv1/7x7']
    assert list(n.tops) == ['conv1/7x7', 'data']
    del n['conv1/7x7']
    del n.data
    assert not n.tops
    with pytest.raises(AttributeError, match='data'):
        del n.data


def test_layers_come_in_the_order_of_assignment_but_after_what_they_read():
    n = NetSpec()
    n.sum = L.Eltwise(L.ReLU(image()), L.TanH(image()))
    n.late = L.Sigmoid(n.sum)
    assert [layer.type for layer in n.to_proto().layer] == [
        'Input',
        'ReLU',
        'Input',
        'TanH',
        'Eltwise',
        'Sigmoid',
    ]


def test_unnamed_tops_are_numbered_by_type_and_a_layer_has_its_first_top_s_name():
    data, label = L.Data(ntop=2)
    proto = to_proto(L.ReLU(data), L.ReLU(label))
    assert [(layer.name, list(layer.top)) for layer in proto.layer] == [
        ('Data1', ['Data1', 'Data2']),
        ('ReLU1', ['ReLU1']),
        ('ReLU2', ['ReLU2']),
    ]


def test_a_name_given_is_the_layer_s_and_not_the_top_s():
    n = NetSpec()
    n.score = L.ReLU(image(), name='last')
    assert (n.to_proto().layer[1].name, n.to_proto().layer[1].top) == ('last', ['score'])


def test_in_place_layers_write_on_their_bottom_and_later_ones_read_it():
    n = NetSpec()
    n.data = image()
    n.drop = L.Dropout(L.ReLU(n.data, in_place=True), in_place=True)
    n.out = L.TanH(n.drop)
    assert [(layer.name, list(layer.bottom), list(layer.top)) for layer in n.to_proto().layer] == [
        ('data', [], ['data']),
        ('ReLU1', ['data'], ['data']),
        ('drop', ['data'], ['data']),
        ('out', ['data'], ['out']),
    ]


def test_a_shared_layer_is_written_once():
    data = image()
    assert len(to_proto(data, data, L.Eltwise(data, data)).layer) == 2


def test_ntop_0_gives_the_layer_and_can_be_assigned():
    n = NetSpec()
    n.data = image()
    n.silence = L.Silence(n.data, ntop=0)
    assert (
        n.to_proto().layer[1]
        == net('layer { name: "silence" type: "Silence" bottom: "data" }').layer[0]
    )


def test_tops_know_their_layer_and_their_number():
    data, label = L.Data(ntop=2, batch_size=3)
    assert (data.fn, data.n, label.n) == (label.fn, 0, 1)
    assert (data.fn.type_name, data.fn.params, data.fn.ntop) == ('Data', {'batch_size': 3}, 2)
    assert L.ReLU(label).fn.inputs == (label,)


def test_update_changes_the_settings_of_a_layer():
    conv = L.Convolution(image(), num_output=2, kernel_size=1)
    conv._update({'num_output': 5})
    assert only(conv).convolution_param.num_output == 5


@pytest.mark.parametrize(
    'layer_type, settings, expected',
    [
        (
            'Convolution',
            dict(num_output=2, kernel_size=[3, 5]),
            'convolution_param { num_output: 2 kernel_size: 3 kernel_size: 5 }',
        ),
        (
            'Deconvolution',
            dict(num_output=2, stride=2),
            'convolution_param { num_output: 2 stride: 2 }',
        ),
        (
            'Deconvolution',
            dict(convolution_param=dict(bias_term=False)),
            'convolution_param { bias_term: false }',
        ),
        (
            'SoftmaxWithLoss',
            dict(normalize=False, axis=2, loss_weight=0.5),
            'loss_weight: 0.5 loss_param { normalize: false } softmax_param { axis: 2 }',
        ),
        (
            'MemoryData',
            dict(batch_size=4, mirror=True),
            'memory_data_param { batch_size: 4 } transform_param { mirror: true }',
        ),
        ('LSTM', dict(num_output=4), 'recurrent_param { num_output: 4 }'),
        ('HDF5Data', dict(source='list'), 'hdf5_data_param { source: "list" }'),
        ('BatchNorm', dict(use_global_stats=True), 'batch_norm_param { use_global_stats: true }'),
        ('LRN', dict(local_size=3), 'lrn_param { local_size: 3 }'),
        ('Crop', dict(axis=2, offset=(3, 4)), 'crop_param { axis: 2 offset: 3 offset: 4 }'),
        ('Pooling', dict(pool='AVE'), 'pooling_param { pool: AVE }'),
        (
            'ReLU',
            dict(include=dict(phase=1), propagate_down=False),
            'include { phase: TEST } propagate_down: false',
        ),
        ('Unheard', dict(convolution_param=dict(group=2)), 'convolution_param { group: 2 }'),
    ],
)
def test_settings_go_to_the_message_that_knows_them(layer_type, settings, expected):
    wanted = text_format.Parse(expected, caffe_pb2.LayerParameter(type=layer_type))
    assert getattr(L, layer_type)(image(), **settings).fn.settings() == wanted


def test_messages_may_be_given_as_messages():
    filler = caffe_pb2.FillerParameter(type='msra')
    conv = L.Convolution(image(), weight_filler=filler, param=[caffe_pb2.ParamSpec(lr_mult=0)])
    assert only(conv).convolution_param.weight_filler == filler
    assert only(conv).param[0].lr_mult == 0


def test_params_are_the_enum_values():
    assert P.Pooling.AVE == caffe_pb2.PoolingParameter.AVE
    assert P.Eltwise.MAX == caffe_pb2.EltwiseParameter.MAX


@pytest.mark.parametrize(
    'settings, told',
    [
        (dict(kernle_size=3), "^Convolution: unknown setting 'kernle_size'.*convolution_param"),
        (dict(name='c1', kernle_size=3), '^Convolution c1: unknown setting'),
        (
            dict(convolution_param=dict(size=3)),
            "^Convolution: ConvolutionParameter has no field 'size'; it has num_output, ",
        ),
        (dict(param=[dict(lr=1)]), "^Convolution: ParamSpec has no field 'lr'"),
        (dict(weight_filler='xavier'), "^Convolution: weight_filler cannot be 'xavier'"),
        (dict(param=1), '^Convolution: param cannot be 1'),
        (dict(pad=-1), '^Convolution: pad cannot be -1'),
        (dict(kernel_size='three'), "^Convolution: kernel_size cannot be 'three'"),
        (dict(num_output=None), '^Convolution: num_output cannot be None'),
        (dict(engine='FASTER'), "^Convolution: engine cannot be 'FASTER'"),
        (dict(ntop=-1), '^Convolution: ntop must be a count, got -1'),
        (
            dict(in_place=True, ntop=2),
            '^Convolution: in_place needs a bottom for every top, got 1 for 2',
        ),
    ],
)
def test_a_wrong_setting_is_refused_where_it_is_written(settings, told):
    with pytest.raises(CaffeError, match=told):
        L.Convolution(image(), **settings)


def test_a_bottom_that_is_no_top_is_a_type_error_as_in_pycaffe():
    pair = L.Data(ntop=2)
    told = r"^Silence input 0 is not a Top \(type is <class 'tuple'>\)$"
    with pytest.raises(TypeError, match=told):
        L.Silence(pair, ntop=0)
    with pytest.raises(CaffeError, match=told):
        L.Silence(pair, ntop=0)


def test_only_tops_can_be_assigned():
    n = NetSpec()
    with pytest.raises(CaffeError, match='data: expected a Top, got tuple'):
        n.data = L.Data(ntop=2)


def test_a_missing_top_is_named_with_those_there_are():
    n = NetSpec()
    n.data = image()
    with pytest.raises(AttributeError, match="no top 'dat'; it has data"):
        print(n.dat)
    assert not hasattr(n, 'label')


def test_a_net_deeper_than_pythons_call_stack_is_written():
    top = image()
    for _ in range(5000):
        top = L.ReLU(top)
    assert len(top.to_proto().layer) == 5001


def test_a_net_spec_can_be_copied():
    n = NetSpec()
    n.data = image()
    for twin in (copy.deepcopy(n), pickle.loads(pickle.dumps(n))):
        assert twin.to_proto() == n.to_proto()
