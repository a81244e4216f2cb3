"""The output blobs that a call of NetModule returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from caffe_port.errors import CaffeError


class Outputs(dict[str, Tensor]):
    """The output blobs by name, in the net's order; each is an attribute too: `.score`.

    Use the key for a blob whose name is a method of dict or not an identifier. Functions of
    PyTorch take the only output, so that a net works in nn.Sequential.
    """

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        given = {key: _take_only(value) for key, value in (kwargs or {}).items()}
        return function(*map(_take_only, args), **given)

    def __getattr__(self, name: str) -> Tensor:
        if name not in self:
            raise AttributeError(f'no output {name}; there are {", ".join(self) or "none"}')
        return self[name]


def _take_only(value: Any) -> Any:
    """Return the only output where `value` is Outputs, and any other value as it is."""
    if not isinstance(value, Outputs):
        return value
    if len(value) != 1:
        raise CaffeError(f'the net has outputs {", ".join(value)}: name the one to compute with')
    (tensor,) = value.values()
    return tensor
