"""Convolution as one matrix product, for layers with more weights than pixels.

Such a convolution spends its time on laying out its weights anew at every call. As a
product, O x (I kh kw) times (I kh kw) x pixels, it reads them where they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A product pays while the pixels that share the weights are not many more than the outputs:
# then the bottom's unfolded windows would take more memory than the weights laid out anew.
# What Winograd's way can compute as well, it computes faster unless pixels are few.
LEAST_WEIGHTS, OUTPUTS_PER_PIXEL, OUTPUTS_PER_PIXEL_OF_3X3 = 2**20, 1, 8


def pays(weight: Tensor, pixels: int) -> bool:
    """Return whether a product is faster than a convolution for this many pixels of the top."""
    small = tuple(weight.shape[2:]) == (3, 3)
    outputs = OUTPUTS_PER_PIXEL_OF_3X3 if small else OUTPUTS_PER_PIXEL
    return weight.numel() >= LEAST_WEIGHTS and pixels * outputs <= weight.shape[0]


def convolve(
    bottom: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    pad: tuple[int, int],
) -> Tensor:
    """Return conv2d(bottom, weight, bias, stride, pad), differentiable."""
    batch, kernel = bottom.shape[0], weight.shape[2:]
    size = [
        (pixels + 2 * p - k) // s + 1
        for pixels, k, s, p in zip(bottom.shape[2:], kernel, stride, pad)
    ]
    if kernel == (1, 1) and stride == (1, 1) and pad == (0, 0):
        columns = bottom.flatten(2)
    else:
        columns = F.unfold(bottom, kernel, padding=pad, stride=stride)
    columns = columns.transpose(0, 1).reshape(columns.shape[1], -1)
    matrix = weight.flatten(1)
    top = matrix @ columns if bias is None else torch.addmm(bias[:, None], matrix, columns)
    return top.view(-1, batch, *size).transpose(0, 1)
