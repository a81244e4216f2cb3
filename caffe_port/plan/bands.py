"""Bands of equal rows and columns, which a large padding leaves, are computed in part.

Rows of a padded image that see nothing but padding are equal, and so are those of every blob that
convolutions and poolings make of them. So a blob may be computed with most of such a band left
out: the layers are the same, their windows see the same values, and copies of one row make
the blob whole. The gradient of a row is then the sum over its copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from caffe_port.plan.areas import Window

# A band is cut where the blob loses at least this share of its pixels.
_CUT_PAYS = 0.1
_ENDLESS = 2**40


class Band(NamedTuple):
    """Row `at` of a blob as it is computed, and how many copies of it are left out behind it."""

    at: int
    left_out: int


Bands = Sequence[Sequence[Band]]  # of the rows, of the columns; ascending


class Cut(NamedTuple):
    """How many rows (or columns) are left out before and behind the image."""

    before: int
    behind: int


@dataclass(frozen=True)
class Axis:
    """The rows (or columns) of a blob: their number, and which are equal beside the image.

    stride: rows of the stretch's bottom for each of the blob.
    """

    size: int
    before: range
    behind: range
    stride: int

    @classmethod
    def of_image(cls, size: int) -> Axis:
        """Return the rows of a bottom, which has zeros around it."""
        return cls(size, range(-_ENDLESS, 0), range(size, _ENDLESS), 1)

    def after(self, window: Window, size: int) -> Axis:
        """Return the rows that a layer makes of these, `size` of them."""
        before, behind = (window.within(rows, size) for rows in (self.before, self.behind))
        return Axis(size, before, behind, self.stride * window.stride)

    def most(self) -> Cut:
        """Return how much may be cut, in rows of the bottom: one row of each band stays."""
        return Cut(*(max(len(rows) - 1, 0) * self.stride for rows in (self.before, self.behind)))

    def bands(self, cut: Cut) -> list[Band]:
        """Return the bands of the blob after a cut, in rows of the bottom."""
        return self.inserts(cut, Cut(0, 0))

    def inserts(self, cut: Cut, smaller: Cut) -> list[Band]:
        """Return the bands that turn the blob after a cut into that after a smaller one."""
        before, behind = ((have - want) // self.stride for have, want in zip(cut, smaller))
        at = self.behind.start - cut.before // self.stride
        found = [Band(self.before.start, before), Band(at, behind)]
        return [band for band in found if band.left_out]


def cuts(axes: Sequence[Axis]) -> list[Cut]:
    """Return the cut of each blob of a chain, given one of its axes, in rows of its bottom.

    The cut changes behind layers with a stride alone, whose tops are small. It never grows along
    the chain, for rows can be added but not removed, and it is a multiple of the strides of the
    blobs that have it.
    """
    found: list[Cut] = []
    now, stride = Cut(_ENDLESS, _ENDLESS), 1
    for stop, last in enumerate(axes, 1):
        if last.stride == stride and stop < len(axes):
            continue
        part, stride = axes[len(found) : stop], last.stride
        sides = zip(now, *(axis.most() for axis in part))
        now = Cut(*(min(side) // stride * stride for side in sides))
        if sum(now) < _CUT_PAYS * part[0].size * part[0].stride:
            now = Cut(0, 0)
        found += [now] * len(part)
    return found


def _parts(bands: Sequence[Band], size: int) -> list[tuple[slice, slice]]:
    """Return the stretches of a blob of `size` rows as computed: there, and in the whole blob.

    A row that stands for a band is a stretch of one there.
    """
    parts, start, shift = [], 0, 0
    for at, left_out in bands:
        parts.append((slice(start, at), slice(start + shift, at + shift)))
        parts.append((slice(at, at + 1), slice(at + shift, at + shift + left_out + 1)))
        start, shift = at + 1, shift + left_out
    parts.append((slice(start, size), slice(start + shift, size + shift)))
    return parts


def expand(blob: Tensor, bands: Bands) -> Tensor:
    """Return the whole blob, channels last, with the copies that are left out."""
    height, width = (
        size + sum(band.left_out for band in axis) for size, axis in zip(blob.shape[2:], bands)
    )
    whole = torch.empty(
        (*blob.shape[:2], height, width), memory_format=torch.channels_last, dtype=blob.dtype
    )
    for rows, to_rows in _parts(bands[0], blob.shape[2]):
        for columns, to_columns in _parts(bands[1], blob.shape[3]):
            whole[:, :, to_rows, to_columns] = blob[:, :, rows, columns]
    return whole


def collapse(diff: Tensor, bands: Bands) -> Tensor:
    """Return the diff of a blob as computed: of each row, the sum over its copies."""
    height, width = (
        size - sum(band.left_out for band in axis) for size, axis in zip(diff.shape[2:], bands)
    )
    # Of the diff's kind, which vmap may have made.
    summed = diff.new_empty((len(diff), height, width, diff.shape[1])).permute(0, 3, 1, 2)
    for rows, of_rows in _parts(bands[0], height):
        for columns, of_columns in _parts(bands[1], width):
            part, to = diff[:, :, of_rows, of_columns], summed[:, :, rows, columns]
            axes = [axis for axis in (2, 3) if part.shape[axis] != to.shape[axis]]
            to.copy_(part.sum(axes, keepdim=True) if axes else part)
    return summed


class Expand(torch.autograd.Function):
    """expand(blob, bands), differentiable."""

    @staticmethod
    def forward(blob: Tensor, bands: Bands) -> Tensor:
        return expand(blob, bands)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.bands = inputs[1]

    @staticmethod
    def backward(ctx, diff: Tensor) -> tuple[Tensor, None]:
        return collapse(diff, ctx.bands), None
