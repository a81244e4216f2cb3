"""Draw nets with layers as boxes and blobs as octagons, as pycaffe's draw makes them.

`dot` of Graphviz lays them out where it is installed; else matplotlib draws the layers in
the order of their distance from the data.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from caffe_port.building import is_included
from caffe_port.errors import CaffeError, replacing
from caffe_port.proto.caffe_pb2 import LayerParameter, NetParameter, NetState, PoolingParameter

COLORS = {
    'Convolution': '#FF5050',
    'Deconvolution': '#FF5050',
    'Pooling': '#FF9900',
    'InnerProduct': '#CC33FF',
}
LAYER, NEURON, BLOB = '#6495ED', '#90EE90', '#E0E0E0'
RANKDIRS = ('LR', 'TB', 'BT', 'RL')


@dataclass(frozen=True)
class Vertex:
    """A box or an octagon: its text, and its color as #RRGGBB."""

    label: str
    color: str
    shape: str = 'record'


@dataclass
class Graph:
    """What is drawn of a net; edges are (from, to, label), by the nodes' keys."""

    name: str
    rankdir: str
    nodes: dict[str, Vertex] = field(default_factory=dict)
    edges: list[tuple[str, str, str]] = field(default_factory=list)

    def to_string(self) -> str:
        """Return the graph in Graphviz's language."""
        lines = [f'digraph {_quoted(self.name or "Net")} {{', f'rankdir={self.rankdir};']
        for key, node in self.nodes.items():
            lines.append(
                f'{_quoted(key)} [label={_quoted(node.label)}, shape={node.shape}, '
                f'style=filled, fillcolor="{node.color}"];'
            )
        for start, end, label in self.edges:
            lines.append(f'{_quoted(start)} -> {_quoted(end)} [label={_quoted(label)}];')
        return '\n'.join([*lines, '}', ''])


def get_pydot_graph(
    caffe_net: NetParameter,
    rankdir: str,
    label_edges: bool = True,
    phase: int | None = None,
    display_lrm: bool = False,
) -> Graph:
    """Return the graph of a net.

    rankdir: LR, TB, BT or RL, the direction from data to loss. label_edges: write the
    number of outputs beside the edges. phase: leave out layers that are not in it.
    display_lrm: write the learning rate multipliers into the layers.

    Raises CaffeError for another rankdir.
    """
    if rankdir not in RANKDIRS:
        raise CaffeError(f'rankdir {rankdir!r}: expected one of {", ".join(RANKDIRS)}')
    graph = Graph(caffe_net.name, rankdir)
    for layer in caffe_net.layer:
        if phase is not None and not is_included(layer, _state(phase)):
            continue
        in_place = len(layer.bottom) == len(layer.top) == 1 and layer.bottom == layer.top
        color = NEURON if in_place else COLORS.get(layer.type, LAYER)
        key = f'{layer.name}_{layer.type}'
        graph.nodes[key] = Vertex(_label(layer, rankdir, display_lrm), color)
        label = _edge_label(layer) if label_edges else ''
        for blob in [*layer.bottom, *layer.top]:
            graph.nodes.setdefault(f'{blob}_blob', Vertex(blob, BLOB, 'octagon'))
        graph.edges += [(f'{blob}_blob', key, '') for blob in layer.bottom]
        graph.edges += [(key, f'{blob}_blob', label) for blob in layer.top]
    return graph


def draw_net(
    caffe_net: NetParameter,
    rankdir: str,
    ext: str = 'png',
    phase: int | None = None,
    display_lrm: bool = False,
) -> bytes:
    """Return the drawing of a net as a file of kind `ext`: png, svg, pdf, or dot for its text.

    Raises CaffeError where neither Graphviz nor matplotlib draws that kind.
    """
    graph = get_pydot_graph(caffe_net, rankdir, phase=phase, display_lrm=display_lrm)
    if ext in ('dot', 'gv'):
        return graph.to_string().encode()
    dot = shutil.which('dot')
    if dot:
        done = subprocess.run(
            [dot, f'-T{ext}'], input=graph.to_string().encode(), capture_output=True
        )
        if done.returncode:
            raise CaffeError(f'dot: {done.stderr.decode(errors="replace").splitlines()[0]}')
        return done.stdout
    return _drawn_by_matplotlib(graph, ext)


def draw_net_to_file(
    caffe_net: NetParameter,
    filename: str | os.PathLike,
    rankdir: str = 'LR',
    phase: int | None = None,
    display_lrm: bool = False,
) -> None:
    """Write the drawing of a net to a file, whose suffix decides its kind, as in draw_net."""
    ext = Path(filename).suffix[1:] or 'png'
    drawing = draw_net(caffe_net, rankdir, ext, phase, display_lrm)
    with replacing(filename) as temporary:
        temporary.write_bytes(drawing)


