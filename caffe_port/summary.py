"""What a net consists of, layer by layer: shapes, parameters, work and fields of view.

python -m caffe_port.summary NET [--size HxW] [--dot | --plan]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

if __name__ == '__main__' and not __package__:
    import _checkout

from caffe_port import command, plugins, prototxt
from caffe_port.blob import format_shape
from caffe_port.building import Node
from caffe_port.coord_map import PASS_THROUGH_LAYERS
from caffe_port.draw import get_pydot_graph
from caffe_port.errors import CaffeError
from caffe_port.mode import TEST
from caffe_port.module import NetModule
from caffe_port.ops.base import Op, Shape
from caffe_port.plan import description
from caffe_port.proto.caffe_pb2 import NetParameter, NetState
from caffe_port.zoo import make_deploy

EXAMPLES = """\
examples:
  python -m caffe_port.summary voc_fcn8s --size 500x334
  python -m caffe_port.summary voc_fcn8s --size 500x334 --plan
  python -m caffe_port.summary deploy.prototxt --dot | dot -Tpdf > net.pdf
"""
COLUMNS = f"""\
Columns: the shape of the layer's first top; its parameters; megabytes of its tops (- in place);
millions of multiply-adds; and for a pixel of the top, in pixels of the input: how many it sees
(field), how far the next pixel is (stride), where the first one's centre is (offset).

{command.STATUS}
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
    """A layer: its name, type and parameters, and what the table shows of its first top."""

    name: str
    type: str
    shape: Shape
    parameters: int
    nbytes: int
    multiply_adds: int
    sights: Sights | None


def rows(module: NetModule, given: dict[str, Shape]) -> Iterator[Row]:
    """Yield the layers of a net, given the shapes of the tops of layers without bottoms."""
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
            sum(4 * math.prod(shapes[name]) for name in fresh),
            _multiply_adds(node, bottoms, shapes),
            seen,
        )


def _multiply_adds(node: Node, bottoms: list[Shape], shapes: dict[str, Shape]) -> int:
    if node.type not in ('Convolution', 'Deconvolution', 'InnerProduct'):
        return 0
    op = node.op
    if node.type == 'InnerProduct':
        return op.weight.numel() * math.prod(bottoms[0][: op.axis])
    tops = [shapes[name] for name in node.tops]
    return sum(
        op.weight.numel() * math.prod(shape[: op.axis]) * math.prod(shape[op.axis + 1 :])
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
    if node.type == 'Crop':
        if op.axis < 2:
            return None
        offsets = [0] * (op.axis - 2) + list(op.offset)
        down, across = (
            sight.through(1, Fraction(1), Fraction(by)) for sight, by in zip(first, offsets)
        )
        return down, across
    windows = _windows(node)
    if windows is not None:
        upwards = node.type == 'Deconvolution'
        down, across = (_through(sight, *window, upwards) for sight, window in zip(first, windows))
        return down, across
    if not _keeps_places(node):
        return None
    # Coefficients of the whole image, as the later bottom of a Scale, move no pixel.
    mapped = [sights for sights in bottoms if sights is not None]
    down, across = (
        axis[0]._replace(field=max(sight.field for sight in axis)) for axis in zip(*mapped)
    )
    return down, across


Window = tuple[int, int, int]  # dilated extent, stride and pad


def _windows(node: Node) -> tuple[Window, Window] | None:
    """Return the windows that a layer slides down and across; None if it slides none."""
    op: Op = node.op
    if node.type in ('Convolution', 'Deconvolution', 'Im2col') and op.axis == 1:
        extents = [d * (k - 1) + 1 for k, d in zip(op.kernel, op.dilation)]
        down, across = zip(extents, op.stride, op.pad)
    elif node.type == 'Pooling' and not op.is_global:
        down, across = zip(*op.windows)
    elif node.type == 'LRN' and op.within:
        down = across = op.size, 1, op.size // 2
    else:
        return None
    return down, across


def _keeps_places(node: Node) -> bool:
    """Return whether each pixel of the tops depends only on the same pixel of the bottoms."""
    if node.type in ('Concat', 'Slice', 'Softmax'):
        return node.op.axis == 1
    return node.type in PASS_THROUGH_LAYERS - {'MVN'}


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
            format_shape(row.shape),
            f'{row.parameters:,}' if row.parameters else '-',
            f'{row.nbytes / 1e6:.2f}' if row.nbytes else '-',
            f'{row.multiply_adds / 1e6:.1f}' if row.multiply_adds else '-',
            *(_both_axes(row.sights, name) for name in Sight._fields),
        ).rstrip()
    weights = sum(row.parameters for row in found)
    yield (
        f'{weights:,} parameters, {4 * weights / 1e6:.1f} MB; blobs '
        f'{sum(row.nbytes for row in found) / 1e6:.1f} MB; '
        f'{sum(row.multiply_adds for row in found) / 1e9:.2f} G multiply-adds'
    )


