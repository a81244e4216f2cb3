"""Deconvolution with one fixed kernel per channel as two products with narrow matrices.

The bilinear kernel that surgery.interp fills in is diagonal (no channel reads another) and
separable: k[i, j] = rows[i] * columns[j]. Then the top is R x C', for every channel x, with
R[y, i] = rows[y + pad - stride * i] and C the same for columns. Rows and columns that
are not read are left out of R and C.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from caffe_port.plan.areas import Area, Window


class Kernel(NamedTuple):
    """The kernel of every channel, as the factors of its outer product."""

    rows: Tensor
    columns: Tensor


def separate(weight: Tensor, group: int) -> Kernel | None:
    """Return the kernel that all channels of a weight I x O/g x kh x kw share.

    None unless the weight is diagonal, of one kernel, and this is separable.
    """
    channels = weight.shape[0]
    if weight.shape[1] * group != channels or group not in (1, channels):
        return None
    kernels = weight[:, 0] if group > 1 else weight.diagonal().permute(2, 0, 1)
    first = kernels[0]
    if weight.count_nonzero() != channels * first.count_nonzero():
        return None
    if not torch.equal(kernels, first.expand_as(kernels)):
        return None
    largest = int(first.abs().argmax())
    row, column = divmod(largest, first.shape[1])
    kernel = Kernel(first[:, column] / first[row, column].where(first.any(), 1.0), first[row])
    error = (torch.outer(*kernel) - first).abs().max()
    return kernel if error <= 5e-7 * first.abs().max() else None


def matrix(line: Tensor, window: Window, tops: range, bottoms: range) -> Tensor:
    """Return what each of the bottoms adds to each of the tops: len(tops) x len(bottoms)."""
    y = torch.arange(tops.start, tops.stop)[:, None]
    x = torch.arange(bottoms.start, bottoms.stop)
    at = y + window.pad - window.stride * x
    inside = (at >= 0) & (at < len(line))
    return line[at.clamp(0, len(line) - 1)] * inside


def matrices(
    kernel: Kernel, windows: tuple[Window, Window], tops: Area, bottoms: Area
) -> tuple[Tensor, Tensor]:
    """Return R and C for an area of the top made from an area of the bottom."""
    rows, columns = (matrix(*each) for each in zip(kernel, windows, tops, bottoms))
    return rows, columns


def upsample(bottom: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    """Return R x C' for every channel, plus the bias; differentiable by the bottom."""
    top = rows @ (bottom @ columns.t())
    return top if bias is None else top + bias[:, None, None]


def multiply_adds(tops: Area, bottoms: Area, channels: int) -> int:
    """Return the multiply-adds of one image."""
    across = len(bottoms.rows) * len(bottoms.columns) * len(tops.columns)
    return channels * (across + len(tops.rows) * len(bottoms.rows) * len(tops.columns))
