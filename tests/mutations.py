"""Damaged copies of real files, for tests that nothing but CaffeError comes of them."""

from __future__ import annotations

from hypothesis import strategies as st


def flip(data: bytes, at: int, value: int) -> bytes:
    """Flip one bit."""
    return data[:at] + bytes([data[at] ^ 1 << value % 8]) + data[at + 1 :] if data else data


def cut(data: bytes, at: int, value: int) -> bytes:
    """Leave the end out."""
    return data[:at]


def drop(data: bytes, at: int, value: int) -> bytes:
    """Leave some bytes out."""
    return data[:at] + data[at + value :]


def put(data: bytes, at: int, value: int) -> bytes:
    """Set one byte."""
    return data[:at] + bytes([value]) + data[at + 1 :]


def double(data: bytes, at: int, value: int) -> bytes:
    """Say some bytes twice."""
    return data[: at + value] + data[at:]


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals, or one's head and another's tail, with up to four faults."""
    data = draw(st.sampled_from(originals))
    if draw(st.booleans()):
        other = draw(st.sampled_from(originals))
        data = data[: draw(st.integers(0, len(data)))] + other[draw(st.integers(0, len(other))) :]
    for _ in range(draw(st.integers(0, 4))):
        fault = draw(st.sampled_from((flip, cut, drop, put, double)))
        # Faults near the start, where most of the structure is, find more than even ones.
        reach = max(min(len(data), draw(st.sampled_from((40, 400, 1 << 20)))) - 1, 0)
        data = fault(data, draw(st.integers(0, reach)), draw(st.integers(0, 255)))
    return data
