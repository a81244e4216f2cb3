"""Damaged and absurd prototxts: each ends as a Net or in a CaffeError, soon and small."""

import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import caffe_port as caffe
from caffe_port import prototxt
from caffe_port.ops import LAYER_TYPES, fillers
from nets import siftflow_fcn16s, voc_fcn8s, voc_fcn_alexnet
from tests.examples import examples
from tests.memory import at_most
from tests.vectors import GOLDEN, load, net_of

SECONDS, MEGABYTES = 1, 400
NUMBERS = [
    '0',
    '1',
    '2',
    '-1',
    '-2',
    '-99',
    '3',
    '7',
    '255',
    '4294967295',
    '2147483647',
    '-2147483648',
    '1000000000000',
    '9223372036854775807',
    '1e38',
    '-1e38',
    'nan',
    'inf',
    '0.5',
    '1e-45',
    'true',
    '"x"',
    'MAX',
]
NUMBER = re.compile(r'(?<=: )-?[0-9][0-9.e+-]*')
# Bottoms for layers of any type.
INPUTS = ''.join(
    f'layer {{ name: "{n}" type: "Input" top: "{n}" input_param {{ shape {{ '
    'dim: 2 dim: 4 dim: 6 dim: 5 } } }\n'
    for n in 'xy'
)


def originals() -> list[str]:
    texts = [str(load(f'layers/{path.name}')['prototxt']) for path in (GOLDEN / 'layers').iterdir()]
    texts.append((GOLDEN / 'formats/legacy_v1.prototxt').read_text())
    narrow = [
        voc_fcn8s.fcn('deploy', width=2, fc=4),
        siftflow_fcn16s.fcn('deploy', width=2, fc=4),
        voc_fcn_alexnet.fcn('deploy', fc=4),
    ]
    return sorted(texts) + [prototxt.to_text(net) for net in narrow]


ORIGINALS = originals()
for original in ORIGINALS:  # PyTorch loads libraries with the first nets: not on the clock
    net_of(original)


def build(text: str) -> None:
    """Make the net, or have it refused; nothing else, in little time and memory."""
    started = time.process_time()
    with at_most(MEGABYTES):
        try:
            net = net_of(text)
            if sum(blob.count for blob in net.blobs.values()) < 1 << 16:
                net.forward()
        except caffe.CaffeError as error:
            assert str(error)
    assert time.process_time() - started < SECONDS


@st.composite
def mutated(draw) -> str:
    """A real prototxt with numbers, names or lines changed."""
    text = draw(st.sampled_from(ORIGINALS))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.integers(0, 4))
        lines = text.split('\n')
        at = draw(st.integers(0, len(lines) - 1))
        if kind == 0:
            places = list(NUMBER.finditer(text))
            if places:
                place = places[draw(st.integers(0, len(places) - 1))]
                text = text[: place.start()] + draw(st.sampled_from(NUMBERS)) + text[place.end() :]
        elif kind == 1:
            text = '\n'.join(lines[:at] + lines[at + 1 :])
        elif kind == 2:
            text = '\n'.join(lines[:at] + [lines[at]] + lines[at:])
        elif kind == 3:
            types = re.findall(r'type: "\w+"', text)
            if types:
                other = f'type: "{draw(st.sampled_from(sorted(LAYER_TYPES)))}"'
                text = text.replace(draw(st.sampled_from(types)), other, 1)
        else:
            names = re.findall(r'"(\w+)"', text)
            if names:
                text = text.replace(
                    f'"{draw(st.sampled_from(names))}"',
                    f'"{draw(st.sampled_from(names))}"',
                    draw(st.integers(1, 3)),
                )
    return text


@examples(350)
@given(mutated())
def test_a_mutated_prototxt_is_a_net_or_a_caffe_error(text):
    build(text)


