"""What layers make of their settings: sources, refusals, and that every field counts."""

import inspect
import re

import numpy as np
import pytest

import caffe_port as caffe
from caffe_port.files.upgrade import V1_TYPES
from caffe_port.ops import LAYER_TYPES, Op, common, loss
from tests.formulas import X, layer_net
from tests.vectors import FACTS, net_of

# Sources.


def dummy(settings: str, tops: int = 2) -> caffe.Net:
    names = ' '.join(f'top: "t{i}"' for i in range(tops))
    return net_of(
        f'layer {{ name: "d" type: "DummyData" {names} dummy_data_param {{ {settings} }} }}'
    )


def test_dummy_data_takes_dims_and_fillers_once_or_per_top():
    out = dummy(
        'num: 2 channels: 3 channels: 4 height: 1 width: 5 width: 6 data_filler { value: 7 }'
    ).forward()
    assert out['t0'].shape == (2, 3, 1, 5) and out['t1'].shape == (2, 4, 1, 6)
    assert (out['t1'] == 7).all()
    out = dummy('shape { dim: 3 } data_filler { value: 1 } data_filler { value: 2 }').forward()
    assert out['t0'].tolist() == [1] * 3 and out['t1'].tolist() == [2] * 3
    assert not dummy('shape { dim: 3 }').forward()['t0'].any()


@pytest.mark.parametrize(
    'settings',
    [
        'shape { dim: 1 } num: 1',
        'num: 1',
        '',
        'shape { dim: 1 } shape { dim: 1 } shape { dim: 1 }',
        'num: 1 channels: 1 height: 1',
        'shape { dim: 1 } ' + 'data_filler { } ' * 3,
    ],
)
def test_dummy_data_of_unclear_shape_is_refused(settings):
    with pytest.raises(caffe.CaffeError, match=r'^d \(DummyData\): '):
        dummy(settings)


def test_dummy_data_draws_anew_unless_constant():
    net = dummy('shape { dim: 50 } data_filler { type: "gaussian" } data_filler { value: 3 }')
    one = net.forward()['t0'].copy()
    assert not np.array_equal(net.forward()['t0'], one)
    assert (net.blobs['t1'].data == 3).all()


def test_constant_dummy_data_stands_before_the_first_forward_and_keeps_what_is_written():
    net = dummy('shape { dim: 2 } data_filler { value: 3 }')
    assert net.blobs['t0'].data.tolist() == [3, 3]
    net.blobs['t0'].data[0] = 7
    assert net.forward()['t0'].tolist() == [7, 3] and net.blobs['t1'].data.tolist() == [3, 3]


# What layers refuse.


@pytest.mark.parametrize(
    'type_, settings, message',
    [
        ('Clip', '', 'needs min and max|min'),
        ('Clip', 'clip_param { min: 1 max: 0 }', 'must not exceed'),
        ('Log', 'log_param { base: 1 }', 'base 1'),
        ('Exp', 'exp_param { base: 0 }', 'base 0'),
        ('Dropout', 'dropout_param { dropout_ratio: 1 }', r'\[0, 1\)'),
        ('Pooling', 'pooling_param { kernel_size: 3 kernel_h: 3 kernel_w: 3 }', 'not both'),
        ('Pooling', 'pooling_param { kernel_size: 2 pad: 2 }', 'smaller than kernel'),
        (
            'Pooling',
            'pooling_param { kernel_size: 2 pad: 1 pool: STOCHASTIC }',
            'STOCHASTIC takes no pad',
        ),
        ('Pooling', 'pooling_param { global_pooling: true kernel_size: 2 }', 'no kernel size'),
        ('Pooling', 'pooling_param { global_pooling: true pad: 1 }', 'pad 0 and stride 1'),
        (
            'Convolution',
            'convolution_param { num_output: 2 kernel_size: 1 kernel_h: 2 kernel_w: 2 }',
            'not both',
        ),
        (
            'Convolution',
            'convolution_param { num_output: 2 kernel_size: 1 pad: 1 pad: 1 pad: 1 }',
            '3 values of pad for 2',
        ),
        ('Convolution', 'convolution_param { num_output: 2 kernel_size: 1 group: 2 }', '2 groups'),
        ('LRN', 'lrn_param { local_size: 4 }', 'must be odd'),
        ('Slice', 'slice_param { slice_point: 1 }', '1 slice_point for 1 tops'),
        ('Softmax', 'softmax_param { axis: 4 }', 'axis 4 is outside'),
        ('Reshape', 'reshape_param { shape { dim: 7 } }', 'does not reshape'),
        ('Reshape', 'reshape_param { shape { dim: -1 dim: -1 } }', 'one may be -1'),
        ('Flatten', 'flatten_param { axis: 2 end_axis: 1 }', 'comes after'),
        ('ArgMax', 'argmax_param { top_k: 61 }', 'top_k 61 must be 1 to 60'),
        ('BatchNorm', 'param { lr_mult: 1 }', 'lr_mult must be 0'),
        ('Tile', '', 'tiles 0 must be positive'),
        ('InnerProduct', '', 'num_output must be positive'),
        ('Scale', 'scale_param { num_axes: 4 }', 'exceeds bottom'),
    ],
)
def test_settings_that_caffe_refuses_are_refused(type_, settings, message):
    with pytest.raises(caffe.CaffeError, match=rf'layer \({type_}\): .*({message})'):
        layer_net(type_, settings, [X])


