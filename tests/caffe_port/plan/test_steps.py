"""The layers of a stretch against PyTorch's own convolutions and poolings, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from caffe_port.param_blob import ParamBlob
from caffe_port.plan import steps
from caffe_port.plan.steps import Geometry, Room
from tests.caffe_port.plan.forced import assert_near

# Weight, stride, pad, dilation, group.
CASES = [
    ((6, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((6, 3, 3, 3), (1, 1), (12, 12), (1, 1), 1),  # rows of nothing but padding
    ((6, 40, 3, 5), (1, 1), (0, 2), (1, 1), 1),
    ((64, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((128, 128, 3, 3), (1, 1), (2, 2), (1, 1), 1),
    ((6, 3, 5, 4), (3, 2), (1, 0), (1, 1), 1),
    ((6, 3, 3, 3), (1, 1), (2, 3), (2, 3), 1),
    ((6, 2, 3, 3), (2, 1), (1, 1), (1, 1), 2),
    ((6, 3, 3, 3), (1, 1), (4, 4), (1, 1), 1),
]


@pytest.fixture(autouse=True)
def many_strips(monkeypatch):
    monkeypatch.setattr(steps, '_STRIP', 1)


def problem(shape, group):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, shape[1] * group, 27, 19, generator=generator).relu()
    weight, bias = torch.randn(shape, generator=generator), torch.randn(shape[0])
    leaves = [each.requires_grad_() for each in (x, weight, bias)]
    return leaves, [each.detach().double().requires_grad_() for each in leaves]


@pytest.mark.parametrize(
    'function, case',
    [(steps.Convolution, case) for case in CASES]
    + [(steps.Product, case) for case in CASES if case[3:] == ((1, 1), 1)],
    ids=str,
)
def test_values_and_gradients_are_those_of_a_convolution_and_its_relu(case, function):
    shape, stride, pad, dilation, group = case
    leaves, exact = problem(shape, group)
    geometry = Geometry(stride, pad, dilation, group, relu=True, masks=True)
    blob = ParamBlob(nn.Parameter(leaves[1].detach()))
    top = steps.Masked.apply(function.apply(*leaves, geometry, Room(), blob))
    plain = F.conv2d(*exact, stride, pad, dilation, group)
    expected = plain.relu()
    assert_near(top, expected.float())
    decided = plain.abs() > 1e-4  # a ReLU's gradient at zero is left to rounding
    diff = torch.randn(top.shape, generator=torch.Generator().manual_seed(2)) * decided
    found = torch.autograd.grad(top, leaves, diff)
    x, weight, bias = torch.autograd.grad(expected, exact, diff.double())
    for one, other in zip(found, (x * (exact[0] > 0), weight, bias)):
        assert_near(one, other.float())


@pytest.mark.parametrize('ceil', [False, True])
@pytest.mark.parametrize('kernel, stride', [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 2), (2, 1))])
def test_gradients_are_those_of_a_pooling(kernel, stride, ceil):
    x = problem((6, 3, 3, 3), 1)[0][0]
    top = steps.MaxPooling.apply(x, kernel, stride, ceil, True)
    expected = F.max_pool2d(x, kernel, stride, ceil_mode=ceil)
    assert torch.equal(top, expected)
    diff = torch.randn(top.shape, generator=torch.Generator().manual_seed(2))
    (found,) = torch.autograd.grad(top, x, diff)
    (whole,) = torch.autograd.grad(expected, x, diff)
    assert torch.equal(found, whole * (x > 0))


def test_a_gradient_is_written_into_the_memory_that_is_spare():
    leaves, _ = problem((64, 64, 3, 3), 1)
    for function in (steps.Convolution, steps.Product):
        blob = ParamBlob(nn.Parameter(leaves[1].detach()))
        blob.parameter.grad = torch.full_like(leaves[1], 7)
        place = blob.parameter.grad.data_ptr()
        blob.clear_diff()
        geometry = Geometry((1, 1), (1, 1), (1, 1), 1)
        top = function.apply(*leaves, geometry, Room(), blob)
        (found,) = torch.autograd.grad(top.sum(), leaves[1])
        assert found.data_ptr() == place
        (expected,) = torch.autograd.grad(F.conv2d(*leaves, padding=1).sum(), leaves[1])
        assert_near(found, expected)
