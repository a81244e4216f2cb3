"""Functions that a net calls around each layer's forward and backward, as pycaffe's Net."""

from __future__ import annotations

from collections.abc import Callable

Call = Callable[[int], object]


class NetCallbacks:
    """The part of Net that calls functions with the number of a layer."""

    _callbacks: dict[str, list[Call]]

    def before_forward(self, call: Call) -> None:
        """Call `call` ahead of each layer's forward."""
        self._callbacks['before_forward'].append(call)

    def after_forward(self, call: Call) -> None:
        """Call `call` after each layer's forward."""
        self._callbacks['after_forward'].append(call)

    def before_backward(self, call: Call) -> None:
        """Call `call` ahead of each layer's backward."""
        self._callbacks['before_backward'].append(call)

    def after_backward(self, call: Call) -> None:
        """Call `call` after each layer's backward."""
        self._callbacks['after_backward'].append(call)

    def _announce(self, when: str, layer: int) -> None:
        for call in self._callbacks[when]:
            call(layer)


def no_callbacks() -> dict[str, list[Call]]:
    """Return the callbacks of a new net."""
    names = 'before_forward', 'after_forward', 'before_backward', 'after_backward'
    return {name: [] for name in names}
