"""What a net consists of, layer by layer, and how it is computed.

python -m caffe_port.summary NET [--size HxW] [--plan]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

if __name__ == '__main__' and not __package__:
    import _checkout  # noqa: F401

from caffe_port import plugins, prototxt
from caffe_port.blob import shape_text
from caffe_port.errors import CaffeError
from caffe_port.module import NetModule, Node
from caffe_port.ops.base import Shape
from caffe_port.plan import Planner, kept, lines
from caffe_port.proto.caffe_pb2 import NetParameter, NetState

EXAMPLES = """
examples:
  python -m caffe_port.summary voc_fcn8s --size 500x334 --plan
  python -m caffe_port.summary deploy.prototxt

Columns: the top's shape; parameters; megabytes of the top (- where it takes its bottom's
place); millions of multiply-adds; and of the top's pixels on the first input's grid: how
many pixels one sees (field), how far apart two are (stride), and where the first one's centre
lies (offset). --plan adds a table of how the net is computed in TEST without gradients, with
the multiply-adds of each line before and after.
"""


class Sight(NamedTuple):
    """What a pixel of a blob sees of the input, on one axis, in the input's pixels."""

    field: Fraction
    stride: Fraction
    offset: Fraction

    def through(self, extent: int, stride: Fraction, shift: Fraction) -> Sight:
        """Return what a pixel sees that reads `extent` of these, `shift` from its own place."""
        return Sight(
            self.field + (extent - 1) * self.stride,
            self.stride * stride,
            self.offset + shift * self.stride,
        )


Sights = tuple[Sight, Sight]
_OWN = Sight(Fraction(1), Fraction(1), Fraction(0))


class Row(NamedTuple):
    """A layer: its name, type and parameters, and of its first top what the table shows."""

    name: str
    type: str
    shape: Shape
    parameters: int
    nbytes: int
    multiply_adds: int
    sights: Sights | None


def rows(module: NetModule, given: dict[str, Shape]) -> Iterator[Row]:
    """Yield the layers of a net whose blobs of layers without bottoms have the shapes `given`."""
    shapes = dict(given)
    sights: dict[str, Sights | None] = {}
    for node in module.nodes:
        bottoms = [shapes[name] for name in node.bottoms]
        if node.bottoms:
            with node.named_in_errors():
                shapes.update(zip(node.tops, node.op.top_shapes(*bottoms)))
        seen = _seen(node, [sights.get(name) for name in node.bottoms], shapes)
        sights.update(dict.fromkeys(node.tops, seen))
        fresh = [name for name in node.tops if name not in node.bottoms]
        yield Row(
            node.name,
            node.type,
            shapes[node.tops[0]] if node.tops else (),
            sum(parameter.numel() for parameter in node.op.blobs()),
            sum(4 * _count(shapes[name]) for name in fresh),
            _multiply_adds(node, bottoms, shapes),
            seen,
        )


def _count(shape: Shape) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def _multiply_adds(node: Node, bottoms: list[Shape], shapes: dict[str, Shape]) -> int:
    if node.type not in ('Convolution', 'Deconvolution', 'InnerProduct'):
        return 0
    op = node.op
    if node.type == 'InnerProduct':
        return op.weight.numel() * _count(bottoms[0][: op.axis])
    tops = [shapes[name] for name in node.tops]
    return sum(
        op.weight.numel() * _count(shape[: op.axis]) * _count(shape[op.axis + 1 :])
        for shape in (bottoms if node.type == 'Deconvolution' else tops)
    )


def _seen(node: Node, bottoms: list[Sights | None], shapes: dict[str, Shape]) -> Sights | None:
    """Return what pixels of the tops see; None where they see no window, or all of the input."""
    op, tops = node.op, [shapes[name] for name in node.tops]
    if not tops or any(len(top) != 4 for top in tops):
        return None
    if not node.bottoms:
        return _OWN, _OWN
    first = bottoms[0]
    if first is None:
        return None
    if node.type in ('Convolution', 'Deconvolution') and op.axis == 1:
        windows = lines.filter_windows(op)
    elif node.type == 'Pooling' and not op.is_global:
        windows = lines.pooling_windows(op)
    elif node.type == 'Crop' and op.axis >= 2:
        offsets = [0] * (op.axis - 2) + list(op.offset)
        down, across = (
            sight.through(1, Fraction(1), Fraction(by)) for sight, by in zip(first, offsets)
        )
        return down, across
    elif lines.is_pointwise(node, tops) or node.type in ('Concat', 'Dropout', 'Softmax', 'Split'):
        seen = [sights for sights in bottoms if sights is not None]
        down, across = (
            axis[0]._replace(field=max(sight.field for sight in axis)) for axis in zip(*seen)
        )
        return down, across
    else:
        return None
    upwards = node.type == 'Deconvolution'
    down, across = (_through(sight, *window, upwards) for sight, window in zip(first, windows))
    return down, across


