"""Pooling over windows: Pooling and SPP."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port import rng
from caffe_port.ops.base import MAX_PAD, Op, Shape, height_width, settings
from caffe_port.proto.caffe_pb2 import PoolingParameter, SPPParameter

LOWEST = torch.finfo(torch.float32).min


class Windows(NamedTuple):
    """The windows of a pooling, each field as (h, w)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]


class _Pool(Op, abstract=True):
    """Base of Pooling and SPP: one value of each window, by MAX, AVE or STOCHASTIC.

    STOCHASTIC is for activations that are not negative. In TRAIN it picks one of the window
    with a probability in proportion to its value; in TEST it gives the mean of all, weighted
    so, and 0 for a window of zeros. As in Caffe's GPU kernel, a uniform number r of the
    random stream picks the first element, in C order, up to which the sum is at least r
    times the window's. Deviates: Caffe has no CPU implementation, and in TEST no gradient.
    """

    is_max: bool
    is_stochastic: bool
    ceil = True

    def _read_method(self, shape: Shape, method: str) -> None:
        self.require(len(shape) == 4, f'bottom {shape} must have 4 axes')
        self.method = method
        self.is_max, self.is_stochastic = method == 'MAX', method == 'STOCHASTIC'

    def _pooled(self, bottom: Tensor, windows: Windows) -> tuple[Tensor, ...]:
        if not self.is_stochastic:
            return self._plain(bottom, windows)
        self.require(windows.pad == (0, 0), f'pad {windows.pad}: STOCHASTIC takes no pad')
        if self.training and not bottom.is_meta:
            return (self._sampled(bottom, windows),)
        (mean,), (squares,) = (self._plain(values, windows) for values in (bottom, bottom**2))
        return (torch.where(mean > 0, squares / mean.where(mean > 0, 1), 0),)

    def _sampled(self, bottom: Tensor, windows: Windows) -> Tensor:
        """Pick an element of each window by its value."""
        kernel, stride, _ = windows
        high, wide = (s - 1 if self.ceil else 0 for s in stride)  # as in _padded
        self.require(max(high, wide) <= MAX_PAD, f'stride {stride} exceeds {MAX_PAD}')
        count, channels = bottom.shape[:2]
        padded = F.pad(bottom, (0, wide, 0, high)).flatten(0, 1)[:, None]
        elements = F.unfold(padded, kernel, stride=stride)
        sums = elements.detach().cumsum(1)
        bound = rng.draw_uniform(sums[:, 0].shape, bottom.device) * sums[:, -1]
        picks = (sums >= bound[:, None]).to(torch.uint8).argmax(1, keepdim=True)
        rows = (padded.shape[2] - kernel[0]) // stride[0] + 1
        return elements.gather(1, picks).reshape(count, channels, rows, -1)

    def _plain(self, bottom: Tensor, windows: Windows) -> tuple[Tensor, ...]:
        if not torch.compiler.is_exporting() and _suits_pytorch(windows):
            return self._pool(bottom, windows, self.ceil)
        return self._padded(bottom, windows)

    def _pool(self, bottom: Tensor, windows: Windows, ceil: bool) -> tuple[Tensor, ...]:
        if not self.is_max:
            return (F.avg_pool2d(bottom, *windows, ceil, True),)
        if self.top_count == 1:
            return (F.max_pool2d(bottom, *windows, ceil_mode=ceil),)
        top, mask = F.max_pool2d(bottom, *windows, ceil_mode=ceil, return_indices=True)
        return top, mask.to(bottom.dtype)

    def _padded(self, bottom: Tensor, windows: Windows) -> tuple[Tensor, ...]:
        """Pool with explicit padding and without rounding up, for what PyTorch refuses (strides
        past the window, pads past its half) or cannot export (rounding up).

        Rounding up gives as many windows as fit after stride - 1 more pixels.
        """
        kernel, stride, pad = windows
        size, extra = bottom.shape[2:], [s - 1 if self.ceil else 0 for s in stride]
        (high, wide), (low, right) = pad, [p + e for p, e in zip(pad, extra)]
        for axis in (0, 1):
            reach = size[axis] + 2 * pad[axis] + extra[axis]
            self.require(
                reach >= kernel[axis],
                f'kernel {kernel} exceeds padded bottom {tuple(bottom.shape)}',
            )
            self.require(
                max(pad[axis], extra[axis]) <= MAX_PAD,
                f'pad {pad} or stride {stride} exceeds {MAX_PAD}',
            )
        padded = F.pad(bottom, (wide, right, high, low), value=LOWEST if self.is_max else 0)
        tops = self._pool(padded, windows._replace(pad=(0, 0)), False)
        if not self.is_max:
            area = kernel[0] * kernel[1]
            tops = (tops[0] * area / _areas(bottom, windows, tops[0]),)
        elif len(tops) == 2:
            rows, columns = tops[1] // padded.shape[3] - high, tops[1] % padded.shape[3] - wide
            inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
            tops = tops[0], torch.where(inside, rows * size[1] + columns, -1)
        return tuple(_without_last(top, bottom, windows).contiguous() for top in tops)


def _suits_pytorch(windows: Windows) -> bool:
    return all(s <= k and 2 * pad <= k for k, s, pad in zip(*windows))


