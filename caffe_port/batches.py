"""Run many items through a net in batches: pycaffe's forward_all and forward_backward_all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError

Arrays = dict[str, np.ndarray]


def forward_all(self: Any, blobs: Iterable[str] | None = None, **inputs: np.ndarray) -> Arrays:
    """Run forward over all items of the arrays given, a batch at a time.

    Keywords name all inputs; the arrays have the blobs' shapes but for their first
    dimension, which is any number of items, the same for all. Returns the output blobs
    and those named in `blobs`, an item for each item given. The last batch is filled up
    with zeros, and what these give is left out.

    Raises CaffeError if the arrays differ in length.
    """
    found: dict[str, list[np.ndarray]] = {}
    for batch in _batches(self, inputs):
        _collect(found, self.forward(blobs=blobs, **batch))
    return _joined(found, _length(inputs))


def forward_backward_all(
    self: Any,
    blobs: Iterable[str] | None = None,
    diffs: Iterable[str] | None = None,
    **arrays: np.ndarray,
) -> tuple[Arrays, Arrays]:
    """Run forward and backward over all items of the arrays given, a batch at a time.

    Keywords name inputs, and outputs with their gradients. Returns the blobs that
    forward_all returns, and the diffs of the inputs and of those named in `diffs`.

    Raises CaffeError if the arrays differ in length.
    """
    values: dict[str, list[np.ndarray]] = {}
    gradients: dict[str, list[np.ndarray]] = {}
    for batch in _batches(self, arrays):
        inputs = {name: batch.pop(name) for name in self.inputs if name in batch}
        _collect(values, self.forward(blobs=blobs, **inputs))
        _collect(gradients, self.backward(diffs=diffs, **batch))
    count = _length(arrays)
    return _joined(values, count), _joined(gradients, count)


def _batches(net: Any, arrays: Mapping[str, np.ndarray]) -> Iterator[Arrays]:
    count = _length(arrays)
    size = net.blobs[next(iter(arrays))].shape[0]
    for first in range(0, count, size):
        missing = max(first + size - count, 0)
        batch = {name: np.asarray(array)[first : first + size] for name, array in arrays.items()}
        yield {
            name: np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
            for name, part in batch.items()
        }


def _length(arrays: Mapping[str, np.ndarray]) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        found = ', '.join(f'{name}: {length}' for name, length in lengths.items())
        raise CaffeError(f'expected arrays of as many items each, found {found or "none"}')
    return next(iter(lengths.values()))


def _collect(found: dict[str, list[np.ndarray]], batch: Arrays) -> None:
    for name, array in batch.items():
        found.setdefault(name, []).append(array.copy())


def _joined(found: dict[str, list[np.ndarray]], count: int) -> Arrays:
    return {name: np.concatenate(parts)[:count] for name, parts in found.items()}
