"""Record the forward of a single layer, so that its backward can run by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from caffe_port import lowered
from caffe_port.blob import Blob, format_shape
from caffe_port.building import Node
from caffe_port.errors import CaffeError
from caffe_port.ops.base import Shape


class Part(Protocol):
    """What is recorded as one: a layer, or a stretch of layers (see plan)."""

    bottoms: list[str]
    tops: list[str]
    propagate: list[bool]

    def blobs(self) -> list[torch.nn.Parameter]:
        """Return the params."""


@dataclass
class Trace:
    """A layer's recorded forward: its bottoms, and an edge into the graph for each top.

    Unlike a top, an edge does not keep alive memory that an in-place layer overwrites. It is
    None if no gradient passes.
    """

    bottoms: list[Tensor]
    edges: list[GradientEdge | None]
    shapes: list[Shape]


def record(
    part: Part, bottoms: Sequence[Tensor], compute: Callable[..., tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], Trace]:
    """Return the tops that `compute` makes of `bottoms`, and the trace for `gradients`."""
    leaves = [
        bottom.detach().requires_grad_(wanted) for bottom, wanted in zip(bottoms, part.propagate)
    ]
    with torch.enable_grad():
        tops = compute(*leaves)
    edges = [get_gradient_edge(top) if top.requires_grad else None for top in tops]
    return tops, Trace(leaves, edges, [tuple(top.shape) for top in tops])


def gradients(
    part: Part, step: Trace, diffs: Sequence[Tensor], keep: bool
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return the gradients of the bottoms, and of the params, from the diffs of the tops.

    None means no gradient. No two share memory with each other or with `diffs`. With
    `keep` the trace can be used again.
    """
    leaves: list[Tensor] = [*step.bottoms, *part.blobs()]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    pairs = [(edge, diff) for edge, diff in zip(step.edges, diffs) if edge is not None]
    found: Iterator[Tensor | None] = itertools.repeat(None)
    if pairs:
        edges, given = zip(*pairs)
        found = iter(
            torch.autograd.grad(edges, wanted, given, retain_graph=keep, allow_unused=True)
        )
    owned, grads = list(diffs), []
    for leaf in leaves:
        grad = next(found) if leaf.requires_grad else None
        if grad is not None:
            grad = _apart(grad, owned)
            owned.append(grad)
        grads.append(grad)
    count = len(step.bottoms)
    return grads[:count], grads[count:]


def fits(part: Part, step: Trace, blobs: Mapping[str, Blob]) -> bool:
    """Say whether the blobs still have the shapes that the trace was recorded on."""
    then = [*(tuple(bottom.shape) for bottom in step.bottoms), *step.shapes]
    return then == [blobs[name].shape for name in (*part.bottoms, *part.tops)]


def retrace(node: Node, blobs: Mapping[str, Blob]) -> Trace:
    """Record a layer on the current values of its blobs, without changing a blob.

    Raises CaffeError if the bottoms would now give tops of other shapes.
    """
    bottoms, tops = (
        [lowered.raised(blobs[name].tensor) for name in names]
        for names in (node.bottoms, node.tops)
    )
    with node.named_in_errors():
        _, step = record(node, bottoms, lambda *leaves: node.op.retrace(leaves, tops))
        for name, top, shape in zip(node.tops, tops, step.shapes):
            if top.shape != shape:
                raise CaffeError(
                    f'backward: top {name} is {format_shape(top.shape)}, but the bottoms '
                    f'now give {format_shape(shape)}: call reshape or forward first'
                )
    return step


def _apart(tensor: Tensor, others: Iterable[Tensor]) -> Tensor:
    """Return `tensor`, or a copy of it if it uses the memory of one of `others`."""
    memory = tensor.untyped_storage().data_ptr()
    if any(memory == other.untyped_storage().data_ptr() for other in others):
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor
