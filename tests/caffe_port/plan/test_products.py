"""Convolutions as one matrix product, against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from caffe_port.plan import products
from tests.caffe_port.plan.forced import assert_near


@pytest.fixture
def many_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def problem(batch, kernel):
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, 6, 9, 11, generator=generator)
    w = torch.randn(8, 6, *kernel, generator=generator)
    return x, w, torch.randn(8, generator=generator)


CASES = pytest.mark.parametrize(
    'kernel, stride, pad',
    [((1, 1), (1, 1), (0, 0)), ((3, 5), (1, 1), (0, 0)), ((4, 2), (2, 2), (1, 1))]
    + [((2, 3), (1, 3), (2, 0)), ((3, 2), (2, 1), (0, 1))],
)


@pytest.mark.parametrize('batch', [1, 3])
@CASES
def test_values_and_gradients_are_those_of_a_convolution(batch, kernel, stride, pad):
    x, w, b = (each.requires_grad_() for each in problem(batch, kernel))
    expected = F.conv2d(x, w, b, stride, pad)
    found = products.convolve(x, w, b, stride, pad)
    assert_near(found, expected)
    diff = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for one, other in zip(*(torch.autograd.grad(t, (x, w, b), diff) for t in (found, expected))):
        assert_near(one, other)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('batch', [1, 3])
@CASES
def test_without_gradients_threads_share_the_work(
    many_threads, batch, kernel, stride, pad, layout, monkeypatch
):
    monkeypatch.setattr(products, '_ROWS', 3)
    x, w, b = problem(batch, kernel)
    x = x.contiguous(memory_format=layout)
    with torch.no_grad():
        columns = products.columns(x, w, stride, pad)
        unfolded = F.unfold(x, kernel, padding=pad, stride=stride)
        assert torch.equal(columns, unfolded.transpose(0, 1).flatten(1))
        for relu in False, True:
            for bias in None, b:
                found = products.convolve(x, w, bias, stride, pad, relu)
                expected = F.conv2d(x, w, bias, stride, pad)
                assert_near(found, expected.relu() if relu else expected)
