"""Whether and where nets compute by plan."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_on = True


def set_plan(on: bool) -> None:
    """Let nets compute by plan (where a process starts), or layer by layer as they stand."""
    global _on
    _on = bool(on)


def is_on() -> bool:
    """Return whether nets compute by plan."""
    return _on


def covers(tensors: Iterable[Tensor]) -> bool:
    """Return whether a plan may compute with these tensors, here and now."""
    return (
        _on
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled('cpu')
        and all(t.dtype == torch.float32 and t.device.type == 'cpu' for t in tensors)
    )