# Fields that choose between implementations of one result.
HARMLESS = {'engine', 'force_nd_im2col', 'stable_prod_grad', 'share_in_parallel', 'debug_info'}
# Those that moved to transform_param: files/upgrade.py moves them there.
MOVED = {'scale', 'mean_file', 'crop_size', 'mirror'}
# Those that Caffe 1.0 does not use either.
UNUSED = {
    'Im2col': {'num_output', 'bias_term', 'group', 'weight_filler', 'bias_filler'},
    'Data': MOVED | {'rand_skip', 'force_encoded_color'},
    'ImageData': MOVED,
    'WindowData': MOVED,
}


@pytest.mark.parametrize('type_', sorted(caffe.layer_type_list()))
def test_every_field_of_a_layers_parameter_is_read(type_):
    messages = {
        'SoftmaxWithLoss': ('Softmax', 'Loss'),
        'SigmoidCrossEntropyLoss': ('Loss',),
        'Deconvolution': ('Convolution',),
        'Im2col': ('Convolution',),
        'LSTM': ('Recurrent',),
        'RNN': ('Recurrent',),
        'InfogainLoss': ('InfogainLoss', 'Loss'),
    }.get(type_, (type_,))
    rows = [line.split('\t') for line in (FACTS / 'caffe_schema.tsv').read_text().splitlines()]
    fields = {row[4] for row in rows if row[0] in {f'{name}Parameter' for name in messages}}
    sources = [
        inspect.getsource(cls)
        for cls in LAYER_TYPES[type_].__mro__
        if cls.__module__.startswith('caffe_port.ops') and cls is not Op
    ]
    if type_.endswith('Loss'):
        sources.append(inspect.getsource(loss.normalization_of))
    if type_ in ('Concat', 'Slice'):
        sources.append(inspect.getsource(common._either_axis))
    text = '\n'.join(sources)
    unread = {
        field
        for field in fields - HARMLESS - UNUSED.get(type_, set())
        if not re.search(rf'\b{field}\b', text)
        and not re.search(rf"'{re.sub('_[hw]$', '', field)}'", text)
    }
    assert not unread


# The types there are.

TYPES = """
AbsVal Accuracy ArgMax BNLL BatchNorm BatchReindex Bias Clip Concat ContrastiveLoss Convolution
Crop Data Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp Filter Flatten
HDF5Data HDF5Output HingeLoss Im2col ImageData InfogainLoss InnerProduct Input LRN LSTM LSTMUnit
Log MVN MemoryData MultinomialLogisticLoss PReLU Parameter Pooling Power Python RNN ReLU
Reduction Reshape SPP Scale Sigmoid SigmoidCrossEntropyLoss Silence Slice Softmax
SoftmaxWithLoss Split Swish TanH Threshold Tile WindowData
"""


def test_the_types_are_those_of_a_cpu_build_of_caffe():
    assert caffe.layer_type_list() == TYPES.split()
    assert set(V1_TYPES.values()) - {''} <= set(LAYER_TYPES)


def test_a_python_module_that_is_nowhere_is_not_laid_to_the_release():
    with pytest.raises(
        caffe.CaffeError,
        match='no module my_layers on the path, and no installed package offers one by that name',
    ) as caught:
        layer_net('Python', 'python_param { module: "my_layers" layer: "L" }', [X])
    assert 'solve' not in str(caught.value)
