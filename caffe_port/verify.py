"""Verify that a converted file equals its source: compare values and a net's outputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from caffe_port import mode
from caffe_port.errors import CaffeError
from caffe_port.files.stored import StoredLayer, translate_errors
from caffe_port.net import Net

_SEED = 1337
# How far the outputs of whole nets may differ, relative to the largest.
TOLERANCE = 1e-4

NamedTensors = dict[str, torch.Tensor]


def verify(
    net: Net,
    source: Sequence[StoredLayer],
    target: Sequence[StoredLayer],
    state_dict: str | os.PathLike | None = None,
) -> Iterator[str]:
    """Compute with the weights of both sides and yield the findings, line by line.

    `source` and `target` are fitted to `net`, whose inputs are filled with seeded normal
    numbers times 50. With `state_dict`, the target as a .pth of our own writing, the net's
    module must load it too, strictly. One set of weights is in memory at a time.

    Raises CaffeError if outputs differ by more than whole nets may.
    """
    same = sum(
        _same_bits(a.array(), b.array())
        for left, right in zip(source, target)
        for a, b in zip(left.blobs, right.blobs)
    )
    yield f'verify: {same} of {sum(len(layer.blobs) for layer in source)} blobs bit for bit'
    inputs = _inputs(net)
    expected = _computed(net, source, inputs)
    yield from compare('weights read back', expected, _computed(net, target, inputs))
    if state_dict is not None and any('.' in name for name in net.params):
        yield 'verify: load_state_dict not tried: PyTorch knows no modules with a dot in the name'
    elif state_dict is not None:
        _forget(net)
        with translate_errors(state_dict, 'load_state_dict'):
            net.module.load_state_dict(torch.load(state_dict, weights_only=True), strict=True)
        yield from compare('load_state_dict, strict', expected, _run(net, inputs))


def _inputs(net: Net) -> NamedTensors:
    if not net.inputs:
        raise CaffeError(f'net "{net.name}" has no inputs to verify it with: take a deploy net')
    return draw_inputs({name: net.blobs[name].shape for name in net.inputs})


def draw_inputs(shapes: Mapping[str, Sequence[int]]) -> NamedTensors:
    """Return seeded normal numbers times 50 for each name and shape."""
    random = np.random.RandomState(_SEED)
    return {
        name: torch.from_numpy((random.randn(*shape) * 50).astype(np.float32)).to(mode.device())
        for name, shape in shapes.items()
    }


def _computed(net: Net, layers: Sequence[StoredLayer], inputs: NamedTensors) -> NamedTensors:
    _forget(net)
    net.load_layers(layers)
    return _run(net, inputs)


@torch.no_grad()
def _forget(net: Net) -> None:
    """Fill the parameters with nan, so that a weight which is not loaded shows."""
    for parameter in net.module.parameters():
        parameter.fill_(torch.nan)


@torch.no_grad()
def _run(net: Net, inputs: NamedTensors) -> NamedTensors:
    return net.module(**inputs)


def compare(what: str, expected: NamedTensors, found: NamedTensors) -> Iterator[str]:
    """Yield a line for each output; raise CaffeError if one differs by more than whole nets may."""
    for name, due in expected.items():
        apart = _apart(due, found[name])
        scale = float(due.abs().nan_to_num(0, posinf=0).max()) if due.numel() else 0.0
        yield (
            f'verify: {what}: largest difference of {name} {apart:.3g}, largest value {scale:.3g}'
        )
        if not apart <= TOLERANCE * scale:
            raise CaffeError(
                f'{name}: {what}: {apart:.3g} apart, expected at most {TOLERANCE:g} of {scale:.3g}'
            )
        if not scale:
            yield f'verify: warning: {name} is 0 everywhere, so that nothing is shown by it'


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference; equal infinities, and nan and nan, differ by 0."""
    equal = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().masked_fill(equal, 0).max()) if a.numel() else 0.0


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))
