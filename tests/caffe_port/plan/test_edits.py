"""A user who writes to blobs between forward and backward gets the diffs of layers one by one.

Layer by layer, a layer's backward reads what has been written to its bottom's memory, and a ReLU
in place what has been written to its top's; a maximum was picked in forward, and a blob that is
given other memory changes nothing.
"""

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port.ops.vision import Convolution
from tests.caffe_port.plan.forced import assert_near, force
from tests.caffe_port.plan.small import conv, in_place, layer, net_of

POOL = 'pooling_param { kernel_size: 2 stride: 2 }'
# One stretch up to the ReLU of d, unless somebody asks for blobs inside.
LAYERS = (
    conv('a', 'data', pad=5)
    + in_place('ReLU', 'a')
    + conv('b', 'a')
    + in_place('ReLU', 'b')
    + layer('Pooling', 'pool', 'b', more=POOL)
    + conv('c', 'pool')
    + conv('d', 'c')
    + in_place('ReLU', 'd')
    + in_place('Dropout', 'd')
    + layer('Pooling', 'top', 'd', more=POOL)
)
BLOBS = 'data', 'a', 'b', 'pool', 'c', 'd'


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    force(monkeypatch)


def both(act):
    """Return act(net) by plan and layer by layer."""
    found = []
    for on in (True, False):
        caffe.set_plan(on)
        found.append(act(net_of(LAYERS, caffe.TRAIN)))
    return found


def forward(net: caffe.Net) -> None:
    caffe.set_random_seed(4)
    net.forward()
    net.clear_param_diffs()


def backward(net: caffe.Net) -> dict[str, np.ndarray]:
    """Return the diffs of the params and of the data."""
    net.blobs['top'].diff[...] = np.random.RandomState(6).randn(*net.blobs['top'].shape)
    net.backward()
    found = {f'{name} {i}': b.diff for name, bs in net.params.items() for i, b in enumerate(bs)}
    return {what: diff.copy() for what, diff in {**found, 'data': net.blobs['data'].diff}.items()}


def assert_all_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for what, diff in expected.items():
        assert_near(found[what], diff, 1e-4, what)


def values_for(blob) -> np.ndarray:
    return np.random.RandomState(7).randn(*blob.shape).astype(np.float32) * 10


def write(blob, _) -> None:
    blob.data[...] = values_for(blob)


def write_to_held(blob, held) -> None:
    held[...] = values_for(blob)


def assign(blob, _) -> None:
    blob.tensor = torch.from_numpy(values_for(blob))


def step(net: caffe.Net, name: str, asked: list[str], edit) -> dict[str, np.ndarray]:
    """Return the diffs of a step with an edit of a blob between."""
    forward(net)
    held = net.blobs[name].data if edit is write_to_held else None
    net.backward(diffs=asked)
    forward(net)
    edit(net.blobs[name], held)
    return backward(net)


@pytest.mark.parametrize('edit', [write, write_to_held, assign])
@pytest.mark.parametrize('asked', [[], ['b'], ['a', 'pool']], ids=str)
@pytest.mark.parametrize('name', BLOBS)
def test_diffs_are_those_of_the_layers(name, asked, edit):
    assert_all_near(*both(lambda net: step(net, name, asked, edit)))


@pytest.mark.parametrize('asked', [[], ['b']], ids=str)
@pytest.mark.parametrize('name', ['b', 'pool', 'c', 'd'])
def test_a_write_by_pytorch_is_refused_or_counts_as_any_other(name, asked):
    def write_by_torch(blob, _):
        blob.tensor.copy_(torch.from_numpy(values_for(blob)))

    def act(net):
        try:
            return step(net, name, asked, write_by_torch)
        except caffe.CaffeError as error:
            assert 'modified by an inplace operation' in str(error)
            return {}

    found, refused = both(act)
    assert not refused
    _, expected = both(lambda net: step(net, name, asked, write))
    assert_all_near(found or expected, expected)


@pytest.mark.parametrize('name', BLOBS)
def test_the_second_of_two_backwards_reads_what_was_written_between(name):
    def act(net):
        forward(net)
        backward(net)
        net.clear_param_diffs()
        write(net.blobs[name], None)
        return backward(net)

    assert_all_near(*both(act))


@pytest.mark.parametrize('name', BLOBS)
@pytest.mark.parametrize('start, end', [('Convolution a', 'ReLU a'), ('Convolution b', 'ReLU b')])
def test_layers_that_run_again_leave_the_traces_of_the_others(name, start, end):
    def act(net):
        forward(net)
        write(net.blobs[name], None)
        net.forward(start=start, end=end)
        return backward(net)

    assert_all_near(*both(act))


def test_a_backward_through_the_layers_asks_for_no_blob():
    net = net_of(LAYERS, caffe.TRAIN)
    forward(net)
    write(net.blobs['data'], None)
    backward(net)
    forward(net)
    assert net.blobs['b'].is_postponed


def test_the_next_batch_may_be_put_in_before_backward():
    def act(put_in):
        net = net_of(LAYERS, caffe.TRAIN)
        forward(net)
        if put_in:
            assign(net.blobs['data'], None)
        return backward(net)

    found, expected = act(True), act(False)
    for what, diff in expected.items():
        assert np.array_equal(found[what], diff), what


def test_diffs_inside_pass_where_the_stretch_let_them_pass(monkeypatch):
    def diff_of_a(noise):
        net = net_of(LAYERS, caffe.TRAIN)
        net.blobs['data'].data[...] = 1  # so that maxima are picked among equal values
        forward(net)
        backward(net)
        plain = Convolution._filter
        with monkeypatch.context() as patch:
            patch.setattr(Convolution, '_filter', lambda *args: noise(plain(*args)))
            return net.blobs['a'].diff.copy()

    expected = diff_of_a(lambda top: top)
    found = diff_of_a(lambda top: top + 1e-5 * torch.rand(top.shape))
    assert expected.any() and np.array_equal(found, expected)


def test_a_diff_that_is_newer_than_the_backward_of_its_stretch_stays():
    def act(net):
        forward(net)
        backward(net)
        net.blobs['pool'].diff_tensor = torch.ones(net.blobs['pool'].shape)
        net.backward(start='Pooling pool', end='Pooling pool')
        return {'a': net.blobs['a'].diff.copy(), 'b': net.blobs['b'].diff.copy()}

    found, expected = both(act)
    assert_near(found['b'], expected['b'])
    assert_near(found['a'], expected['a'], 1e-4)
