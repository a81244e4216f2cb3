"""What surgery asks of a net: the blobs of a layer, and their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caffe_port.errors import CaffeError


def blobs_of(net: Any, layer: str) -> Sequence[Any]:
    """The parameter blobs of a layer, weights first; CaffeError if it has none."""
    if layer not in net.params or not len(net.params[layer]):
        raise CaffeError(
            f'{layer}: no layer of this name has parameters; those that have: '
            f'{", ".join(net.params)}'
        )
    return net.params[layer]


def shape_of(blob: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in blob.shape)
