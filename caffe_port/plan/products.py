"""Convolution as one matrix product, for layers with more weights than pixels.

Such a convolution spends its time on laying out its weights anew at every call. As a
product, O x (I kh kw) times (I kh kw) x pixels, it reads them where they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.plan import strips

# A product pays while the pixels that share the weights are not many more than the outputs:
# then the bottom's unfolded windows would take more memory than the weights laid out anew.
# What Winograd's way can compute as well, it computes faster unless pixels are few.
LEAST_WEIGHTS, OUTPUTS_PER_PIXEL, OUTPUTS_PER_PIXEL_OF_3X3 = 2**20, 1, 8
# Rows of a strip of the top.
_ROWS = 512


def pays(weight: Tensor, pixels: int) -> bool:
    """Return whether a product is faster than a convolution for this many pixels of the top."""
    small = tuple(weight.shape[2:]) == (3, 3)
    outputs = OUTPUTS_PER_PIXEL_OF_3X3 if small else OUTPUTS_PER_PIXEL
    return weight.numel() >= LEAST_WEIGHTS and pixels * outputs <= weight.shape[0]


def size_of(
    bottom: Tensor, weight: Tensor, stride: tuple[int, int], pad: tuple[int, int]
) -> list[int]:
    """Return height and width of the top."""
    return [
        (pixels + 2 * p - k) // s + 1
        for pixels, k, s, p in zip(bottom.shape[2:], weight.shape[2:], stride, pad)
    ]


def columns(
    bottom: Tensor, weight: Tensor, stride: tuple[int, int], pad: tuple[int, int]
) -> Tensor:
    """Return what each pixel of the top reads: (I kh kw) x (N h w)."""
    kernel = weight.shape[2:]
    if _is_pointwise(kernel, stride, pad):
        found = bottom.flatten(2)
    elif not torch.is_grad_enabled():
        return _columns_in_strips(bottom, weight, stride, pad)
    else:
        found = F.unfold(bottom, kernel, padding=pad, stride=stride)
    return found.transpose(0, 1).reshape(found.shape[1], -1)


def _columns_in_strips(
    bottom: Tensor, weight: Tensor, stride: tuple[int, int], pad: tuple[int, int]
) -> Tensor:
    channels, kernel = bottom.shape[1], weight.shape[2:]
    size = size_of(bottom, weight, stride, pad)
    out = bottom.new_empty(channels, *kernel, len(bottom), *size)
    step = strips.share(channels)

    def compute(first: int) -> None:
        part = F.pad(bottom[:, first : first + step], (pad[1], pad[1], pad[0], pad[0]))
        windows = part.contiguous().unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
        out[first : first + step].copy_(windows.permute(1, 4, 5, 0, 2, 3))

    strips.run(compute, range(0, channels, step), short=True)
    return out.view(weight[0].numel(), -1)


def fold(
    columns: Tensor, bottom: Tensor, weight: Tensor, stride: tuple[int, int], pad: tuple[int, int]
) -> Tensor:
    """Return the adjoint of `columns`: the sum of what was read of each pixel of the bottom."""
    kernel, batch = weight.shape[2:], bottom.shape[0]
    found = columns.view(len(columns), batch, -1).transpose(0, 1)
    if _is_pointwise(kernel, stride, pad):
        return found.reshape(bottom.shape)
    return F.fold(found, bottom.shape[2:], kernel, padding=pad, stride=stride)


def _is_pointwise(kernel: tuple[int, ...], stride: tuple[int, int], pad: tuple[int, int]) -> bool:
    return tuple(kernel) == stride == (1, 1) and pad == (0, 0)


def multiply(columns: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """Return the product, O x (N h w), or the ReLU of it."""
    matrix = weight.flatten(1)
    if not torch.is_grad_enabled():
        return _multiply_in_strips(columns, matrix, bias, relu)
    top = matrix @ columns if bias is None else torch.addmm(bias[:, None], matrix, columns)
    return top.relu() if relu else top


def _multiply_in_strips(columns: Tensor, matrix: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    out = columns.new_empty(len(matrix), columns.shape[1])
    step = strips.step(len(matrix), _ROWS)

    def compute(first: int) -> None:
        rows = slice(first, first + step)
        if bias is None:
            torch.mm(matrix[rows], columns, out=out[rows])
        else:
            torch.addmm(bias[rows, None], matrix[rows], columns, out=out[rows])
        if relu:
            out[rows].relu_()

    strips.run(compute, range(0, len(matrix), step))
    return out


def convolve(
    bottom: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    pad: tuple[int, int],
    relu: bool = False,
) -> Tensor:
    """Return conv2d(bottom, weight, bias, stride, pad), or the ReLU of it; differentiable."""
    top = multiply(columns(bottom, weight, stride, pad), weight, bias, relu)
    size = size_of(bottom, weight, stride, pad)
    return top.view(-1, bottom.shape[0], *size).transpose(0, 1)
