"""Update the parameters from their gradients, and keep the solver's history."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_port import parallel
from caffe_port.building import Learnable
from caffe_port.errors import CaffeError
from caffe_port.files.stored import StoredBlob
from caffe_port.param_blob import ParamBlob
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.solving.rules import RULES, Step

LOG = logging.getLogger('caffe_port')
# How many elements are updated at once. A rule passes over them several times: on a CPU so few
# stay in the cache, on a GPU they bound the memory of intermediate results.
_PIECE_OF_CPU = 2**18
_PIECE_OF_GPU = 2**25
# How many elements of a gradient are multiplied out at once.
_PART = 2**22


class Update:
    """Updates a net's parameters as a type of solver does, and keeps its history.

    The operations are those of Caffe's SGDSolver::ApplyUpdate on the CPU, in its order: clip,
    average over iter_size, add weight decay, put the update into the diff, subtract it.
    """

    def __init__(self, type: str, param: SolverParameter, learnable: Sequence[Learnable]):
        self.param, self._rule, self._learnable = param, RULES[type], learnable
        self._history: dict[int, tuple[Tensor, ...]] = {}  # by the parameter's number

    @torch.no_grad()
    def apply(self, rate: float, iteration: int, moved: Container[int] = ()) -> None:
        """Average gradients over ranks and move the parameters; collective.

        Those of the numbers `moved` stay: apply_early has moved them.
        """
        p = self.param
        # Trained parameters are the same on all ranks; reading a frozen one's diff creates it.
        numbers = [i for i in range(len(self._learnable)) if i not in moved]
        trained = [self._learnable[i].parameter for i in numbers]
        trained = [parameter for parameter in trained if parameter.requires_grad]
        grads = [_diff(parameter) for parameter in trained]
        parallel.average(grads)
        scales = [self._clip(grads), 1 / p.iter_size]
        rows = [(i, self._tensors(i)) for i in numbers if not self._stays(i)]
        self._move(rows, scales, rate, iteration)

    def may_apply_early(self) -> bool:
        """Return whether a parameter's update depends on its own gradient alone, and is kept."""
        p = self.param
        return self._rule.history_is_diff and p.clip_gradients < 0 and p.iter_size == 1

    @torch.no_grad()
    def apply_early(self, blobs: Iterable[ParamBlob], rate: float, iteration: int) -> set[int]:
        """Move parameters while others wait for their gradients; return their numbers.

        The memory of their gradients is free then: what a diff holds after an update, it takes
        from the history once somebody asks for it. Gradients that somebody holds are left to
        `apply`.
        """
        numbers = {id(item.parameter): i for i, item in enumerate(self._learnable)}
        moved = set()
        for blob in blobs:
            i = numbers[id(blob.parameter)]
            if blob.factors is not None:
                weights, history = blob.parameter.detach(), self._history_of(i)
                memory = weights.new_empty(0)  # used again: the system takes long to give out more
                for part in _parts(len(weights), weights[0].numel()):
                    memory = memory.resize_(len(weights[part]), weights[0].numel())
                    diff = blob.factors.diff(part, memory).view_as(weights[part])
                    row = (weights[part], diff, *(kept[part] for kept in history))
                    self._move([(i, row)], [], rate, iteration)
            elif blob.is_grad_free():
                self._move([(i, self._tensors(i))], [], rate, iteration)
            else:
                continue
            blob.postpone_grad(self._history[i][0].clone)
            moved.add(i)
        return moved

    def _move(
        self,
        rows: Iterable[tuple[int, tuple[Tensor, ...]]],
        scales: Sequence[float],
        rate: float,
        iteration: int,
    ) -> None:
        """Move parameters, given as their numbers, weights, diffs and histories."""
        p = self.param
        groups: dict[tuple[float, float], list[tuple[Tensor, ...]]] = {}
        for i, tensors in rows:
            item = self._learnable[i]
            groups.setdefault((item.lr_mult, item.decay_mult), []).append(tensors)
        for (lr_mult, decay_mult), members in groups.items():
            # As Caffe's, the rate is a float32 before lr_mult scales it.
            step = Step(p, float(np.float32(rate)) * lr_mult, iteration)
            for weights, diffs, *history in _pieces(members):
                for scale in scales:
                    if scale != 1:
                        torch._foreach_mul_(diffs, scale)
                self._regularize(weights, diffs, p.weight_decay * decay_mult)
                self._rule.update(step, diffs, *history)
                torch._foreach_sub_(weights, diffs)

    def _stays(self, i: int) -> bool:
        """Return whether a parameter's update and history are all 0, and so need no memory."""
        item = self._learnable[i]
        return (
            self._rule.history_is_update
            and item.lr_mult == 0
            and item.parameter.grad is None
            and i not in self._history
        )

    def _tensors(self, i: int) -> tuple[Tensor, ...]:
        """Return a parameter, its diff and its history, all on the parameter's device."""
        parameter = self._learnable[i].parameter
        return parameter.detach(), _diff(parameter), *self._history_of(i)

    def _history_of(self, i: int) -> tuple[Tensor, ...]:
        parameter = self._learnable[i].parameter
        history = self._history.get(i)
        if history is None:
            history = tuple(torch.zeros_like(parameter) for _ in range(self._rule.histories))
        self._history[i] = tuple(tensor.to(parameter.device) for tensor in history)
        return self._history[i]

    def _clip(self, grads: list[Tensor]) -> float:
        """Return the factor that brings the gradients' L2 norm down to clip_gradients."""
        limit = self.param.clip_gradients
        if limit < 0 or not grads:
            return 1.0
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

    def _regularize(self, weights: list[Tensor], diffs: list[Tensor], decay: float) -> None:
        """Add decay * weights to the diffs, or for L1 decay * sign(weights)."""
        if decay:
            l1 = self.param.regularization_type == 'L1'
            pull = torch._foreach_sign(weights) if l1 else weights
            torch._foreach_add_(diffs, pull, alpha=decay)

    def largest(self) -> tuple[str, list[tuple[float, torch.nn.Parameter]]]:
        """Return the largest magnitude in each parameter that has been moved, for messages.

        The first item names what was measured: the last change or, for types whose history
        is not the last change, the value.
        """
        if self._rule.history_is_update:
            what, tensors = 'last change', {i: kept[0] for i, kept in self._history.items()}
        else:
            what, tensors = 'value', {i: self._learnable[i].parameter for i in self._history}
        return what, [
            (float(tensor.detach().abs().max()), self._learnable[i].parameter)
            for i, tensor in tensors.items()
            if tensor.numel()
        ]

    def arrays(self) -> list[np.ndarray]:
        """Return the history as Caffe's solver states order it; zeros where there is none yet."""
        return [
            self._history[i][k].cpu().numpy()
            if i in self._history
            else np.zeros(tuple(item.parameter.shape), np.float32)
            for k in range(self._rule.histories)
            for i, item in enumerate(self._learnable)
        ]

    def read(
        self, stored: Sequence[StoredBlob], where: str | os.PathLike, net: str
    ) -> dict[int, tuple[Tensor, ...]]:
        """Read the history of a solver state into memory, for `restore`.

        Raises CaffeError, naming the file `where`, unless it is one of these parameters.
        """
        count = len(self._learnable)
        if len(stored) != self._rule.histories * count:
            raise CaffeError(
                f'{where}: expected {self._rule.histories * count} history blobs for net "{net}", '
                f'found {len(stored)}; AdaDelta and Adam keep two for each parameter, other '
                'types one'
            )
        history = {}
        for i, item in enumerate(self._learnable):
            parameter = item.parameter
            for number in range(i, len(stored), count):
                if stored[number].count != parameter.numel():
                    raise CaffeError(
                        f'{where}: history blob {number}: expected shape '
                        f'{tuple(parameter.shape)}, found {tuple(stored[number].shape)}'
                    )
            arrays = [blob.array().reshape(parameter.shape) for blob in stored[i::count]]
            # Frozen parameters mostly have zeros, which need no memory.
            if item.lr_mult or any(array.any() for array in arrays):
                history[i] = tuple(map(torch.from_numpy, arrays))
        return history

    def restore(self, history: dict[int, tuple[Tensor, ...]]) -> None:
        """Go on from a history that `read` has returned."""
        self._history = history