def _areas(bottom: Tensor, windows: Windows, top: Tensor) -> Tensor:
    """Return the areas of the windows, clipped to the padded extent as in Caffe."""
    sides = []
    for axis, (k, s, pad) in enumerate(zip(*windows), 2):
        starts = torch.arange(top.shape[axis], device=top.device) * s
        ends = (starts + k).clamp(max=bottom.shape[axis] + 2 * pad)
        sides.append((ends - starts).to(top.dtype))
    return sides[0][:, None] * sides[1]


def _without_last(top: Tensor, bottom: Tensor, windows: Windows) -> Tensor:
    """Drop a last window that starts past the image and its first pad, if there is any pad."""
    for axis, (k, s, pad) in enumerate(zip(*windows), 2):
        # Windows of pad + stride <= kernel start in the image, whatever its size.
        if (
            any(windows.pad)
            and pad + s > k
            and ((top.shape[axis] - 1) * s >= bottom.shape[axis] + pad)
        ):
            top = top.narrow(axis, 0, top.shape[axis] - 1)
    return top


class Pooling(_Pool):
    """Pool windows by MAX, AVE or STOCHASTIC, as pooling_layer.cpp and .cu; MAX has a second
    top, the mask.

    Output = ceil((in + 2 pad - kernel) / stride) + 1 (floor on request); with pad, a
    last window that would start in the far padding is dropped. AVE divides by the
    window clipped to the padded extent. The mask holds the winner's h * W + w.
    """

    tops = (1, 2)

    def setup(self, shape: Shape) -> None:
        p = self.param.pooling_param
        self._read_method(shape, PoolingParameter.PoolMethod.Name(p.pool))
        self.require(self.top_count == 1 or self.is_max, 'only MAX has a second top')
        self.is_global = p.global_pooling
        self.ceil = p.round_mode == PoolingParameter.CEIL

        def plain(field: str):
            return lambda: [getattr(p, field)] if p.HasField(field) else []

        stride = height_width(p, 'stride', 1, plain('stride'))
        pad = height_width(p, 'pad', 0, plain('pad'))
        if self.is_global:
            self.require(
                not (p.HasField('kernel_size') or p.HasField('kernel_h') or p.HasField('kernel_w')),
                'global_pooling takes no kernel size',
            )
            self.require(
                pad == (0, 0) and stride == (1, 1), 'global_pooling goes with pad 0 and stride 1'
            )
            self.itemwise = not self.is_stochastic
            return
        kernel = height_width(p, 'kernel', None, plain('kernel_size'))
        self.require(
            min(kernel) > 0 and min(stride) > 0,
            f'kernel {kernel} and stride {stride} must be positive',
        )
        self.require(
            all(one < k for one, k in zip(pad, kernel)),
            f'pad {pad} must be smaller than kernel {kernel}',
        )
        self.windows = Windows(kernel, stride, pad)
        self.itemwise = not self.is_stochastic and _suits_pytorch(self.windows)

    def _settings(self) -> list[str]:
        if self.is_global:
            return [self.method, 'global_pooling=True']
        kernel, stride, pad = self.windows
        return [
            self.method,
            *settings(kernel_size=kernel, stride=stride, pad=pad if any(pad) else None),
        ]

    def forward(self, bottom: Tensor) -> tuple[Tensor, ...]:
        return self._whole(bottom) if self.is_global else self._pooled(bottom, self.windows)

    def _whole(self, bottom: Tensor) -> tuple[Tensor, ...]:
        """Pool the whole image."""
        if self.is_stochastic:
            high, wide = bottom.shape[2:]
            return self._pooled(bottom, Windows((high, wide), (1, 1), (0, 0)))
        if not self.is_max:
            return (bottom.mean((2, 3), keepdim=True),)
        best, place = bottom.flatten(2).max(-1)
        tops = best, place.to(bottom.dtype)
        return tuple(top[:, :, None, None] for top in tops[: self.top_count])


class SPP(_Pool):
    """Spatial pyramid pooling, as spp_layer.cpp: level i of pyramid_height pools 2**i x 2**i
    windows that tile the image. The top is N x (1 + 4 + 16 + ...) C, or for one level
    N x C x 1 x 1.

    A window's side is its share of the image, rounded up. The excess of all windows over
    the image is padded, half on each side, rounded up; as in Caffe, an image whose pad
    would be a window or more is refused.
    """

    def setup(self, shape: Shape) -> None:
        p = self.param.spp_param
        self._read_method(shape, SPPParameter.PoolMethod.Name(p.pool))
        self.levels = p.pyramid_height
        self.require(self.levels > 0, 'pyramid_height must be positive')

    def forward(self, bottom: Tensor) -> Tensor:
        tops = [
            self._pooled(bottom, self._windows(bottom, level))[0] for level in range(self.levels)
        ]
        return tops[0] if len(tops) == 1 else torch.cat([top.flatten(1) for top in tops], 1)

    def _windows(self, bottom: Tensor, level: int) -> Windows:
        size, count = tuple(bottom.shape[2:]), 2**level
        kernel = tuple(-(-length // count) for length in size)
        pad = tuple((k * count - length + 1) // 2 for k, length in zip(kernel, size))
        self.require(
            all(p < k for p, k in zip(pad, kernel)),
            f'level {level} of the pyramid does not fit {size[0]} x {size[1]}: '
            f'pad {pad} must be smaller than kernel {kernel}',
        )
        return Windows(kernel, kernel, pad)
