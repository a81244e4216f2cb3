"""What scripts written for pycaffe reach for inside a net: its C++ names, indices and callbacks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from caffe_port.blob import Blob

Callback = Callable[[int], Any]
# Attributes that a copy of a net does not get: callbacks belong to the original.
CALLBACKS = ('_before_forward', '_after_forward', '_before_backward', '_after_backward')


class Aliases:
    """Names of pycaffe's Net that begin with an underscore, and callbacks, for Net.

    Layers and blobs are numbered in the net's order, from 0.
    """

    # Net provides these.
    blobs: OrderedDict[str, Blob]
    _nodes: list[Any]
    forward_range: Callable[..., None]
    backward_range: Callable[..., None]
    set_input_arrays: Callable[[np.ndarray, np.ndarray], None]

    @property
    def inputs(self) -> list[str]:
        raise NotImplementedError

    @property
    def outputs(self) -> list[str]:
        raise NotImplementedError

    def _forward(self, first: int, last: int) -> float:
        """Run layers number `first` to `last`, both included; return the sum of their losses."""
        self.forward_range(first, last)
        return sum(
            weight * float(self.blobs[name].data.sum())
            for node in self._nodes[first : last + 1]
            for name, weight in zip(node.tops, node.loss_weights)
            if weight
        )

    def _backward(self, first: int, last: int) -> None:
        """Run backward over layers number `first` down to `last`, both included."""
        self.backward_range(first, last)

    def _set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Feed the first layer, MemoryData, as set_input_arrays does."""
        self.set_input_arrays(data, labels)

    @property
    def _blobs(self) -> list[Blob]:
        return list(self.blobs.values())

    @property
    def _blob_names(self) -> list[str]:
        return list(self.blobs)

    def _numbers(self, names: list[str]) -> list[int]:
        return [self._blob_names.index(name) for name in names]

    @property
    def _inputs(self) -> list[int]:
        return self._numbers(self.inputs)

    @property
    def _outputs(self) -> list[int]:
        return self._numbers(self.outputs)

    def _bottom_ids(self, layer: int) -> list[int]:
        """Return the numbers of the blobs that a layer reads."""
        return self._numbers(self._nodes[layer].bottoms)

    def _top_ids(self, layer: int) -> list[int]:
        """Return the numbers of the blobs that a layer writes."""
        return self._numbers(self._nodes[layer].tops)

    @property
    def _blob_loss_weights(self) -> list[float]:
        return list(self.blob_loss_weights.values())

    @property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """How much each blob counts in the loss, by name; 0 for most."""
        found = OrderedDict.fromkeys(self.blobs, 0.0)
        for node in self._nodes:
            found.update((top, w) for top, w in zip(node.tops, node.loss_weights) if w)
        return found

    # Callbacks.

    def _reset_callbacks(self) -> None:
        """Have no callbacks."""
        self._before_forward: list[Callback] = []
        self._after_forward: list[Callback] = []
        self._before_backward: list[Callback] = []
        self._after_backward: list[Callback] = []

    def before_forward(self, call: Callback) -> None:
        """Call `call` with a layer's number before each layer's forward."""
        self._before_forward.append(call)

    def after_forward(self, call: Callback) -> None:
        """Call `call` with a layer's number after each layer's forward."""
        self._after_forward.append(call)

    def before_backward(self, call: Callback) -> None:
        """Call `call` with a layer's number before each layer's backward, also if it has none."""
        self._before_backward.append(call)

    def after_backward(self, call: Callback) -> None:
        """Call `call` with a layer's number after each layer's backward, also if it has none."""
        self._after_backward.append(call)


def notify(calls: list[Callback], layer: int) -> None:
    """Make each call, in the order of registration."""
    for call in calls:
        call(layer)
