"""What a net logs of every layer while its debug_info is on, in Caffe's words."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from caffe_port.module import Node
    from caffe_port.net import Net

LOG = logging.getLogger('caffe_port')


def forward(net: Net, node: Node) -> None:
    """The mean magnitude of a layer's tops and params, after its forward."""
    for name in node.tops:
        LOG.info(
            '    [Forward] Layer %s, top blob %s data: %.6g',
            node.name,
            name,
            _magnitude(net.blobs[name].tensor),
        )
    for i, parameter in enumerate(node.op.blobs()):
        LOG.info(
            '    [Forward] Layer %s, param blob %s data: %.6g',
            node.name,
            _display_name(node, i),
            _magnitude(parameter.detach()),
        )


def backward(net: Net, node: Node) -> None:
    """The mean magnitude of the gradients of a layer's bottoms and params."""
    for name, wanted in zip(node.bottoms, node.propagate):
        if wanted:
            LOG.info(
                '    [Backward] Layer %s, bottom blob %s diff: %.6g',
                node.name,
                name,
                _magnitude(net.blobs[name].diff_tensor),
            )
    for i, parameter in enumerate(node.op.blobs()):
        if parameter.requires_grad:
            LOG.info(
                '    [Backward] Layer %s, param blob %d diff: %.6g',
                node.name,
                i,
                _magnitude(parameter.grad),
            )


def all_params(net: Net) -> None:
    """The norms of all params and of their gradients, each param counted once."""
    params = {id(p): p for node in net.module.nodes for p in node.op.blobs()}.values()
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
    """A param's own name, or else its number."""
    specs = node.op.param.param
    return specs[i].name if i < len(specs) and specs[i].name else str(i)
