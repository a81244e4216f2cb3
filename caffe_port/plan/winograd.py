"""Convolution with 3 x 3 filters by Winograd's F(4 x 4, 3 x 3), as batched matrix products.

A tile of 6 x 6 inputs gives 4 x 4 outputs. With polynomials d and g on one axis, their
product's values at six points are the products of their values there, so that

    y = A' [(G g) * (B' d)],    in two dimensions with kron(A', A') and so on:

36 multiplications per channel where a direct convolution takes 16 * 9. Over all channels and
tiles each of the 36 is a matrix product. The points are 0, +-2/3, +-3/2 and infinity, whose
powers stay small: the rounding error is that of a direct convolution (the usual
0, +-1, +-2 lose four times as much).

Images are worked through in strips of rows of tiles, so that what passes between the
products stays in the processor's cache.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016; the
matrices are derived here, as by Toom and Cook.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.plan import strips

IN, OUT, TAPS = 6, 4, 3
POINTS = [Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)]
# So many tiles make an operation long enough for its own call, whatever their channels.
_LEAST_TILES = 80
# Each thread has a sum of its own for the gradients of so many filters: 36 values for each.
_SMALL = 2**16


def _with_roots(roots: list[Fraction]) -> list[Fraction]:
    """Return the coefficients, lowest first, of the monic polynomial with `roots`, six of them."""
    polynomial = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *polynomial]
        polynomial = [a - root * b for a, b in zip(shifted, [*polynomial, Fraction(0)])]
    return polynomial + [Fraction(0)] * (IN - len(polynomial))


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A' (4 x 6), G (6 x 3) and B' (6 x 6) of one axis; the last point is infinity."""
    infinity = len(POINTS)
    outputs = [[*(x**i for x in POINTS), Fraction(int(i == OUT - 1))] for i in range(OUT)]
    taps, inputs = [], []
    for i, x in enumerate(POINTS):
        others = POINTS[:i] + POINTS[i + 1 :]
        scale = math.prod((x - y for y in others), start=Fraction(1))
        taps.append([x**j / scale for j in range(TAPS)])
        inputs.append(_with_roots(others))
    taps.append([Fraction(int(j == TAPS - 1)) for j in range(TAPS)])
    inputs.append(_with_roots(POINTS))
    assert len(taps) == infinity + 1 == IN
    a, g, b = (np.array(rows, dtype=np.float64) for rows in (outputs, taps, inputs))
    return a, g, b


def _plane(matrix: np.ndarray) -> Tensor:
    """Return the matrix that transforms both axes at once."""
    return torch.from_numpy(np.kron(matrix, matrix)).float()


_A, _G, _B = map(_plane, _matrices())  # 16 x 36, 36 x 9, 36 x 36
_A_BACK, _G_BACK = _A.t().contiguous(), _G.t().contiguous()


def filters(weight: Tensor) -> Tensor:
    """Return the transform of a weight, O x I x 3 x 3: 36 x I x O."""
    return _transformed_taps(weight, _G).transpose(1, 2)


