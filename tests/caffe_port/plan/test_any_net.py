"""Nets of drawn layers by plan against layer by layer: readers may need part of a blob, or none."""

from collections import Counter

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

import caffe_port as caffe
from caffe_port.plan import lines, products
from caffe_port.plan.layout import Layout
from tests.caffe_port.plan.forced import assert_near, drawn, force, images
from tests.caffe_port.plan.small import layer
from tests.examples import examples


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    force(monkeypatch)
    monkeypatch.setattr(lines, 'LEAST_CHANNELS', 2)
    monkeypatch.setattr(products, 'LEAST_WEIGHTS', 64)
    monkeypatch.setattr(products, 'OUTPUTS_PER_PIXEL', 0.005)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


WAYS = 'direct winograd product pooling deconvolution crop pointwise whole framed'.split()


@pytest.fixture
def seen(monkeypatch):
    """Count how lines compute, and the blobs with frames; at the end, ask for each often enough."""
    found, run = Counter(), Layout.run

    def counted(layout, *args):
        found.update(line.method for line in layout.lines if line.area.pixels or line.is_whole)
        found['framed'] += sum(layout._is_framed(value) for value in layout._place)
        return run(layout, *args)

    monkeypatch.setattr(Layout, 'run', counted)
    yield found
    assert min(found[way] for way in WAYS) >= 5, found


def convolution(kernel: int, stride: int, pad: int, outputs: int = 4, dilation: int = 1) -> str:
    return (
        f'convolution_param {{ num_output: {outputs} kernel_size: {kernel} stride: {stride} '
        f'pad: {pad} dilation: {dilation} }}'
    )


def pooling(kind: str, kernel: int, stride: int) -> str:
    return f'pooling_param {{ pool: {kind} kernel_size: {kernel} stride: {stride} }}'


def crop(*offset: int) -> str:
    offsets = ' '.join(f'offset: {each}' for each in offset)
    return f'crop_param {{ axis: 2 {offsets} }}'


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


KINDS = 'Convolution Convolution Pooling Deconvolution ReLU Softmax Crop Eltwise Concat'.split()


@st.composite
def drawn_layers(draw, top: str, tops: list[str]) -> str:
    """Return a layer that reads one or two of the last tops."""
    kind = draw(st.sampled_from(KINDS))
    near = st.sampled_from(tops[-3:])
    bottoms, more = [draw(near)], ''
    kernel, stride = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    pad, outputs = draw(st.sampled_from([0, 0, 1, 2, 20])), draw(st.sampled_from([4, 40]))
    if kind == 'Convolution':
        if draw(st.booleans()):
            kernel, stride = 3, 1
        more = convolution(kernel, stride, pad, outputs, draw(st.sampled_from([1, 1, 2])))
    elif kind == 'Pooling':
        more = pooling(draw(st.sampled_from(['MAX', 'MAX', 'AVE'])), kernel, min(kernel, stride))
    elif kind == 'Deconvolution':
        more = convolution(kernel, stride, min(pad, 2), 3)
    elif kind == 'Crop':
        bottoms = [draw(st.sampled_from(tops)), draw(near)]
        offset = st.sampled_from([0, 0, 1, 3])
        more = crop(draw(offset), draw(offset))
    elif kind in ('Eltwise', 'Concat'):
        bottoms.append(draw(near))
    return layer(kind, top, *bottoms, more=more)


@st.composite
def nets(draw) -> tuple[tuple[str, int, tuple[int, int]], list[str]]:
    """Return what makes a net, and the tops of its layers; none refuses its bottoms."""
    batch = draw(st.sampled_from([1, 1, 3]))
    size = draw(st.tuples(st.integers(1, 25), st.integers(1, 25)))
    text, tops = '', ['data']
    for i in range(draw(st.integers(1, 7))):
        more = draw(drawn_layers(f't{i}', tops))
        try:
            net = make(text + more, batch, size)
        except caffe.CaffeError:
            continue
        sides = net.blobs[f't{i}'].shape[2:]
        if min(sides) and max(sides) < 90:  # an empty top is refused by PyTorch, when computed
            text += more
            tops.append(f't{i}')
    assume(text)
    return (text, batch, size), tops[1:]


