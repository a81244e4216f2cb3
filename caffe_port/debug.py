"""Log the magnitudes of every layer for debug_info, in Caffe's words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from caffe_port.blob import Blob
from caffe_port.building import Node

LOG = logging.getLogger('caffe_port')


def log_forward(node: Node, blobs: Mapping[str, Blob]) -> None:
    """Log the mean magnitude of a layer's tops and params."""
    for name in node.tops:
        LOG.info(
            '    [Forward] Layer %s, top blob %s data: %.6g',
            node.name,
            name,
            _magnitude(blobs[name].tensor),
        )
    for i, parameter in enumerate(node.op.blobs()):
        LOG.info(
            '    [Forward] Layer %s, param blob %s data: %.6g',
            node.name,
            _display_name(node, i),
            _magnitude(parameter.detach()),
        )


def log_backward(node: Node, blobs: Mapping[str, Blob]) -> None:
    """Log the mean magnitude of the gradients of a layer's bottoms and params."""
    for name, wanted in zip(node.bottoms, node.propagate):
        if wanted:
            LOG.info(
                '    [Backward] Layer %s, bottom blob %s diff: %.6g',
                node.name,
                name,
                _magnitude(blobs[name].diff_tensor),
            )
    for i, parameter in enumerate(node.op.blobs()):
        if parameter.requires_grad:
            LOG.info(
                '    [Backward] Layer %s, param blob %d diff: %.6g',
                node.name,
                i,
                _magnitude(parameter.grad),
            )


def log_params(params: Sequence[Tensor]) -> None:
    """Log the norms of all params and of their gradients."""
    sides = [p.detach() for p in params], [p.grad for p in params if p.grad is not None]
    norms = [
        float(sum(torch.linalg.vector_norm(each.double(), order) ** order for each in side))
        ** (1 / order)
        for order in (1, 2)
        for side in sides
    ]
    LOG.info(
        '    [Backward] All net params (data, diff): L1 norm = (%.6g, %.6g); '
        'L2 norm = (%.6g, %.6g)',
        *norms,
    )


def _magnitude(tensor: Tensor | None) -> float:
    if tensor is None or not tensor.numel():
        return 0.0
    return float(tensor.abs().mean(dtype=torch.float64))


def _display_name(node: Node, i: int) -> str:
    """Return a param's own name, or else its number."""
    specs = node.op.param.param
    return specs[i].name if i < len(specs) and specs[i].name else str(i)
