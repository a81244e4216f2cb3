"""Record the forward of a single layer, so that its backward can run by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from caffe_port.building import Node
from caffe_port.ops.base import Shape


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
    node: Node, bottoms: Sequence[Tensor], compute: Callable[..., tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], Trace]:
    """Return the tops that `compute` makes of `bottoms`, and the trace for `gradients`."""
    leaves = [
        bottom.detach().requires_grad_(wanted) for bottom, wanted in zip(bottoms, node.propagate)
    ]
    with torch.enable_grad():
        tops = compute(*leaves)
    edges = [get_gradient_edge(top) if top.requires_grad else None for top in tops]
    return tops, Trace(leaves, edges, [tuple(top.shape) for top in tops])


def gradients(
    node: Node, step: Trace, diffs: Sequence[Tensor], keep: bool
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return the gradients of the bottoms, and of the params, from the diffs of the tops.

    None means no gradient. No two share memory with each other or with `diffs`. With
    `keep` the trace can be used again.
    """
    leaves: list[Tensor] = [*step.bottoms, *node.op.blobs()]
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


def _apart(tensor: Tensor, others: Iterable[Tensor]) -> Tensor:
    """Return `tensor`, or a copy of it if it uses the memory of one of `others`."""
    memory = tensor.untyped_storage().data_ptr()
    if any(memory == other.untyped_storage().data_ptr() for other in others):
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor
