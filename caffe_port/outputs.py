"""The output blobs that a call of NetModule returns."""

from __future__ import annotations

from torch import Tensor


class Outputs(dict[str, Tensor]):
    """The output blobs by name, in the net's order; each is an attribute too: `.score`.

    Use the key for a blob whose name is a method of dict or not an identifier.
    """

    def __getattr__(self, name: str) -> Tensor:
        if name not in self:
            raise AttributeError(f'no output {name}; there are {", ".join(self) or "none"}')
        return self[name]
