"""What a blob holds where the image does not reach: values that follow from the weights alone.

Large padding surrounds an image with pixels that are the same for every image: those of an
image of zeros. There most rows are equal, and so are most columns; only those near an edge
of the blob differ. So a frame keeps the corners, and one row and one column in place of all
between them. It costs a few pixels per layer, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from caffe_port.plan.areas import Area

_EVERYWHERE = range(-(2**40), 2**40)


class Frame:
    """A blob of an image of zeros, 1 x C x H x W.

    constant: a stretch of rows that are all equal, and one of columns.
    """

    def __init__(self, channels: int, size: tuple[int, ...], constant: Area):
        self.size, self.constant = size, constant
        # Rows before the constant ones, one of these, rows behind them, and one of zeros.
        shape = (sum(map(len, self._parts(axis))) + 1 for axis in (0, 1))
        self._values = torch.zeros(1, channels, *shape).contiguous(
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
        found = self._values
        for axis, span in enumerate(area):
            found = found.index_select(2 + axis, torch.from_numpy(self._places(axis, span)))
        return found

    def _places(self, axis: int, span: range) -> np.ndarray:
        """Return where the rows (or columns) of a stretch are kept."""
        constant, size = self.constant[axis], self.size[axis]
        at = np.arange(span.start, span.stop)
        one = max(constant.start, 0)
        places = np.select(
            [at < constant.start, at < constant.stop], [at, one], one + 1 + at - constant.stop
        )
        inside = (at >= 0) & (at < size) | (constant.start <= at) & (at < constant.stop)
        return np.where(inside, places, self._values.shape[2 + axis] - 1)