def _state(phase: int) -> NetState:
    state = NetState()
    state.phase = phase  # type: ignore[assignment]  # the stub asks for the enum's own type
    return state


def _label(layer: LayerParameter, rankdir: str, display_lrm: bool) -> str:
    """Return the name and type of a layer, and the geometry of its windows."""
    parts = [f'{layer.name} ({layer.type})']
    if layer.type in ('Convolution', 'Deconvolution'):
        p = layer.convolution_param
        kernel = list(p.kernel_size) or [p.kernel_h, p.kernel_w]
        parts += [f'kernel size: {_text(kernel)}', f'stride: {_text(p.stride or [1])}']
        parts.append(f'pad: {_text(p.pad or [0])}')
    elif layer.type == 'Pooling':
        q = layer.pooling_param
        method = PoolingParameter.PoolMethod.Name(q.pool)
        parts[0] = f'{layer.name} ({method} {layer.type})'
        parts += [f'kernel size: {q.kernel_size}', f'stride: {q.stride}', f'pad: {q.pad}']
    if display_lrm and layer.param:
        parts.append(f'lr mult: {_text([spec.lr_mult for spec in layer.param])}')
    # In a drawing from left to right, lines are one below the other.
    return ('\n' if rankdir in ('LR', 'RL') else ', ').join(parts)


def _edge_label(layer: LayerParameter) -> str:
    if layer.type == 'Data':
        return f'Batch {layer.data_param.batch_size}'
    if layer.type in ('Convolution', 'Deconvolution'):
        return str(layer.convolution_param.num_output)
    if layer.type == 'InnerProduct':
        return str(layer.inner_product_param.num_output)
    return ''


def _text(values) -> str:
    return ' x '.join(f'{value:g}' for value in values)


def _quoted(text: str) -> str:
    return '"' + text.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n') + '"'


def _places(graph: Graph) -> dict[str, tuple[int, int]]:
    """Return (depth, lane) of each node: behind its last bottom, in its first one's lane if free.

    An in-place layer is drawn beside its blob.
    """
    bottoms: dict[str, list[str]] = {key: [] for key in graph.nodes}
    for start, end, _ in graph.edges:
        bottoms[end].append(start)
    places: dict[str, tuple[int, int]] = {}
    taken: set[tuple[int, int]] = set()
    for start, end, _ in graph.edges:  # in the net's order: bottoms come before tops
        for key in (start, end):
            if key in places:
                continue
            before = [places[each] for each in bottoms[key] if each in places]
            in_place = graph.nodes[key].color == NEURON
            depth = max((place[0] for place in before), default=-1) + (not in_place)
            lane = before[0][1] if before else 0
            while (depth, lane) in taken:
                lane += 1
            places[key] = depth, lane
            taken.add(places[key])
    return places


def _drawn_by_matplotlib(graph: Graph, ext: str) -> bytes:
    from matplotlib.figure import Figure  # half a second that `import caffe_port` need not take

    places = {}
    for key, (depth, lane) in _places(graph).items():
        across, along = lane * 4.2, depth * 0.7
        places[key] = (
            (depth * 2.6, -lane * 1.2) if graph.rankdir in ('LR', 'RL') else (across, -along)
        )
        if graph.rankdir in ('RL', 'BT'):
            places[key] = (-places[key][0], -places[key][1])
    xs, ys = zip(*places.values()) if places else ((0.0,), (0.0,))
    size = (max(xs) - min(xs) + 4.2, max(ys) - min(ys) + 1.5)
    # Large nets get smaller letters: a picture has at most 16,000 pixels a side.
    dpi = min(80, int(16000 / max(size)))
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(min(xs) - 2.1, max(xs) + 2.1), ylim=(min(ys) - 0.75, max(ys) + 0.75))
    axes.axis('off')
    for start, end, label in graph.edges:
        axes.annotate(
            '',
            places[end],
            places[start],
            arrowprops=dict(arrowstyle='->', color='#606060', shrinkA=14, shrinkB=14),
        )
        (x0, y0), (x1, y1) = places[start], places[end]
        axes.text((x0 + x1) / 2, (y0 + y1) / 2, label, fontsize=7, color='#606060')
    for key, node in graph.nodes.items():
        style = 'square' if node.shape == 'record' else 'round'
        axes.text(
            *places[key],
            node.label,
            fontsize=8,
            ha='center',
            va='center',
            bbox=dict(boxstyle=f'{style},pad=0.4', facecolor=node.color, edgecolor='#404040'),
        )
    out = io.BytesIO()
    try:
        figure.savefig(out, format=ext, dpi=dpi)
    except ValueError as error:
        raise CaffeError(f'a drawing of kind {ext}: {error}') from error
    return out.getvalue()
