"""Fixed deconvolutions: when a weight is one, and what it makes."""

import pytest
import torch
import torch.nn.functional as F

from caffe_port.plan import upsampling
from caffe_port.plan.areas import Area, Window
from tests.caffe_port.plan.forced import assert_near, bilinear


def diagonal(channels: int, kernel: torch.Tensor, group: int = 1) -> torch.Tensor:
    if group == channels:
        return kernel.expand(channels, 1, *kernel.shape).clone()
    weight = torch.zeros(channels, channels, *kernel.shape)
    weight[range(channels), range(channels)] = kernel
    return weight


@pytest.mark.parametrize('group', [1, 3])
@pytest.mark.parametrize('size, stride, pad', [(4, 2, 0), (16, 8, 0), (63, 32, 5), (3, 3, 1)])
def test_an_area_of_the_top_is_the_deconvolutions(size, stride, pad, group):
    kernel = torch.from_numpy(bilinear(size)).float() * 0.3
    weight, x = diagonal(3, kernel, group), torch.randn(2, 3, 7, 5)
    expected = F.conv_transpose2d(x, weight, None, stride, pad, groups=group)
    windows = Window(size, stride, pad), Window(size, stride, pad)
    tops = Area(range(1, expected.shape[2] - 2), range(2, expected.shape[3]))
    bottoms = Area(range(7), range(5))
    pair = upsampling.matrices(upsampling.separate(weight, group), windows, tops, bottoms)
    bias = torch.randn(3)
    found = upsampling.upsample(x, *pair, bias)
    assert_near(found, expected[:, :, 1:-2, 2:] + bias[:, None, None])


def test_only_one_separable_kernel_on_the_diagonal_counts():
    kernel = torch.from_numpy(bilinear(4)).float()
    weight = diagonal(3, kernel)
    assert upsampling.separate(weight, 1) is not None
    for change in (
        lambda w: w[0, 1].add_(1e-6),  # another channel
        lambda w: w[2, 2].mul_(2),  # another kernel
        lambda w: w[range(3), range(3), 0, 0].add_(0),
    ):
        changed = weight.clone()
        change(changed)
        same = torch.equal(changed, weight)
        assert (upsampling.separate(changed, 1) is None) != same
    ring = kernel.clone()
    ring[1:3, 1:3] = 0
    assert upsampling.separate(diagonal(3, ring), 1) is None
    assert upsampling.separate(torch.randn(3, 2, 4, 4), 1) is None
    assert upsampling.separate(torch.zeros(3, 3, 4, 4), 1) is not None
