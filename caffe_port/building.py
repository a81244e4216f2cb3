"""Build the layers of a net from a NetParameter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port import lowered, mode
from caffe_port.blob import Shape, check_shape
from caffe_port.errors import CaffeError
from caffe_port.ops import LAYER_TYPES, Op, fillers
from caffe_port.ops.base import as_tuple
from caffe_port.param_blob import ParamBlob
from caffe_port.proto.caffe_pb2 import (
    LayerParameter,
    NetParameter,
    NetState,
    NetStateRule,
    ParamSpec,
    Phase,
)


@dataclass
class Node:
    """A layer of a net: what it reads, what it writes, whether gradients pass.

    `reads` and `writes` number the values of blobs: an in-place layer gives its
    blob a new value under the old name. `overwritten` says for each bottom whether that happens
    to it.
    """

    name: str
    type: str
    op: Op
    bottoms: list[str]
    tops: list[str]
    reads: list[int]
    writes: list[int]
    loss_weights: list[float]
    need_backward: bool = False
    propagate: list[bool] = field(default_factory=list)
    overwritten: list[bool] = field(default_factory=list)
    # Computes the layer in a faster way, or returns None (see plan).
    faster: Callable[..., Tensor | None] | None = None

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Put the layer's name and type into errors of the block."""
        where = f'{self.name} ({self.type})'
        try:
            yield
        except CaffeError as error:
            raise CaffeError(f'{where}: {error}') from error
        except (
            RuntimeError,
            LookupError,
            ValueError,
            TypeError,
            ArithmeticError,
            MemoryError,
            OSError,
        ) as error:
            if self.type == 'Python':
                raise  # the user's own code: its exception says more
            text = str(error) or type(error).__name__
            raise CaffeError(f'{where}: {text.splitlines()[0]}') from error

    @property
    def python_layer(self) -> Any:
        """The object of a layer written in Python; None for other types."""
        return getattr(self.op, 'layer', None)

    def blobs(self) -> list[nn.Parameter]:
        """Return the params in Caffe's order."""
        return self.op.blobs()

    def run(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """Compute the tops, in the process's precision."""
        with self.named_in_errors():
            if (low := mode.low_dtype()) is not None:
                return lowered.compute(self.op, bottoms, low)
            top = self.faster(*bottoms) if self.faster else None
            return as_tuple(self.op(*bottoms) if top is None else top)


MULTIPLIERS = 'lr_mult', 'decay_mult'
# Most bottoms or tops of a layer, far above any real net: a forged file must not cost hours.
MAX_ENDS = 1024


@dataclass
class Learnable:
    """A parameter that the solver updates, with its multipliers as declared."""

    parameter: nn.Parameter
    lr_mult: float
    decay_mult: float
    # Multipliers that some layer sets; all layers that share the parameter must agree on them.
    declared: set[str] = field(default_factory=set)


def _meets(state: NetState, rule: NetStateRule) -> bool:
    return (
        (not rule.HasField('phase') or rule.phase == state.phase)
        and (not rule.HasField('min_level') or state.level >= rule.min_level)
        and (not rule.HasField('max_level') or state.level <= rule.max_level)
        and set(rule.stage) <= set(state.stage)
        and not set(rule.not_stage) & set(state.stage)
    )


def is_included(layer: LayerParameter, state: NetState) -> bool:
    """Say whether a net of `state` has `layer`, by its include or exclude rules."""
    if layer.include and layer.exclude:
        raise CaffeError(f'{layer.name}: has both include and exclude rules, only one may be given')
    if layer.include:
        return any(_meets(state, rule) for rule in layer.include)
    return not any(_meets(state, rule) for rule in layer.exclude)


class BuiltNet:
    """The layers of a net in `state`: `nodes` in order, `shapes` of blobs, `learnable` params.

    `param` is the net as built: only the included layers, each with its phase.

    Raises CaffeError, naming the layer, if the net is not valid.
    """

    def __init__(self, net: NetParameter, state: NetState, device: torch.device):
        self.param = NetParameter()
        self.param.CopyFrom(net)
        del self.param.layer[:]
        self.param.state.CopyFrom(state)
        self.nodes: list[Node] = []
        self.learnable: list[Learnable] = []
        self.shapes: dict[str, Shape] = {}
        self._device = device
        self._owners: dict[str, tuple[Node, ParamBlob, Learnable]] = {}
        self._values: dict[str, int] = {}
        self._numbers = itertools.count()
        self._unread: dict[str, None] = {}
        with fillers.limit_draws():
            for layer in net.layer:
                if is_included(layer, state):
                    self._append(self._copy(layer, state.phase))
        if not self.nodes:
            raise CaffeError(
                f'net "{net.name}": no layers in phase {"TEST" if state.phase else "TRAIN"}'
            )
        _decide_backward(self.nodes, net.force_backward)
        _find_overwritten(self.nodes)

    @property
    def inputs(self) -> list[str]:
        """The tops of Input layers."""
        return [top for node in self.nodes if node.type == 'Input' for top in node.tops]

    @property
    def outputs(self) -> list[str]:
        """The blobs that no layer reads."""
        return list(self._unread)

    def _copy(self, layer: LayerParameter, phase: Phase) -> LayerParameter:
        """Add a layer to `param`, without the values of its blobs."""
        own = self.param.layer.add()
        own.CopyFrom(layer)
        del own.blobs[:]
        if not own.HasField('phase'):
            own.phase = phase
        return own

    def _append(self, own: LayerParameter) -> None:
        if own.type not in LAYER_TYPES:
            raise CaffeError(
                f'{own.name}: no layer type "{own.type}"; there are '
                + ', '.join(sorted(LAYER_TYPES))
            )
        op_type = LAYER_TYPES[own.type]
        _complete_tops(own, op_type)
        _check_counts(own, op_type)
        for bottom in own.bottom:
            if bottom not in self._values:
                raise CaffeError(f'{own.name}: bottom "{bottom}" is not the top of a layer before')
            self._unread.pop(bottom, None)
        reads = [self._values[name] for name in own.bottom]
        node = Node(
            own.name,
            own.type,
            op_type(own, own.phase, self._device),
            list(own.bottom),
            list(own.top),
            reads,
            [],
            _loss_weights(own, op_type),
        )
        with node.named_in_errors():
            shapes = [self.shapes[name] for name in own.bottom]
            node.op.setup(*shapes)
            tops = node.op.top_shapes(*shapes)
            if len(tops) != len(own.top):
                raise CaffeError(
                    f'computes {len(tops)} tops from {len(shapes)} bottoms, has {len(own.top)}'
                )
        self._add_params(node)
        for name, shape in zip(own.top, tops):
            if name in self._values and name not in own.bottom:
                raise CaffeError(f'{own.name}: top "{name}" is already made by another layer')
            self.shapes[name] = check_shape(shape, f'{own.name}: top "{name}"')
            self._values[name] = next(self._numbers)
            node.writes.append(self._values[name])
            self._unread[name] = None
        self.nodes.append(node)

    def _add_params(self, node: Node) -> None:
        specs = node.op.param.param
        if len(specs) > len(node.op.blob_names):
            raise CaffeError(f'{node.name}: {len(specs)} param for {len(node.op.blob_names)} blobs')
        for i, parameter in enumerate(node.op.blobs()):
            spec = specs[i] if i < len(specs) else ParamSpec()
            if spec.name and spec.name in self._owners:
                self._share(node, i, spec)
                continue
            learnable = Learnable(
                parameter,
                spec.lr_mult,
                spec.decay_mult,
                {name for name in MULTIPLIERS if spec.HasField(name)},
            )
            if not parameter.requires_grad:
                learnable.lr_mult = 0.0
            parameter.requires_grad_(learnable.lr_mult != 0)
            self.learnable.append(learnable)
            if spec.name:
                self._owners[spec.name] = node, node.op.param_blobs[i], learnable

    def _share(self, node: Node, i: int, spec: ParamSpec) -> None:
        """Let blob `i` of a layer be the param of `spec.name`, which another layer declared."""
        owner, blob, learnable = self._owners[spec.name]
        name, shared, own = node.op.blob_names[i], blob.parameter, node.op.blobs()[i]
        if shared.shape != own.shape:
            permitted = spec.share_mode == ParamSpec.PERMISSIVE
            if not permitted or shared.numel() != own.numel():
                raise CaffeError(
                    f'{node.name}: param "{spec.name}" has shape {tuple(own.shape)}, '
                    f'but {owner.name}, which owns it, has {tuple(shared.shape)}'
                )
            node.op.views[name] = tuple(own.shape)
            blob = ParamBlob(shared, blob, own.shape)
        for multiplier in MULTIPLIERS:
            if not spec.HasField(multiplier):
                continue
            value, before = getattr(spec, multiplier), getattr(learnable, multiplier)
            if multiplier in learnable.declared and value != before:
                raise CaffeError(
                    f'{node.name}: param "{spec.name}" has {multiplier} {value:g}, '
                    f'but was declared with {before:g} before'
                )
            setattr(learnable, multiplier, value)
            learnable.declared.add(multiplier)
        shared.requires_grad_(learnable.lr_mult != 0)
        node.op.param_blobs[i], node.op._parameters[name] = blob, shared


def _complete_tops(layer: LayerParameter, op_type: type[Op]) -> None:
    """Give a loss layer without a top one, with a name made from its own."""
    if op_type.loss and not layer.top:
        layer.top.append(f'(automatic) {layer.name}')


def _check_counts(layer: LayerParameter, op_type: type[Op]) -> None:
    for what, names, (least, most) in (
        ('bottoms', layer.bottom, op_type.bottoms),
        ('tops', layer.top, op_type.tops),
    ):
        if len(names) > MAX_ENDS:
            raise CaffeError(f'{layer.name}: {len(names)} {what}, at most {MAX_ENDS}')
        if not least <= len(names) <= most:
            wanted = (
                f'{least}'
                if least == most
                else f'{least} or more'
                if most == math.inf
                else f'{least} to {most}'
            )
            raise CaffeError(
                f'{layer.name} ({layer.type}): takes {wanted} {what}, has {len(names)}'
            )
    if len(set(layer.top)) != len(layer.top):
        raise CaffeError(f'{layer.name}: the same top twice: {", ".join(layer.top)}')
    if layer.propagate_down and len(layer.propagate_down) != len(layer.bottom):
        raise CaffeError(
            f'{layer.name}: {len(layer.propagate_down)} propagate_down for '
            f'{len(layer.bottom)} bottoms'
        )


def _loss_weights(layer: LayerParameter, op_type: type[Op]) -> list[float]:
    if not layer.loss_weight:
        return [1.0 if op_type.loss and i == 0 else 0.0 for i in range(len(layer.top))]
    if len(layer.loss_weight) != len(layer.top):
        raise CaffeError(
            f'{layer.name}: {len(layer.loss_weight)} loss_weight for {len(layer.top)} tops'
        )
    return list(layer.loss_weight)


def _find_overwritten(nodes: Sequence[Node]) -> None:
    """Find the bottoms that an in-place layer replaces, for all that read them."""
    gone = {value for n in nodes for value, name in zip(n.reads, n.bottoms) if name in n.tops}
    for node in nodes:
        node.overwritten = [value in gone for value in node.reads]


def _decide_backward(nodes: Sequence[Node], force: bool) -> None:
    """Decide which layers and bottoms take part in backward, as Net::Init does."""
    needs: dict[int, bool] = {}
    for node in nodes:
        node.propagate = [needs[value] for value in node.reads]
        node.need_backward = any(node.propagate) or any(p.requires_grad for p in node.op.blobs())
        if node.op.param.propagate_down:
            node.propagate = list(node.op.param.propagate_down)
        needs.update(dict.fromkeys(node.writes, node.need_backward))
    under_loss: set[int] = set()
    read: set[int] = set()
    wanted: set[int] = set()
    for node in reversed(nodes):
        contributes = any(node.loss_weights) or bool(under_loss & set(node.writes))
        unwanted = all(value in read and value not in wanted for value in node.writes)
        if not contributes or unwanted:
            node.need_backward = False
        if not node.need_backward:
            node.propagate = [False] * len(node.reads)
        if contributes:
            under_loss.update(node.reads)
        read.update(node.reads)
        wanted.update(value for value, p in zip(node.reads, node.propagate) if p)
    if force:
        for node in nodes:
            node.need_backward = True
            flags = node.op.forceable
            node.propagate = [
                old or flags[min(i, len(flags) - 1)] for i, old in enumerate(node.propagate)
            ]
            for parameter in node.op.blobs():
                parameter.requires_grad_(parameter.is_floating_point())
