"""Nets of drawn layers by plan against layer by layer: readers may need part of a blob, or none."""

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import caffe_port as caffe
from caffe_port.plan import lines, products
from tests.caffe_port.plan.forced import assert_near, force
from tests.caffe_port.plan.small import layer
from tests.examples import examples


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    force(monkeypatch)
    monkeypatch.setattr(lines, 'LEAST_CHANNELS', 2)
    monkeypatch.setattr(products, 'LEAST_WEIGHTS', 64)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def convolution(kernel: int, stride: int, pad: int, outputs: int = 4) -> str:
    return (
        f'convolution_param {{ num_output: {outputs} kernel_size: {kernel} stride: {stride} '
        f'pad: {pad} }}'
    )


def pooling(kind: str, kernel: int, stride: int) -> str:
    return f'pooling_param {{ pool: {kind} kernel_size: {kernel} stride: {stride} }}'


def crop(*offset: int) -> str:
    offsets = ' '.join(f'offset: {each}' for each in offset)
    return f'crop_param {{ axis: 2 {offsets} }}'


@st.composite
def nets(draw) -> tuple[str, list[str]]:
    """Return the layers of a net, and their tops; what they may ask for may not exist."""
    text, tops = '', ['data']
    for i in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from('Convolution Pooling Deconvolution ReLU Softmax Crop'.split()))
        bottoms, more = [tops[-1]], ''
        kernel, stride = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        if kind == 'Convolution':
            more = convolution(*draw(st.sampled_from([(3, 1), (kernel, stride)])), draw(pads))
        elif kind == 'Pooling':
            how = draw(st.sampled_from(['MAX', 'MAX', 'AVE']))
            more = pooling(how, kernel, min(kernel, stride))
        elif kind == 'Deconvolution':
            more = convolution(2 * stride, stride, 0, 3)
        elif kind == 'Crop':
            bottoms.append(draw(st.sampled_from(tops)))
            more = crop(draw(st.integers(0, 3)), draw(st.integers(0, 3)))
        text += layer(kind, f't{i}', *bottoms, more=more)
        tops.append(f't{i}')
    return text, tops[1:]


pads = st.sampled_from([0, 0, 1, 2, 20])


def make(text: str, batch: int, size: tuple[int, int]) -> caffe.Net:
    shape = f'shape {{ dim: {batch} dim: 3 dim: {size[0]} dim: {size[1]} }}'
    param = caffe.proto.caffe_pb2.NetParameter()
    text_format.Parse(layer('Input', 'data', more=f'input_param {{ {shape} }}') + text, param)
    net, rng = caffe.Net(param, caffe.TEST), np.random.RandomState(0)
    for weight, *rest in net.params.values():
        # Small scores: Softmax multiplies their rounding by their size.
        weight.data[...] = rng.randn(*weight.shape) / np.sqrt(weight.data[0].size)
        for bias in rest:
            bias.data[...] = rng.randn(*bias.shape) * 0.1
    net.blobs['data'].data[...] = rng.randn(batch, 3, *size)
    return net


def check(net: caffe.Net, asked: list[str]) -> None:
    found = []
    for on in (True, False):
        caffe.set_plan(on)
        found.append({name: top.copy() for name, top in net.forward(blobs=asked).items()})
    for name, expected in found[1].items():
        assert_near(found[0][name], expected, 2e-5, name)


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    nets(),
    st.sampled_from([1, 1, 3]),
    st.tuples(st.integers(1, 25), st.integers(1, 25)),
    st.integers(1, 3),
    st.data(),
)
def test_any_net_by_plan_is_that_layer_by_layer(made, batch, size, threads, data):
    text, tops = made
    torch.set_num_threads(threads)
    try:
        net = make(text, batch, size)
    except caffe.CaffeError:
        return  # a bottom is too small for a layer
    asked = data.draw(st.lists(st.sampled_from(tops), max_size=2, unique=True))
    check(net, asked)
    for blobs in net.params.values():
        blobs[0].data[...] *= 1.2
    check(net, asked)


# Layers whose bottom is made whole, wherever it comes from, but read only in part.
PARTLY_READ = {
    'data, by a stride': layer('Convolution', 'a', 'data', more=convolution(7, 2, 0))
    + layer('Convolution', 'b', 'a', more=convolution(3, 1, 0)),
    'data, by a crop': layer('Pooling', 'a', 'data', more=pooling('MAX', 3, 3))
    + layer('Crop', 'b', 'data', 'a', more=crop(2, 1))
    + layer('Convolution', 'c', 'b', more=convolution(3, 1, 0)),
    'scores, by a stride': layer('Softmax', 'a', 'data')
    + layer('Convolution', 'b', 'a', more=convolution(2, 3, 0)),
    'averages, by a crop': layer('Pooling', 'a', 'data', more=pooling('AVE', 2, 2))
    + layer('Pooling', 'b', 'a', more=pooling('MAX', 2, 2))
    + layer('Crop', 'c', 'a', 'b', more=crop(1, 1)),
}


@pytest.mark.parametrize('text', PARTLY_READ.values(), ids=PARTLY_READ.keys())
def test_a_blob_made_whole_may_be_read_in_part(text):
    for size in (24, 22), (25, 24):
        check(make(text, 1, size), [])


def test_float64_as_the_default_of_pytorch_changes_nothing():
    net = make(PARTLY_READ['averages, by a crop'] + layer('Softmax', 'd', 'c'), 1, (20, 20))
    conv = make(PARTLY_READ['data, by a stride'], 1, (21, 30))
    torch.set_default_dtype(torch.float64)
    try:
        check(net, [])
        check(conv, [])
    finally:
        torch.set_default_dtype(torch.float32)