def turned_filters(weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the transform of the filters turned round, from tops to bottoms: 36 x O x I.

    With it the diff of a convolution's bottom is one of the top's diff, padded by 2 - pad.
    """
    return _transformed_taps(weight, _G.flip(1), out)


def _transformed_taps(weight: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """Return matrix times the taps: 36 x O x I; in the memory of `out` if given."""
    if out is not None:
        out = out.view(IN * IN, -1)
    taps = torch.mm(matrix, weight.reshape(-1, TAPS * TAPS).t(), out=out)
    return taps.view(IN * IN, *weight.shape[:2])


def tiles_down(size: int) -> int:
    """Return how many tiles cover `size` outputs on one axis."""
    return -(-size // OUT)


def reach(size: int) -> int:
    """Return how many inputs the tiles of `size` outputs read on one axis."""
    return OUT * tiles_down(size) + TAPS - 1


def multiply_adds(height: int, width: int, inputs: int, outputs: int) -> int:
    """Return the multiply-adds of one image of height x width outputs."""
    tile = IN * IN * (IN * IN * inputs + inputs * outputs + OUT * OUT * outputs)
    return tiles_down(height) * tiles_down(width) * tile


def _strips(height: int, width: int, channels: int) -> range:
    """Return the first tile rows of strips that fit in the cache together with the filters."""
    rows, across = tiles_down(height), tiles_down(width)
    return range(0, rows, strips.step(rows, max(channels // 2, _LEAST_TILES) // across))


def _rows_of(image: Tensor, first: int, last: int, pad: int, width: int) -> Tensor:
    """Return rows first to last of the padded H x W x C, `width` columns of them: h x width x C.

    Beyond the image and its padding there are zeros.
    """
    height = image.shape[0]
    start, stop = max(first - pad, 0), min(last - pad, height)
    rows = image[start : max(start, stop)]
    above, right = max(pad - first, 0), max(width - pad - rows.shape[1], 0)
    below = last - first - above - rows.shape[0]
    if pad or above or right or below:
        rows = F.pad(rows, (0, 0, pad, right, above, below))
    return rows[:, :width]


def _tiles_of(rows: Tensor, size: int) -> Tensor:
    """Return the size x size tiles, 4 apart, of h x w x C: size x size x down x across x C."""
    return rows.unfold(0, size, OUT).unfold(1, size, OUT).permute(3, 4, 0, 1, 2)


class _Tiles:
    """The size x size tiles, 4 apart, of a padded image, C x H x W, that cover height x width."""

    def __init__(self, image: Tensor, size: int, pad: int, height: int, width: int):
        self._image, self._size, self._pad = image.permute(1, 2, 0), size, pad
        self._shared = size - OUT  # rows that a tile has in common with the next one
        rows, self._columns = (OUT * tiles_down(n) + self._shared for n in (height, width))
        self._all: Tensor | None = None
        if not pad and rows <= image.shape[1] and self._columns <= image.shape[2]:
            # Views are made once: each call in a strip makes threads wait for each other.
            self._all = _tiles_of(self._image[:rows, : self._columns], size)

    def transformed(self, matrix: Tensor, top: int, down: int) -> Tensor:
        """Return the transforms of `down` rows of tiles from row `top` on: 36 x tiles x C."""
        if self._all is None:
            first, last = OUT * top, OUT * (top + down) + self._shared
            rows = _rows_of(self._image, first, last, self._pad, self._columns)
            tiles = _tiles_of(rows, self._size)
        else:
            tiles = self._all[:, :, top : top + down]
        found = matrix @ tiles.reshape(self._size * self._size, -1)
        return found.view(IN * IN, -1, tiles.shape[-1])


def convolve(
    image: Tensor,
    transform: Tensor,
    bias: Tensor | None,
    pad: int,
    out: Tensor,
    relu: bool = False,
    mask: Tensor | None = None,
) -> None:
    """Write the convolution of one image, C x H x W, to `out`, K x h x w.

    `transform` is that of filters(). Both are fastest where channels come last in memory.
    The columns read, reach(w), may end in the padding or beyond the image. With a mask, of out's
    shape, the values are 0 where it is not positive.
    """
    outputs, height, width = out.shape
    across, tops = tiles_down(width), _strips(height, width, len(image))
    tiles, to = _Tiles(image, IN, pad, height, width), out.permute(1, 2, 0)
    bias = image.new_zeros(outputs) if bias is None else bias

    def compute(top: int) -> None:
        down = min(tops.step, tiles_down(height) - top)
        points = torch.bmm(tiles.transformed(_B, top, down), transform).view(IN * IN, -1)
        found = torch.addmm(bias.repeat(down * across), _A, points)
        found = found.view(OUT, OUT, down, across, outputs).permute(2, 0, 3, 1, 4)
        first, last = OUT * top, min(OUT * (top + down), height)
        found = found.reshape(OUT * down, OUT * across, outputs)[: last - first, :width]
        if relu:
            torch.clamp_min(found, 0, out=to[first:last])
        elif mask is not None:
            torch.mul(found, mask[:, first:last].permute(1, 2, 0) > 0, out=to[first:last])
        else:
            to[first:last].copy_(found)

    strips.run(compute, tops)


def correlate(image: Tensor, diff: Tensor, pad: int, total: Tensor | None = None) -> Tensor:
    """Return the gradient of the weight, O x I x 3 x 3, from one image and its top's diff.

    total: memory for 36 x O x I values, to be overwritten.
    """
    (channels, height, width), outputs = (image.shape[0], *diff.shape[1:]), diff.shape[0]
    if total is None:
        total = image.new_empty(IN * IN, outputs, channels)
    tiles = _Tiles(image, IN, pad, height, width)
    diffs = _Tiles(diff, OUT, 0, height, width)
    tops = _strips(height, width, channels)
    small = outputs * channels <= _SMALL
    threads = torch.get_num_threads()
    groups = threads if small and len(tops) >= threads else 1
    totals = [total, *(torch.empty_like(total) for _ in range(1, groups))]

    def add(group: int) -> None:
        for top in tops[group::groups]:
            down = min(tops.step, tiles_down(height) - top)
            points = tiles.transformed(_B, top, down)
            of_tops = diffs.transformed(_A_BACK, top, down).transpose(1, 2)
            sum_ = totals[group]
            torch.baddbmm(sum_, of_tops, points, beta=int(top > tops[group]), out=sum_)

    strips.run(add, range(groups))
    for other in totals[1:]:
        total.add_(other)
    taps = _G_BACK @ total.view(IN * IN, -1)
    return taps.view(TAPS, TAPS, outputs, channels).permute(2, 3, 0, 1)
