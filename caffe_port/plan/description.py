"""A plan in words: what computes each layer of a net, and the arithmetic before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from caffe_port.blob import Shape, format_shape
from caffe_port.module import NetModule
from caffe_port.plan.kept import Kept
from caffe_port.plan.planner import LEAST, Planner


class Part(NamedTuple):
    """A line of a plan: its layers, method, top, the part of it computed, multiply-adds."""

    layers: str
    method: str
    top: Shape
    share: float
    before: int
    after: int


def describe(module: NetModule, sources: Mapping[str, Shape]) -> list[Part]:
    """Return the lines that compute the outputs from sources of these shapes, without gradients.

    Empty where the layers run one by one. The weights, as they are now, choose the method of
    a deconvolution.
    """
    planner = Planner(module)
    layout = planner.layout(sources, module.outputs) if planner.may_apply() else None
    if layout is None or layout.work < LEAST:
        return []
    kept, parts = Kept(), []
    layout.watch(kept)
    for line in layout.lines:
        line.examine(kept)
        top = line.top_shapes[0]
        share = 1.0 if line.is_whole else line.area.pixels / (top[2] * top[3])
        names = ' '.join(line.names)
        parts.append(Part(names, line.method, top, share, line.before(), line.after()))
    return parts


def table(parts: list[Part]) -> Iterator[str]:
    """Yield the lines of a table of a plan, and the sums below it."""
    if not parts:
        yield 'no plan: the layers run one by one'
        return
    width = max(len(part.layers) for part in parts)
    form = f'{{:{width}}}  {{:13}}  {{:22}}  {{:>8}}  {{:>9}}  {{:>9}}'
    yield form.format('layers', 'method', 'top', 'computed', 'M madds', 'by plan')
    for part in parts:
        work = (f'{count / 1e6:.1f}' if count else '-' for count in (part.before, part.after))
        yield form.format(
            part.layers, part.method, format_shape(part.top), f'{part.share:.0%}', *work
        )
    before, after = sum(part.before for part in parts), sum(part.after for part in parts)
    yield f'{before / 1e9:.2f} G multiply-adds layer by layer, {after / 1e9:.2f} G by plan'
