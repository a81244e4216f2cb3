"""Which pixels a layer reads for those it writes, axis by axis.

A stretch of pixels on one axis is a range; an area is one for the rows and one for the
columns. Pixels outside the blob have numbers too: below 0, or from its size on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Area(NamedTuple):
    """A rectangle of pixels of a blob."""

    rows: range
    columns: range

    @property
    def pixels(self) -> int:
        return len(self.rows) * len(self.columns)


def whole(shape: tuple[int, ...]) -> Area:
    """Return the area that a blob of N x C x H x W covers."""
    return Area(range(shape[2]), range(shape[3]))


def common(one: range, other: range) -> range:
    """Return the pixels that are in both stretches."""
    start = max(one.start, other.start)
    return range(start, max(start, min(one.stop, other.stop)))


def hull(one: range, other: range) -> range:
    """Return the shortest stretch that holds both."""
    if not one or not other:
        return one or other
    return range(min(one.start, other.start), max(one.stop, other.stop))


def intersection(one: Area, other: Area) -> Area:
    return Area(*map(common, one, other))


def union(one: Area, other: Area) -> Area:
    """Return the smallest area that holds both."""
    return Area(*map(hull, one, other))


def shift(area: Area, offset: list[int]) -> Area:
    """Return the area `offset` further down and to the right."""
    return Area(*(range(s.start + by, s.stop + by) for s, by in zip(area, offset)))


def slices(part: Area, of: Area) -> tuple[slice, ...]:
    """Return the index of `part` in an N x C x H x W tensor that covers the area `of`."""
    spans = (
        slice(inner.start - outer.start, inner.stop - outer.start) for inner, outer in zip(part, of)
    )
    return slice(None), slice(None), *spans


def around(outer: Area, inner: Area) -> Iterator[Area]:
    """Yield the areas, four at most, that `outer` has around `inner`."""
    (rows, columns), (own_rows, own_columns) = outer, inner
    parts = (
        Area(range(rows.start, own_rows.start), columns),
        Area(range(own_rows.stop, rows.stop), columns),
        Area(own_rows, range(columns.start, own_columns.start)),
        Area(own_rows, range(own_columns.stop, columns.stop)),
    )
    yield from (part for part in parts if part.pixels)


class Window(NamedTuple):
    """How a layer slides along one axis.

    Output y reads the inputs stride * y - pad up to stride * y - pad + extent - 1.
    """

    extent: int
    stride: int
    pad: int

    def read_for(self, tops: range) -> range:
        """Return the inputs that the outputs `tops` read."""
        if not tops:
            return range(0)
        start = self.stride * tops.start - self.pad
        return range(start, start + self.stride * (len(tops) - 1) + self.extent)

    def reached_by(self, bottoms: range, size: int) -> range:
        """Return which of `size` outputs read any of the inputs `bottoms`."""
        if not bottoms:
            return range(0)
        first = -((self.extent - 1 - self.pad - bottoms.start) // self.stride)
        last = (bottoms.stop - 1 + self.pad) // self.stride
        return common(range(first, last + 1), range(size))

    def within(self, bottoms: range, size: int) -> range:
        """Return which of `size` outputs read nothing but the inputs `bottoms`."""
        first = -((-bottoms.start - self.pad) // self.stride)
        last = (bottoms.stop - self.extent + self.pad) // self.stride
        return common(range(first, last + 1), range(size))
