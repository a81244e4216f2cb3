"""One layer computed in another way than caffe_port.ops writes it, differentiably."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_port.ops.base import Op
from caffe_port.plan import products, upsampling
from caffe_port.plan.areas import whole
from caffe_port.plan.kept import Kept
from caffe_port.plan.lines import filter_windows, method_of
from caffe_port.plan.switch import covers, is_untouched

# Below this many multiply-adds, a layer runs its own forward.
LEAST = 2**24


class Faster:
    """Computes a Convolution or Deconvolution in place of its own forward, where that is faster."""

    TYPES = 'Convolution', 'Deconvolution'

    def __init__(self, op: Op):
        self.op = op
        self._kept = Kept()

    def __call__(self, bottom: Tensor) -> Tensor | None:
        """Return the top, or None where the layer's own forward should run."""
        op = self.op
        if not covers((bottom, *op.blobs())) or not is_untouched(op):
            return None
        if bottom.dim() != 4 or bottom.shape[1] != op.inputs or op.axis != 1:
            return None
        if type(op).__name__ == 'Deconvolution':
            return self._upsampled(bottom)
        size = [
            (pixels + 2 * p - (d * (k - 1) + 1)) // s + 1
            for pixels, k, s, p, d in zip(
                bottom.shape[2:], op.kernel, op.stride, op.pad, op.dilation
            )
        ]
        pixels = bottom.shape[0] * size[0] * size[1]
        if min(size) < 1 or pixels * op.weight.numel() < LEAST:
            return None
        if method_of(op, pixels) == 'product':
            return products.convolve(bottom, op.weight, op.bias, op.stride, op.pad)
        return None

    def _upsampled(self, bottom: Tensor) -> Tensor | None:
        op = self.op
        pixels = bottom.shape[0] * bottom.shape[2] * bottom.shape[3]
        fixed = not op.weight.requires_grad or not torch.is_grad_enabled()
        if not fixed or set(op.dilation) != {1} or pixels * op.weight.numel() < LEAST:
            return None
        self._kept.watch('weight', op.weight)
        self._kept.refresh()
        kernel = self._kept.of('weight', 'kernel', lambda w: upsampling.separate(w, op.group))
        if kernel is None:
            return None
        windows = filter_windows(op)
        size = [
            window.stride * (length - 1) + window.extent - 2 * window.pad
            for window, length in zip(windows, bottom.shape[2:])
        ]
        tops, bottoms = whole((0, 0, *size)), whole(tuple(bottom.shape))
        rows, columns = upsampling.matrices(kernel, windows, tops, bottoms)
        return upsampling.upsample(bottom, rows, columns, op.bias)
