"""Winograd's convolution and its gradients against PyTorch's own in float64."""

import pytest
import torch
import torch.nn.functional as F

from caffe_port.plan import winograd
from tests.caffe_port.plan.forced import assert_near

# Batch, inputs, outputs, height, width, pad: whole tiles, parts of tiles, less than a tile.
CASES = [
    (1, 8, 5, 8, 12, 1),
    (1, 8, 5, 7, 9, 1),
    (3, 4, 6, 13, 4, 1),
    (2, 6, 6, 11, 1, 1),
    (1, 3, 4, 20, 22, 0),
    (1, 4, 4, 22, 38, 0),
    (1, 70, 66, 33, 18, 1),
]


def problem(batch, inputs, outputs, height, width, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, inputs, height, width, generator=generator)
    w = torch.randn(outputs, inputs, 3, 3, generator=generator)
    b = torch.randn(outputs, generator=generator)
    return (
        x.contiguous(memory_format=layout).requires_grad_(),
        w.requires_grad_(),
        b.requires_grad_(),
    )


def exactly(x, w, b, pad):
    return F.conv2d(x.double(), w.double(), None if b is None else b.double(), padding=pad)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('case', CASES)
def test_gradients_are_those_of_a_convolution(case, layout):
    *sizes, pad = case
    x, w, b = problem(*sizes, layout)
    top = exactly(x, w, b, pad)
    diff = torch.randn(top.shape, generator=torch.Generator().manual_seed(2))
    of_x, of_w = torch.autograd.grad(top, (x, w), diff.double())
    x, w = x.detach(), w.detach()
    assert_near(sum(winograd.correlate(*pair, pad) for pair in zip(x, diff)), of_w.float())
    out, turned = torch.empty_like(x), winograd.turned_filters(w)
    for image, to, mask in zip(diff, out, x):
        winograd.convolve(image, turned, None, 2 - pad, to, mask=mask)
    assert_near(out, (of_x * (x > 0)).float())


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('case', CASES)
def test_values_are_those_of_a_convolution(case, bias, relu):
    *sizes, pad = case
    x, w, b = (each.detach() for each in problem(*sizes))
    b = b if bias else None
    expected = exactly(x, w, b, pad).float()
    top = torch.empty_like(expected, memory_format=torch.channels_last)
    for image, out in zip(x, top):
        winograd.convolve(image, winograd.filters(w), b, pad, out, relu)
    assert_near(top, expected.relu() if relu else expected)


def test_an_image_may_be_larger_than_what_is_read_of_it():
    x, w, b = (each.detach() for each in problem(1, 4, 5, 30, 40, torch.channels_last))
    top = torch.empty(5, 13, 18)
    winograd.convolve(x[0], winograd.filters(w), b, 0, top)
    assert_near(top, exactly(x, w, b, 0)[0, :, :13, :18].float())


@pytest.mark.parametrize('threads', [1, 2])
def test_strips_join_without_a_seam(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, w, b = (each.detach() for each in problem(1, 4, 4, 90, 35))
        top = torch.empty(1, 4, 90, 35)
        winograd.convolve(x[0], winograd.filters(w), b, 1, top[0])
        assert_near(top, exactly(x, w, b, 1).float())
    finally:
        torch.set_num_threads(before)


def test_its_rounding_is_that_of_a_direct_convolution():
    x, w, _ = (each.detach() for each in problem(1, 256, 256, 24, 24))
    expected = exactly(x, w, None, 1)
    top = torch.empty(1, 256, 24, 24)
    winograd.convolve(x[0], winograd.filters(w), None, 1, top[0])
    assert float((top - expected).abs().max() / expected.abs().max()) < 4e-6
