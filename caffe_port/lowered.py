"""Layers in 16 bits: which compute in them, and what the others are given.

Convolution and InnerProduct have most of a net's arithmetic, and their sums average rounding
out: bottoms and blobs are rounded, the sums are kept in float32 by the processor. Layers that pass
values on take them as they come, in either type. All others compute in float32: losses,
normalizations, and Deconvolution too, so that scores are not rounded as they are upsampled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_port.mode import LOW_DTYPES
from caffe_port.ops.base import Op, as_tuple

PRODUCTS = frozenset({'Convolution', 'InnerProduct'})
_PASSING = frozenset('Concat Crop Dropout Flatten ReLU Reshape Silence Slice Split'.split())


def compute(op: Op, bottoms: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the tops of a layer for a precision of 16 bits, differentiable."""
    kind = type(op).__name__
    if kind in PRODUCTS:
        blobs = {name: lower(getattr(op, name), dtype) for name in op.blob_names}
        bottoms = tuple(bottom.to(dtype) for bottom in bottoms)
        return as_tuple(torch.func.functional_call(op, blobs, bottoms))
    if kind in _PASSING or (kind == 'Pooling' and op.is_max and op.top_count == 1):
        return as_tuple(op(*bottoms))
    return as_tuple(op(*map(raised, bottoms)))


def lower(blob: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a blob in a type of 16 bits; filters with channels last, as its kernels want them."""
    if blob.dtype == dtype:
        return blob
    if blob.dim() == 4:
        return blob.to(dtype, memory_format=torch.channels_last)
    return blob.to(dtype)


def raised(tensor: Tensor) -> Tensor:
    """Return a tensor of 16 bits in float32, and any other as it is."""
    return tensor.float() if tensor.dtype in LOW_DTYPES else tensor