def _diff(parameter: torch.nn.Parameter) -> Tensor:
    """Return a parameter's gradient; zeros if it has none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _parts(count: int, size: int) -> Iterator[slice]:
    """Cut `count` rows of `size` elements into parts of bounded size."""
    step = max(1, _PART // size)
    return (slice(first, first + step) for first in range(0, count, step))


def _pieces(rows: Sequence[tuple[Tensor, ...]]) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut tensors into pieces of bounded size, and yield the pieces in batches.

    Each row has tensors of one shape: weights, diff and history of a parameter. A batch is a
    list for each column: pieces of weights, of diffs, of histories. Pieces share the tensors'
    memory. A tensor that is not contiguous stays whole.
    """
    batch: list[tuple[Tensor, ...]] = []
    size = 0
    on_cpu = all(row[0].device.type == 'cpu' for row in rows)
    most = _PIECE_OF_CPU if on_cpu else _PIECE_OF_GPU
    for row in rows:
        parts: Sequence[tuple[Tensor, ...]] = [row]
        if all(tensor.is_contiguous() for tensor in row):
            parts = list(zip(*(tensor.view(-1).split(most) for tensor in row)))
        for part in parts:
            if batch and size + part[0].numel() > most:
                yield tuple(map(list, zip(*batch)))
                batch, size = [], 0
            batch.append(part)
            size += part[0].numel()
    if batch:
        yield tuple(map(list, zip(*batch)))
