"""pycaffe's NCCL over torchrun's processes, for scripts that use it."""

from __future__ import annotations

import secrets

import torch
import torch.distributed as dist

from caffe_port import parallel
from caffe_port.errors import CaffeError
from caffe_port.solving.solver import SGDSolver

_UID_BYTES = 128  # as ncclUniqueId


def has_nccl() -> bool:
    """Say whether PyTorch can train on several GPUs through NCCL here."""
    return torch.cuda.is_available() and dist.is_available() and dist.is_nccl_available()


class NCCL:
    """The processes that train with a solver, as pycaffe's NCCL(solver, uid).

    Deviates: torchrun starts and connects the processes, so `uid` has no effect, and a
    solver averages gradients over them by itself.

    Raises CaffeError if `uid` is not one of new_uid().
    """

    def __init__(self, solver: SGDSolver, uid: bytes):
        if not isinstance(uid, bytes) or len(uid) != _UID_BYTES:
            raise CaffeError(f'NCCL: uid must be {_UID_BYTES} bytes from NCCL.new_uid()')
        self._solver = solver

    @staticmethod
    def new_uid() -> bytes:
        """Return bytes that no other call returns."""
        return secrets.token_bytes(_UID_BYTES)

    def on_start(self) -> None:
        """Do nothing at the begin of an iteration, as a callback of the solver."""

    def on_gradients_ready(self) -> None:
        """Do nothing once gradients are there: the solver averages them itself."""

    def bcast(self) -> None:
        """Set the parameters of every rank to those of rank 0; collective."""
        net = self._solver.net
        net.follow_device()
        parallel.broadcast([item.parameter.data for item in net.module.learnable])
        net.mark_params_stale()
