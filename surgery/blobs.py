"""Look up the blobs of a layer, and their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caffe_port.errors import CaffeError


def blobs_of(net: Any, layer: str) -> Sequence[Any]:
    """Return the parameter blobs of a layer, weights first; raise CaffeError if it has none."""
    if layer not in net.params or not len(net.params[layer]):
        raise CaffeError(
            f'{layer}: no layer of this name has parameters; these have: {", ".join(net.params)}'
        )
    return net.params[layer]


def shape_of(blob: Any) -> tuple[int, ...]:
    """Return the shape of a blob; pycaffe's own is no tuple."""
    return tuple(int(dim) for dim in blob.shape)
