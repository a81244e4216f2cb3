"""Learning curves as SVG, for a page that needs no script to draw them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from solve.run.log import is_finite

# Most points of a line; of a longer log only every n-th is drawn.
MOST_POINTS = 600
_WIDTH, _HEIGHT, _LEFT, _ABOVE, _BELOW = 360, 200, 56, 30, 22


def format_number(value: str | float) -> str:
    """Return a number with separated thousands or four digits, a dash for NaN; text as it is."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return '–'
    return f'{value:,.0f}' if 1000 <= abs(value) < 1e7 else f'{value:.4g}'


def _format_tick(value: float) -> str:
    """Return a number that fits beside the axis."""
    return f'{value:.4g}' if abs(value) >= 1e6 else format_number(value)


def draw_curves(lines: Sequence[Mapping[str, Any]]) -> str:
    """Draw loss and mean IU over iterations as HTML; the empty string if the lines have neither."""
    lines = [line for line in lines if is_finite(line.get('iteration'))]
    scored = dict.fromkeys(key for line in lines for key in line if key.endswith('mean_iu'))
    charts = [
        _chart('loss', {key: _points(lines, key) for key in ('loss', 'smoothed_loss')}, log=True),
        _chart('mean IU, %', {key: _points(lines, key, 100) for key in scored}, log=False),
    ]
    if not any(charts):
        return ''
    return (
        '<section><h2>Learning curve</h2><p class="note">Over iterations.</p>'
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def _points(
    lines: Sequence[Mapping[str, Any]], key: str, factor: float = 1
) -> list[tuple[float, float]]:
    points = [(line['iteration'], factor * line[key]) for line in lines if is_finite(line.get(key))]
    step = math.ceil(len(points) / MOST_POINTS) or 1
    return points[::step] + (points[-1:] if (len(points) - 1) % step else [])


def _chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]], log: bool) -> str:
    """Draw lines over iterations as SVG, with dots if a line has few points."""
    series = {
        key: [(x, y) for x, y in points if y > 0 or not log] for key, points in series.items()
    }
    series = {key: points for key, points in series.items() if points}
    if not series:
        return ''
    xs, ys = zip(*(point for points in series.values() for point in points))
    first, last = min(xs), max(max(xs), min(xs) + 1)
    values = _log_ticks(min(ys), max(ys)) if log else _ticks(0, max(ys))
    low, high = (math.log(values[0]), math.log(values[-1])) if log else (values[0], values[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        height = ((math.log(y) if log else y) - low) / (high - low)
        return (
            _LEFT + (x - first) / (last - first) * (_WIDTH - _LEFT - 12),
            _ABOVE + (1 - height) * (_HEIGHT - _BELOW - _ABOVE),
        )

    drawn = [f'<text x="4" y="12">{html.escape(title)}</text>']
    for value in values:
        y = place(first, value)[1]
        drawn.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
            f'{_format_tick(value)}</text>'
        )
    for value in _ticks(first, last, 4):
        if first <= value <= last:
            x = place(value, values[0])[0]
            anchor = 'end' if x > _WIDTH - 30 else 'middle'
            drawn.append(
                f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{value:,.6g}</text>'
            )
    legend = []
    for number, (key, points) in enumerate(series.items()):
        second = number > 0 and not log
        css = 'faint' if key == 'loss' and len(series) > 1 else 'second' if second else 'first'
        line = ' '.join(f'{x:.1f},{y:.1f}' for x, y in (place(*point) for point in points))
        drawn.append(f'<polyline class="{css}" points="{line}"/>')
        name = key.replace('_', ' ').replace(' iu', ' IU')
        for point in points if len(points) <= 60 else ():
            x, y = place(*point)
            drawn.append(
                f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>iteration '
                f'{point[0]:,.6g}: {html.escape(name)} {point[1]:.4g}</title></circle>'
            )
        legend.append(f'<tspan class="{css}" dx="8">{html.escape(name)}</tspan>')
    if len(series) > 1:
        drawn.append(f'<text x="{_WIDTH - 12}" y="12" text-anchor="end">{"".join(legend)}</text>')
    return (
        f'<svg class="chart card" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="11" role="img" '
        f'aria-label="{html.escape(title)} over iterations">{"".join(drawn)}</svg>'
    )


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers around low..high: steps of 1, 2 or 5 times 10 ** n."""
    raw = (high - low) / count or 1
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    begin, end = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(begin, max(end, begin + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten around low..high; within two decades 1, 2 and 5 times these."""
    begin, end = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if end - begin > 2:
        step = math.ceil((end - begin) / 6)
        return [10.0**power for power in range(begin, end + step, step)]
    ticks = [factor * 10.0**power for power in range(begin, end + 1) for factor in (1, 2, 5)]
    inner = [number for number, tick in enumerate(ticks) if low <= tick <= high]
    below = max(number for number, tick in enumerate(ticks) if tick <= low)
    above = next((number for number, tick in enumerate(ticks) if tick >= high), len(ticks) - 1)
    return ticks[below : max(above, below + 1, *inner) + 1]
