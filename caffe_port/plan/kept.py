"""Values derived from weights: computed once, and again when the weights have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
        changed = {
            name
            for name, parameter in self._parameters.items()
            if not torch.equal(parameter, self._copies[name])
        }
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
