"""How SGDSolver moves the parameters, and the history that this takes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_port import parallel
from caffe_port.errors import CaffeError
from caffe_port.files.stored import StoredBlob
from caffe_port.module import Learnable
from caffe_port.proto.caffe_pb2 import SolverParameter

LOG = logging.getLogger('caffe_port')


class Update:
    """history = momentum * history + rate * (diff + decay * w); w -= history.

    Rate and decay count with each parameter's lr_mult and decay_mult; `diff` is the mean
    over iter_size passes and over ranks. Parameters of lr_mult 0 are at rest.
    """

    def __init__(self, param: SolverParameter, learnable: Sequence[Learnable]):
        self.param, self._learnable = param, learnable
        self._moved = [item for item in learnable if item.lr_mult != 0]
        self._history: dict[int, Tensor] = {}
        self._before: dict[int, Tensor] = {}  # the history before, where `last` asks for it

    def apply(self, rate: float) -> None:
        """Average the gradients over ranks, clip them and move the parameters; collective."""
        p = self.param
        groups: dict[tuple[float, float], list[int]] = {}
        for i, item in enumerate(self._moved):
            if item.parameter.grad is None:
                item.parameter.grad = torch.zeros_like(item.parameter)
            groups.setdefault((item.lr_mult, item.decay_mult), []).append(i)
        parallel.average([item.parameter.grad for item in self._moved])
        scale = self._clip() / p.iter_size
        for (lr_mult, decay_mult), members in groups.items():
            self._move(members, rate * lr_mult, p.weight_decay * decay_mult, scale)

    @torch.no_grad()
    def _move(self, members: list[int], rate: float, decay: float, scale: float) -> None:
        """Move parameters that share multipliers in one fused pass over memory.

        PyTorch's kernel does buffer = momentum * buffer + g; w -= lr * buffer. Caffe keeps
        the rate inside the history, so the gradient is scaled by it on the way in (the
        kernel divides by grad_scale) and the kernel's own lr is 1.
        """
        weights = [self._moved[i].parameter for i in members]
        grads = [weight.grad for weight in weights]
        for i, weight in zip(members, weights):
            if i not in self._history or self._history[i].device != weight.device:
                self._history[i] = (
                    self._history[i].to(weight.device)
                    if i in self._history
                    else torch.zeros_like(weight)
                )
        history = [self._history[i] for i in members]
        if self.param.snapshot_diff and self.param.type == 'Nesterov':
            self._before.update((i, self._history[i].clone()) for i in members)
        factor = rate * scale
        if abs(factor) < torch.finfo(torch.float32).tiny:  # the kernel cannot divide by it
            torch._foreach_mul_(grads, 0.0)
            factor = 1.0
        if self.param.regularization_type == 'L1' and decay:
            for weight, grad in zip(weights, grads):
                grad.add_(weight.sign(), alpha=rate * decay / factor)
            decay = 0.0
        torch._fused_sgd_(
            weights,
            grads,
            history,
            weight_decay=rate * decay,
            # At 0 the kernel would take no history; this is 0 once it is float32.
            momentum=self.param.momentum or math.ulp(0.0),
            lr=1.0,
            dampening=0.0,
            nesterov=self.param.type == 'Nesterov',
            maximize=False,
            is_first_step=False,
            grad_scale=torch.full((), 1 / factor, device=weights[0].device),
        )

    def _clip(self) -> float:
        """The factor that brings the gradients' L2 norm down to clip_gradients."""
        limit = self.param.clip_gradients
        if limit < 0 or not self._moved:
            return 1.0
        grads = [item.parameter.grad for item in self._moved]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        if norm <= limit:
            return 1.0
        LOG.info(
            'Gradient clipping: scaling down gradients (L2 norm %.6g > %.6g) by %.6g',
            norm,
            limit,
            limit / norm,
        )
        return limit / norm

    def last(self) -> dict[int, np.ndarray]:
        """What was last subtracted from each parameter, by its id; zeros for those at rest."""
        last = {id(item.parameter): array for item, array in zip(self._learnable, self.arrays())}
        momentum = self.param.momentum
        for i, before in self._before.items():
            moved = (1 + momentum) * self._history[i] - momentum * before
            last[id(self._moved[i].parameter)] = moved.cpu().numpy()
        return last

    def largest(self) -> list[tuple[float, torch.nn.Parameter]]:
        """The largest last change of each parameter that has been changed."""
        return [
            (float(tensor.abs().max()), self._moved[i].parameter)
            for i, tensor in self._history.items()
        ]

    def arrays(self) -> list[np.ndarray]:
        """The history, an array per learnable parameter, as Caffe keeps it; zeros at rest."""
        kept = {id(self._moved[i]): tensor for i, tensor in self._history.items()}
        return [
            kept[id(item)].cpu().numpy()
            if id(item) in kept
            else np.zeros(tuple(item.parameter.shape), np.float32)
            for item in self._learnable
        ]

    def check(self, history: Sequence[StoredBlob], where: str | os.PathLike, net: str) -> None:
        """Raise CaffeError unless the history stored at `where` is one of these parameters."""
        if len(history) != len(self._learnable):
            twice = '; twice as many are kept by AdaDelta and Adam'
            raise CaffeError(
                f'{where}: expected {len(self._learnable)} history blobs for net '
                f'"{net}", found {len(history)}'
                + twice
                * (len(history) == 2 * len(self._learnable))
            )
        for i, (item, blob) in enumerate(zip(self._learnable, history)):
            if blob.count != item.parameter.numel():
                raise CaffeError(
                    f'{where}: history blob {i}: expected shape '
                    f'{tuple(item.parameter.shape)}, found {tuple(blob.shape)}'
                )

    def restore(self, history: Sequence[StoredBlob]) -> None:
        """Take up a history that `check` lets pass."""
        stored = {id(item): blob for item, blob in zip(self._learnable, history)}
        self._history = {
            i: torch.from_numpy(stored[id(item)].array())
            .reshape(item.parameter.shape)
            .to(item.parameter.device)
            for i, item in enumerate(self._moved)
        }