@st.composite
def layer_settings(draw) -> str:
    """A layer of any type with its parameter's fields drawn at random."""
    type_ = draw(st.sampled_from(sorted(set(LAYER_TYPES) - {'Input', 'Python'})))
    field = next(
        (
            f
            for f in caffe.proto.caffe_pb2.LayerParameter.DESCRIPTOR.fields
            if f.message_type and f.message_type.name == _parameter(type_)
        ),
        None,
    )
    body = ''
    if field is not None:
        chosen = draw(st.lists(st.sampled_from(list(field.message_type.fields)), max_size=4))
        body = f'{field.name} {{ {" ".join(_value(draw, f) for f in chosen)} }}'
    (few, many), (least, most) = LAYER_TYPES[type_].bottoms, LAYER_TYPES[type_].tops
    bottoms = draw(st.lists(st.sampled_from('xy'), min_size=few, max_size=int(min(many, 3))))
    tops = 'abc'[: draw(st.integers(least, int(min(most, 3))))]
    ends = ' '.join([f'bottom: "{b}"' for b in bottoms] + [f'top: "{t}"' for t in tops])
    return f'{INPUTS}layer {{ name: "l" type: "{type_}" {ends} {body} }}'


def _parameter(type_: str) -> str:
    special = {
        'SoftmaxWithLoss': 'LossParameter',
        'SigmoidCrossEntropyLoss': 'LossParameter',
        'Deconvolution': 'ConvolutionParameter',
        'Parameter': 'ParameterParameter',
    }
    return special.get(type_, f'{type_}Parameter')


def _value(draw, field) -> str:
    if field.message_type is not None:
        if field.message_type.name == 'BlobShape':
            dims = draw(st.lists(st.sampled_from([0, 1, -1, 2, 4, 10**12, 2**63 - 1]), max_size=4))
            return f'{field.name} {{ {" ".join(f"dim: {dim}" for dim in dims)} }}'
        kind = draw(st.sampled_from(['constant', 'msra', 'xavier', 'bilinear', 'uniform', 'none']))
        return f'{field.name} {{ type: "{kind}" value: {draw(st.sampled_from([0, 1]))} }}'
    if field.enum_type is not None:
        return f'{field.name}: {draw(st.sampled_from(sorted(field.enum_type.values_by_name)))}'
    if field.type == field.TYPE_BOOL:
        return f'{field.name}: {draw(st.sampled_from(["true", "false"]))}'
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        number = draw(st.sampled_from(['0', '-1', '1e38', 'nan', 'inf', '0.5', '3']))
        return f'{field.name}: {number}'
    low = 0 if field.type == field.TYPE_UINT32 else -(2**31)
    number = st.sampled_from([0, 1, 2, 3, 5, 1000, 65536, 2**31 - 1]) | st.integers(-3, 6)
    return f'{field.name}: {max(draw(number | st.sampled_from([2**31 - 1, -(2**31)])), low)}'


@examples(600)
@given(layer_settings())
def test_any_settings_of_any_layer_are_a_net_or_a_caffe_error(text):
    build(text)


CONV = 'Convolution" convolution_param { num_output: 4 kernel_size: 3 '
POOL = 'Pooling" pooling_param { kernel_size: 3 '


