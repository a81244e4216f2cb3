"""What a blob holds where the image does not reach: values that follow from the weights alone.

Large padding surrounds an image with pixels that are the same for every image: those of an
image of zeros. There most rows are equal, and so are most columns; only those near an edge
of the blob differ. So a frame keeps the corners, and one row and one column in place of all
between them. It costs a few pixels per layer, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from caffe_port.plan.areas import Area, common

_EVERYWHERE = range(-(2**40), 2**40)


class Frame:
    """A blob of an image of zeros, 1 x C x H x W.

    constant: a stretch of rows that are all equal, and one of columns.
    """

    def __init__(self, channels: int, size: tuple[int, ...], constant: Area):
        self.size = size
        # Where no rows are equal, all count as rows before them.
        self.constant = Area(*(c or range(n, n) for c, n in zip(constant, size)))
        # Rows before the constant ones, one of these, rows behind them, and one of zeros.
        shape = (sum(map(len, self._parts(axis))) + 1 for axis in (0, 1))
        self._values = torch.zeros(1, channels, *shape, dtype=torch.float32).contiguous(
            memory_format=torch.channels_last
        )

    @classmethod
    def of_zeros(cls, channels: int) -> Frame:
        """Return the frame of a blob of zeros, which are zeros outside it too."""
        return cls(channels, (1, 1), Area(_EVERYWHERE, _EVERYWHERE))

    def _parts(self, axis: int) -> tuple[range, range]:
        """Return the rows (or columns) kept before and behind the constant ones."""
        constant, size = self.constant[axis], self.size[axis]
        return range(min(max(constant.start, 0) + 1, size)), range(min(constant.stop, size), size)

    def corners(self) -> Iterator[tuple[Area, Tensor]]:
        """Yield the four areas that are kept, and their memory, to be written."""
        down = 0
        for rows in self._parts(0):
            across = 0
            for columns in self._parts(1):
                memory = self._values[:, :, down : down + len(rows), across : across + len(columns)]
                if memory.numel():
                    yield Area(rows, columns), memory
                across += len(columns)
            down += len(rows)

    def crop(self, area: Area) -> Tensor:
        """Return the pixels of an area, zeros outside the blob: 1 x C x H x W."""
        shape = *self._values.shape[:2], *map(len, area)
        out = self._values.new_empty(shape).contiguous(memory_format=torch.channels_last)
        self.write(area, out)
        return out

    def write(self, area: Area, out: Tensor) -> None:
        """Write the pixels of an area, zeros outside the blob, to N x C x H x W."""
        for rows, kept_rows in self._pieces(0, area.rows):
            for columns, kept_columns in self._pieces(1, area.columns):
                out[:, :, rows, columns] = self._values[:, :, kept_rows, kept_columns]

    def _pieces(self, axis: int, span: range) -> Iterator[tuple[slice, slice]]:
        """Yield where pieces of a stretch of rows (or columns) lie in it, and where they are kept.

        Equal rows are kept as one.
        """
        constant, size = self.constant[axis], self.size[axis]
        one, zeros = max(constant.start, 0), self._values.shape[2 + axis] - 1
        low, high = min(constant.start, 0), max(constant.stop, size)
        pieces = (
            (range(span.start, low), zeros, 0),
            (range(low, constant.start), low, 1),
            (constant, one, 0),
            (range(constant.stop, high), one + 1, 1),
            (range(high, span.stop), zeros, 0),
        )
        for piece, kept, stride in pieces:
            part = common(piece, span)
            if part:
                first = kept + stride * (part.start - piece.start)
                yield (
                    slice(part.start - span.start, part.stop - span.start),
                    slice(first, first + (stride * (len(part) - 1) + 1)),
                )