def _both_axes(sights: Sights | None, name: str) -> str:
    if sights is None:
        return '-'
    down, across = (getattr(sight, name) for sight in sights)
    return f'{float(down):g}' if down == across else f'{float(down):g} x {float(across):g}'


def dot(param: NetParameter, module: NetModule, shapes: dict[str, Shape]) -> str:
    """Return a net in Graphviz's language; the blobs have their shapes."""
    graph = get_pydot_graph(param, 'TB', phase=TEST)
    for name in module.shapes:
        key = f'{name}_blob'
        node = graph.nodes[key]
        graph.nodes[key] = replace(node, label=f'{node.label}\n{format_shape(shapes[name])}')
    return graph.to_string()


def read(net: str) -> NetParameter:
    """Return a net by its name, as deployed, or from a prototxt.

    Raises CaffeError if there is neither.
    """
    offered = plugins.find_entry_points(plugins.NETS_GROUP)
    if net in offered:
        return make_deploy(net)
    if not Path(net).is_file():
        raise CaffeError(f'{net}: neither a prototxt nor one of {", ".join(sorted(offered))}')
    return prototxt.read_net(net)


def summarize(
    net: str, size: tuple[int, int] | None, as_dot: bool = False, as_plan: bool = False
) -> Iterator[str]:
    """Yield the table of a net, or its graph, or its plan.

    Inputs N x C x H x W get the height and width `size`.
    """
    param = read(net)
    module = NetModule(param, NetState(phase='TEST'))
    given = {
        top: module.shapes[top] for node in module.nodes if not node.bottoms for top in node.tops
    }
    if size is not None:
        if not module.inputs:
            raise CaffeError(f'{net}: --size is for nets with inputs; the data layer sets the size')
        for name in module.inputs:
            if len(given[name]) == 4:
                given[name] = (*given[name][:2], *size)
    if as_dot:
        yield dot(param, module, module.infer_shapes(given)).rstrip('\n')
    elif as_plan:
        yield from description.table(description.describe(module, given))
    else:
        yield from table(list(rows(module, given)))


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split('x')
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f'expected HxW, two numbers, found {text!r}')
    return int(parts[0]), int(parts[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the summary of a net; return the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m caffe_port.summary',
        usage='python -m caffe_port.summary NET [--size HxW] [--dot | --plan]',
        description=EXAMPLES,
        epilog=COLUMNS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('net', metavar='NET', help='a net, as voc_fcn8s, or a .prototxt')
    parser.add_argument('--size', type=_size, metavar='HxW', help='height and width of the inputs')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--dot', action='store_true', help='print the graph for Graphviz instead')
    form.add_argument(
        '--plan', action='store_true', help='print how each layer is computed instead'
    )
    options = parser.parse_args(arguments)
    return command.run(lambda: _act(options))


def _act(options: argparse.Namespace) -> None:
    with plugins.import_registered_only():
        for line in summarize(options.net, options.size, options.dot, options.plan):
            print(line)


if __name__ == '__main__':
    sys.exit(main())
