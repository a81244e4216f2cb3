"""Whether and where nets compute by plan."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from caffe_port import mode
from caffe_port.ops.base import Op

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_on = True
_recompute = False


def set_plan(on: bool) -> None:
    """Let nets compute by plan (where a process starts), or layer by layer."""
    global _on
    _on = bool(on)


def is_on() -> bool:
    """Return whether nets compute by plan."""
    return _on


def set_recompute(on: bool) -> None:
    """Let nets in training keep fewer blobs and diffs (where a process starts), or all they need.

    Backward then computes the blobs again, to the same bit: less memory, more time. On the CPU an
    SGD solver moves each param as soon as its own diff is there, where nobody can look in between,
    and frees that. The diff of such a param, asked for after the step, holds the update as ever,
    but its Parameter has no grad; a step that is cut short may have moved some params. With glibc,
    memory that is freed goes back to the system at once from then on.
    """
    global _recompute
    _recompute = bool(on)
    if on and sys.platform == 'linux':
        mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 2**22)


def is_recomputing() -> bool:
    """Return whether nets in training keep fewer blobs."""
    return _recompute


def covers(tensors: Iterable[Tensor]) -> bool:
    """Return whether a plan may compute with these tensors, here and now."""
    return (
        _on
        and mode.low_dtype() is None
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled('cpu')
        and all(_is_plain(tensor) for tensor in tensors)
    )


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor holds float32 values on the CPU and nothing else watches it."""
    if tensor.dtype != torch.float32 or tensor.device.type != 'cpu':
        return False
    if tensor.layout != torch.strided or forward_ad.unpack_dual(tensor).tangent is not None:
        return False
    return has_memory(tensor)


def has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor has memory, as those of torch.func's transforms have not."""
    try:
        tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def is_untouched(op: Op) -> bool:
    """Return whether a layer computes by its own forward, from its own parameters.

    Hooks see each call of a layer. torch.func.functional_call, parametrizations and
    permissive sharing give a layer other tensors than its blobs.
    """
    return (
        not op.views
        and not op._forward_hooks
        and not op._forward_pre_hooks
        and not op._backward_hooks
        and not op._backward_pre_hooks
        and all(op._parameters.get(name) is blob for name, blob in zip(op.blob_names, op.blobs()))
    )