@pytest.mark.parametrize(
    'layer',
    [
        'Convolution" convolution_param { num_output: 4294967295 kernel_size: 3 }',
        'Convolution" convolution_param { num_output: 70000000 kernel_size: 3 '
        'weight_filler { type: "msra" } }',
        'Convolution" convolution_param { num_output: 4 kernel_size: 0 }',
        'Convolution" convolution_param { num_output: 4 kernel_size: 4294967295 }',
        'Convolution" convolution_param { num_output: 4 }',
        CONV + 'stride: 0 }',
        CONV + 'pad: 4294967295 }',
        CONV + 'dilation: 4294967295 }',
        CONV + 'group: 0 }',
        CONV + 'group: 4294967295 }',
        CONV + 'axis: -99 }',
        CONV + 'pad: 1 pad: 1 pad: 1 }',
        CONV + 'kernel_h: 3 }',
        'Deconvolution" convolution_param { num_output: 4 kernel_size: 3 stride: 4294967295 }',
        'InnerProduct" inner_product_param { num_output: 4294967295 }',
        POOL + 'stride: 0 }',
        POOL + 'pad: 4294967295 }',
        POOL + 'pad: 3 }',
        'Pooling" pooling_param { kernel_size: 0 }',
        'Pooling" pooling_param { kernel_size: 4294967295 }',
        'Pooling" pooling_param { kernel_size: 1000000000 pad: 999999999 stride: 1000000000 }',
        'LRN" lrn_param { local_size: 0 }',
        'ArgMax" argmax_param { top_k: 0 }',
        'ArgMax" argmax_param { top_k: 4294967295 }',
        'Concat" concat_param { axis: -99 }',
        'Softmax" softmax_param { axis: 2147483647 }',
        'Tile" tile_param { tiles: 2147483647 }',
        'Reshape" reshape_param { shape { dim: 1000000000000 dim: -1 } }',
        'Reshape" reshape_param { shape { dim: 9223372036854775807 dim: 9223372036854775807 } }',
        'Slice" slice_param { slice_point: 4294967295 }',
        'Parameter" parameter_param { shape { dim: 9223372036854775807 dim: 2 } }',
        'Scale" scale_param { num_axes: 2147483647 }',
        'Log" log_param { base: nan }',
        'Dropout" dropout_param { dropout_ratio: nan }',
        'PReLU" prelu_param { filler { type: "x" } }',
    ],
)
def test_an_absurd_setting_is_refused_by_the_layers_name(layer):
    text = INPUTS + f'layer {{ name: "l" type: "{layer} bottom: "x" top: "t" }}'
    text = text.replace('bottom: "x" ', '') if 'Parameter"' in layer else text
    with pytest.raises(caffe.CaffeError, match=r'^l( \(\w+\))?: '):
        build_strictly(text)


def build_strictly(text: str) -> None:
    started = time.process_time()
    try:
        net_of(text)
    finally:
        assert time.process_time() - started < SECONDS


@pytest.mark.parametrize(
    'layer',
    [
        'Crop" bottom: "y" crop_param { offset: 4294967295 }',
        'Crop" bottom: "y" crop_param { offset: 0 offset: 0 offset: 0 }',
        'Crop" bottom: "y" crop_param { axis: 4 }',
        'Eltwise" bottom: "y" eltwise_param { coeff: 1 }',
        'SoftmaxWithLoss" bottom: "y"',
        'Accuracy" bottom: "y" accuracy_param { top_k: 0 }',
    ],
)
def test_an_absurd_setting_of_two_bottoms_is_refused(layer):
    with pytest.raises(caffe.CaffeError, match=r'^l \(\w+\): '):
        build_strictly(INPUTS + f'layer {{ name: "l" type: "{layer} bottom: "x" top: "t" }}')


def test_what_fillers_draw_is_bounded_over_the_net_and_the_layer_named(monkeypatch):
    monkeypatch.setattr(fillers, 'MAX_DRAWN', 10_000)
    layer = (
        'layer { name: "%s" type: "InnerProduct" bottom: "x" top: "%s" inner_product_param { '
        'num_output: 40 weight_filler { value: 1 } } }'
    )
    text = INPUTS + layer % ('a', 'a') + layer % ('b', 'b')
    net_of(text)
    with pytest.raises(
        caffe.CaffeError,
        match=r'^c \(InnerProduct\): filler constant: \(40, 120\) '
        'are 4800 values after 9600 of other params',
    ):
        net_of(text + layer % ('c', 'c'))


def test_a_window_over_far_channels_costs_no_memory():
    text = INPUTS + (
        'layer { name: "l" type: "LRN" bottom: "x" top: "t" lrn_param { local_size: %d } }'
    )
    far, near = (net_of(text % size) for size in (2**31 - 1, 2**20 + 1))
    for net in (far, near):
        ones = np.ones((2, 4, 6, 5))
        assert net.forward(x=ones, y=ones)['t'].shape == ones.shape
