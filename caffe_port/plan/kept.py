"""Values derived from weights: computed once, and again when the weights have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from caffe_port.plan import strips

# Values that are compared at a time.
_STRIP = 2**20


def _in_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    rows = tensor if tensor.dim() else tensor[None]
    return rows.split(max(1, _STRIP * len(rows) // max(rows.numel(), 1)))


class Kept:
    """Results of functions of parameters.

    Anybody may write to a parameter, through PyTorch or through the host array of its blob,
    and no counter sees all of them. So each parameter is kept as a copy too, and compared.
    """

    def __init__(self) -> None:
        self._parameters: dict[str, Tensor] = {}
        self._copies: dict[str, Tensor] = {}
        self._results: dict[tuple[str, str], Any] = {}
        self.changes = 0

    def __reduce__(self):  # a copy derives anew
        return Kept, ()

    def watch(self, name: str, parameter: Tensor) -> None:
        """Look for changes of the parameter from now on, under a name of the caller's."""
        self._parameters[name] = parameter.detach()
        if name not in self._copies:
            self._copies[name] = self._parameters[name].clone()

    def refresh(self) -> None:
        """Forget what was derived from parameters that have changed, and count a change."""
        pairs = {name: (each, self._copies[name]) for name, each in self._parameters.items()}
        changed = {name for name, (now, copy) in pairs.items() if now.shape != copy.shape}
        parts = [
            (name, *part)
            for name, pair in pairs.items()
            if name not in changed
            for part in zip(*map(_in_parts, pair))
        ]

        def compare(part: tuple[str, Tensor, Tensor]) -> None:
            name, now, copy = part
            if not torch.equal(now, copy):
                changed.add(name)

        strips.run(compare, parts)
        if changed:
            self.changes += 1
            self._copies.update((name, self._parameters[name].clone()) for name in changed)
            self._results = {
                key: result for key, result in self._results.items() if key[0] not in changed
            }

    def forget(self) -> None:
        """Forget all that was derived, and count a change."""
        for kept in (self._parameters, self._copies, self._results):
            kept.clear()
        self.changes += 1

    def of(self, name: str, what: str, derive: Callable[[Tensor], Any]) -> Any:
        """Return derive(parameter), kept under the name of its parameter and its own."""
        key = name, what
        if key not in self._results:
            self._results[key] = derive(self._parameters[name])
        return self._results[key]
