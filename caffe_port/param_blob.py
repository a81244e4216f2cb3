"""The params of layers as blobs: torch Parameters, their gradients, and the memory of these."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.blob import Blob, Shape, Store, check_shape


def _share(store: Store | None, tensor: Tensor) -> Store:
    """Return a store over the memory of `tensor`; keep the old one if it has the same memory."""
    if store is not None:
        old = store.tensor
        if (old.data_ptr(), old.shape) == (tensor.data_ptr(), tensor.shape):
            return store
    return Store(tensor.detach())


@functools.cache
def _references() -> int:
    """Return how many references a gradient has that nobody but a local variable holds."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    grad = parameter.grad
    return sys.getrefcount(grad)


class Factors(NamedTuple):
    """The gradient of a matrix of weights, O x I, as a product: outputs times inputs transposed.

    With few pixels the factors are smaller than the gradient.
    """

    outputs: Tensor  # O x pixels
    inputs: Tensor  # I x pixels

    def diff(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """Return rows of the gradient; in memory of their size if it is given."""
        return torch.mm(self.outputs[rows], self.inputs.t(), out=out)


class ParamBlob(Blob):
    """A layer's parameter as a blob: its data is the Parameter's, its diff the grad.

    With `of`, it shows that other blob's memory in another shape.
    """

    def __init__(
        self,
        parameter: nn.Parameter,
        of: ParamBlob | None = None,
        shape: Sequence[int] | None = None,
    ):
        super().__init__(parameter.shape if shape is None else shape, parameter.device)
        self.parameter, self._of = parameter, of
        self._spare: Tensor | None = None  # the memory of a gradient that was cleared
        self._grad_later: Callable[[], Tensor] | None = None  # makes the grad when it is needed
        self.factors: Factors | None = None  # the grad, while it is not multiplied out
        self.may_be_early = False  # to be updated as soon as its own gradient is there

    def __getstate__(self) -> dict:
        self.flush()
        self.settle_grad()
        # A copy makes its own arrays, and a copied Parameter has lost its grad.
        own = {'_data': None, '_diff': None, '_spare': None}
        return {**self.__dict__, **own, 'grad': self.parameter.grad}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.parameter.grad = self.__dict__.pop('grad')

    @property
    def shape(self) -> Shape:
        return tuple(self.parameter.shape) if self._of is None else self._shape

    @property
    def data(self) -> np.ndarray:
        return super().data.reshape(self.shape)

    @property
    def diff(self) -> np.ndarray:
        return super().diff.reshape(self.shape)

    # The module may have been moved, or its grad replaced, since the last call.

    def _values(self) -> Store:
        if self._of is not None:
            return self._of._values()
        self._data = _share(self._data, self.parameter)
        return self._data

    def _gradient(self) -> Store:
        if self._of is not None:
            return self._of._gradient()
        self.settle_grad()
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        self._diff = _share(self._diff, self.parameter.grad)
        return self._diff

    def share(self, other: ParamBlob) -> None:
        """Use the memory of `other`'s values, and so its host array."""
        self._data = other._values()
        self.parameter.data = other.parameter.data

    def load(self, stored) -> None:
        """Read the values from a stored blob of the same count, straight into place."""
        if self.parameter.device.type == 'cpu' and self.parameter.dtype == torch.float32:
            stored.read_into(self.data.reshape(-1))
        else:
            with torch.no_grad():
                values = torch.from_numpy(stored.array())
                self.parameter.copy_(values.reshape(self.parameter.shape))

    def clear_diff(self) -> None:
        """Set the gradient to zero: in place if a user holds its array."""
        grad, self._grad_later, self.factors = self.parameter.grad, None, None
        if self._of is not None or grad is None:
            return  # the other blob clears it, or it is zero
        if self._diff is not None and self._diff.is_shown():
            grad.zero_()
        else:
            # With more references than these somebody holds the gradient.
            is_free = sys.getrefcount(grad) <= _references() and grad.device.type == 'cpu'
            self._spare = grad if is_free else None
            self.parameter.grad = None

    def is_grad_free(self) -> bool:
        """Return whether there is a gradient on the CPU that nobody else holds."""
        grad = self.parameter.grad
        if grad is None or grad.device.type != 'cpu' or self._of is not None:
            return False
        shown = self._diff is not None and self._diff.is_shown()
        return not shown and sys.getrefcount(grad) <= _references()

    def postpone_grad(self, make: Callable[[], Tensor]) -> None:
        """Free the gradient; `make` returns it when it is needed."""
        self.parameter.grad, self._diff, self.factors = None, None, None
        self._grad_later = make

    def take_factors(self, factors: Factors) -> bool:
        """Take the factors of a gradient in its place, if an early update follows."""
        parameter = self.parameter
        small = sum(factor.numel() for factor in factors) < parameter.numel()
        if not small or not self.may_be_early or parameter.grad is not None:
            return False
        if parameter._backward_hooks:  # they want a gradient
            return False
        shape = self.parameter.shape
        self.postpone_grad(lambda: factors.diff(slice(None)).view(shape))
        self.factors = factors
        return True

    def settle_grad(self) -> None:
        """Make a gradient that was postponed."""
        make, self._grad_later, self.factors = self._grad_later, None, None
        if make is not None and self.parameter.grad is None:
            # Whoever asks, and wherever the parameter is now.
            with torch.inference_mode(False), torch.no_grad():
                self.parameter.grad = make().to(self.parameter)

    def take_spare(self) -> Tensor | None:
        """Return the memory of the gradient that was cleared, once, to be overwritten."""
        spare, self._spare = self._spare, None
        return spare

    def flush(self) -> None:
        """Send what was written to host arrays to the parameter."""
        for store in (self._data, self._diff):
            if store is not None:
                store.current()

    def mark_stale(self) -> None:
        """Mark host arrays stale, after the device has written without autograd's count."""
        for store in (self._data, self._diff):
            if store is not None:
                store.mark_stale()

    def reshape(self, *dims: int) -> None:
        shape, values = check_shape(dims, 'reshape'), self.tensor
        keep = math.prod(shape) == self.count
        self.parameter.data = (
            values.reshape(shape) if keep else torch.zeros(shape, device=values.device)
        )
        self.parameter.grad = self._spare = self._grad_later = self.factors = None
