"""What a window reads, reaches and lies within, against its definition pixel by pixel."""

from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_port.plan.areas import Area, Window, around, common, hull, slices

windows = st.builds(
    Window, extent=st.integers(1, 8), stride=st.integers(1, 5), pad=st.integers(0, 9)
)
spans = st.builds(lambda a, n: range(a, a + n), st.integers(-6, 20), st.integers(1, 9))


def read(window: Window, y: int) -> range:
    start = window.stride * y - window.pad
    return range(start, start + window.extent)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(windows, spans, st.integers(1, 25))
def test_a_window_reads_reaches_and_lies_within_by_its_definition(window, span, size):
    covered = [x for y in span for x in read(window, y)]
    assert window.read_for(span) == range(min(covered), max(covered) + 1)
    within = [y for y in range(size) if set(read(window, y)) <= set(span)]
    assert list(window.within(span, size)) == within
    reached = [y for y in range(size) if set(read(window, y)) & set(span)]
    if window.stride <= window.extent:
        assert list(window.reached_by(span, size)) == reached
    else:
        assert set(reached) <= set(window.reached_by(span, size))


@given(spans, spans)
def test_common_and_hull_are_intersection_and_closure(one, other):
    assert set(common(one, other)) == set(one) & set(other)
    both = [*one, *other]
    assert hull(one, other) == range(min(both), max(both) + 1)


def test_what_lies_around_an_area_fills_the_rest_once():
    outer, inner = Area(range(-2, 9), range(3, 12)), Area(range(5), range(4, 11))
    pixels = [(y, x) for part in (*around(outer, inner), inner) for y in part[0] for x in part[1]]
    assert sorted(pixels) == [(y, x) for y in outer.rows for x in outer.columns]
    empty = Area(range(-2, -2), range(3, 3))
    assert sum(part.pixels for part in around(outer, empty)) == outer.pixels


def test_slices_find_a_part_where_the_whole_begins_elsewhere():
    assert slices(Area(range(2, 4), range(7, 9)), Area(range(-1, 9), range(7, 20)))[2:] == (
        slice(3, 5),
        slice(0, 2),
    )