def _through(sight: Sight, extent: int, stride: int, pad: int, upwards: bool) -> Sight:
    centre = Fraction(extent - 1, 2) - pad
    if upwards:  # y = stride * x + centre: the inputs of a top are those whose windows hold it
        return sight.through(-(-extent // stride), Fraction(1, stride), -centre / stride)
    return sight.through(extent, Fraction(stride), centre)


def table(found: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the summary's table, and the sums below it."""
    width = max(len(row.name) for row in found)
    head = 'layer', 'type', 'top', 'parameters', 'MB', 'M madds', 'field', 'stride', 'offset'
    form = f'{{:{width}}}  {{:15}}  {{:22}}  {{:>11}}  {{:>8}}  {{:>9}}  {{:>9}}  {{:>7}}  {{}}'
    yield form.format(*head)
    for row in found:
        yield form.format(
            row.name,
            row.type,
            shape_text(row.shape),
            f'{row.parameters:,}' if row.parameters else '-',
            f'{row.nbytes / 1e6:.2f}' if row.nbytes else '-',
            f'{row.multiply_adds / 1e6:.1f}' if row.multiply_adds else '-',
            *(_of_both(row.sights, name) for name in Sight._fields),
        ).rstrip()
    weights = sum(row.parameters for row in found)
    yield (
        f'{weights:,} parameters, {4 * weights / 1e6:.1f} MB; blobs '
        f'{sum(row.nbytes for row in found) / 1e6:.1f} MB; '
        f'{sum(row.multiply_adds for row in found) / 1e9:.2f} G multiply-adds'
    )


def _of_both(sights: Sights | None, name: str) -> str:
    if sights is None:
        return '-'
    down, across = (getattr(sight, name) for sight in sights)
    return f'{float(down):g}' if down == across else f'{float(down):g} x {float(across):g}'


def plan_table(module: NetModule, given: dict[str, Shape]) -> Iterator[str]:
    """Yield how the plan computes the outputs: each line's method, area, work before and after."""
    layout = Planner(module).layout(given, module.outputs)
    watched = kept.Kept()
    for line in layout.lines:
        line.watch(watched)
        line.examine(watched)
    width = max(len('+'.join(line.names)) for line in layout.lines)
    form = f'{{:{width}}}  {{:13}}  {{:>9}} of {{:9}}  {{:>9}}  {{:>9}}'
    yield form.format('layers', 'method', 'computed', 'the top', 'M before', 'M after')
    for line in layout.lines:
        shape = line.top_shapes[0]
        size = shape_text(shape[2:]) if len(shape) == 4 else '-'
        yield form.format(
            '+'.join(line.names),
            line.method,
            size if line.is_whole else shape_text(map(len, line.area)),
            size,
            f'{line.before() / 1e6:.1f}' if line.before() else '-',
            f'{line.after() / 1e6:.1f}' if line.after() else '-',
        )
    before, after = layout.work, sum(line.after() for line in layout.lines)
    yield (
        f'{before / 1e9:.2f} G multiply-adds before, {after / 1e9:.2f} after'
        + (f' ({after / before:.2f})' if before else '')
        + f'; blobs together {4 * layout.size / 1e6:.1f} MB'
    )


def read(net: str) -> NetParameter:
    """Return a net by its name, as deployed, or from a prototxt.

    Raises CaffeError if there is neither.
    """
    offered = plugins.offered(plugins.NETS)
    if net in offered:
        module = offered[net].load()
        return module.fcn('deploy') if hasattr(module, 'fcn') else module.classifier()
    if not Path(net).is_file():
        raise CaffeError(f'{net}: neither a prototxt nor one of {", ".join(sorted(offered))}')
    return prototxt.read_net(net)


def summarise(net: str, size: tuple[int, int] | None, with_plan: bool) -> Iterator[str]:
    """Yield the tables of a net; inputs N x C x H x W get the height and width of `size`."""
    module = NetModule(read(net), NetState(phase='TEST'))
    given = {
        top: module.shapes[top] for node in module.nodes if not node.bottoms for top in node.tops
    }
    for name in module.inputs:
        if size is not None and len(given[name]) == 4:
            given[name] = (*given[name][:2], *size)
    yield from table(list(rows(module, given)))
    if with_plan:
        yield ''
        yield from plan_table(module, given)


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split('x')
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f'expected HxW, two numbers, found {text!r}')
    return int(parts[0]), int(parts[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the summary of a net; the exit status: 0, or 2 where it can't be done."""
    parser = argparse.ArgumentParser(
        prog='python -m caffe_port.summary',
        description='Print the layers of a net, and how it is computed.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('net', metavar='NET', help='a prototxt, or the name of a net: voc_fcn8s')
    parser.add_argument('--size', type=_size, metavar='HxW', help='of the inputs')
    parser.add_argument('--plan', action='store_true', help='print how it is computed')
    options = parser.parse_args(arguments)
    try:
        for line in summarise(options.net, options.size, options.plan):
            print(line)
    except CaffeError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