def check(net: caffe.Net, asked: list[str]) -> None:
    found = []
    for on in (True, False):
        caffe.set_plan(on)
        found.append({name: top.copy() for name, top in net.forward(blobs=asked).items()})
    for name, expected in found[1].items():
        assert_near(found[0][name], expected, 2e-5, name)


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(nets(), st.integers(1, 3), st.data())
def test_any_net_by_plan_is_that_layer_by_layer(seen, made, threads, data):
    arguments, tops = made
    net = make(*arguments)
    torch.set_num_threads(threads)
    asked = data.draw(st.lists(st.sampled_from(tops), max_size=2, unique=True))
    check(net, asked)
    for blobs in net.params.values():
        blobs[0].data[...] *= 1.2
    check(net, asked)


# Nets that read only part of what is made, or of what could be.
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
    'nothing of it, in the padding': layer('Pooling', 'a', 'data', more=pooling('MAX', 2, 2))
    + layer('Convolution', 'b', 'a', more=convolution(2, 1, 20))
    + layer('Crop', 'c', 'b', 'data', more=crop(1, 2)),
    'windows that do not meet': layer('Deconvolution', 'a', 'data', more=convolution(2, 3, 2))
    + layer('Pooling', 'b', 'a', more=pooling('MAX', 2, 2)),
    'a gap between windows': layer('Deconvolution', 'a', 'data', more=convolution(1, 3, 0))
    + layer('Convolution', 'b', 'a', more=convolution(1, 3, 0)),
}


@pytest.mark.parametrize('text', PARTLY_READ.values(), ids=PARTLY_READ.keys())
def test_a_blob_may_be_read_in_part(text):
    for size in (24, 22), (25, 24), (12, 12):
        check(make(text, 1, size), [])


def test_an_empty_top_is_refused_as_layer_by_layer():
    net = make(layer('Deconvolution', 'a', 'data', more=convolution(3, 1, 2)), 1, (2, 2))
    said = []
    for on in (True, False):
        caffe.set_plan(on)
        with pytest.raises(caffe.CaffeError) as refused:
            net.forward()
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_what_the_image_reaches_whole_needs_no_frame():
    # One pixel of a is read, and next to it padding alone: a product then, which keeps no weights.
    text = layer('Convolution', 'z', 'data', more=convolution(3, 1, 1))
    text += layer('Convolution', 'a', 'z', more=convolution(3, 1, 1, 8))
    text += layer('Convolution', 'b', 'a', more=convolution(1, 1, 20))
    text += layer('Pooling', 'c', 'data', more=pooling('MAX', 5, 5))
    text += layer('Crop', 'd', 'b', 'c', more=crop(19, 19))
    net = make(text, 1, (9, 9))
    check(net, [])
    net.params['Convolution a'][0].data[...] *= 1.2
    check(net, [])


def test_float64_as_the_default_of_pytorch_changes_nothing():
    net = make(PARTLY_READ['averages, by a crop'] + layer('Softmax', 'd', 'c'), 1, (20, 20))
    conv = make(PARTLY_READ['data, by a stride'], 1, (21, 30))
    torch.set_default_dtype(torch.float64)
    try:
        check(net, [])
        check(conv, [])
    finally:
        torch.set_default_dtype(torch.float32)


def test_float64_as_the_default_of_pytorch_changes_no_gradients():
    found = []
    for default in torch.float32, torch.float64:
        net = drawn('voc_fcn8s', 'val', caffe.TRAIN, width=8, drop=0.0)
        for name, values in images(net, (40, 53)).items():
            net.blobs[name].reshape(*values.shape)
            net.blobs[name].data[...] = 0 if name == 'label' else values
        torch.set_default_dtype(default)
        try:
            net.forward()
            net.backward()
        finally:
            torch.set_default_dtype(torch.float32)
        found.append([blob.diff.copy() for blobs in net.params.values() for blob in blobs])
    for one, other in zip(*found):
        assert np.array_equal(one, other)
