"""Blob: data and diff as host arrays over a tensor on any device."""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffeError
from caffe_port.mode import LOW_DTYPES

Shape = tuple[int, ...]
MAX_COUNT = 2**31 - 1
# Pinned memory is kept for the next array: enough for images, not for weights.
_MOST_PINNED = 1 << 26


def format_shape(shape: Iterable[int]) -> str:
    """Write a shape as Caffe's messages do: 21 x 4096 x 1 x 1."""
    return ' x '.join(str(dim) for dim in shape) or 'scalar'


def check_shape(shape: Sequence[int], what: str) -> Shape:
    """Return `shape` as ints; raise CaffeError where Caffe refuses it.

    Caffe counts elements in 32 bits, so more than 2**31 - 1 are refused, before
    anything is allocated; so are negative dims, fractions and more than 32 axes.
    """
    try:
        shape = tuple(operator.index(dim) for dim in shape)
    except TypeError as error:
        raise CaffeError(
            f'{what}: {tuple(shape)} is no shape: every dim must be a whole number'
        ) from error
    if len(shape) > 32:
        raise CaffeError(f'{what}: {len(shape)} axes, at most 32')
    if any(dim < 0 for dim in shape):
        raise CaffeError(f'{what}: shape {shape} has a negative dimension')
    count = math.prod(dim or 1 for dim in shape)  # count a 0 as 1: the other dims have a bound too
    if count > MAX_COUNT:
        raise CaffeError(
            f'{what}: shape {shape} has {count} elements, a blob holds at most {MAX_COUNT}'
        )
    return shape


def _nothing() -> None:
    return None


class Store:
    """A tensor and the host array that users get for it.

    On the CPU the array is the tensor's memory. While a user holds it, later values are
    copied into it, so the array shows them.
    On a GPU the array is a copy. NumPy does not report writes, so while a user holds the array
    it is sent to the GPU whenever the tensor is needed. The array is stale once the GPU has
    written the tensor; the next call of `array` then fetches a new one. That goes for a tensor
    of 16 bits too, wherever it is: NumPy has no bfloat16, and the array is float32.
    """

    __slots__ = ('tensor', '_in_place', '_array', '_unsent', '_version')

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self._in_place = tensor.device.type == 'cpu' and tensor.dtype not in LOW_DTYPES
        self.forget_array()

    def __reduce__(self):  # a copy has its own array
        return Store, (self.current(),)

    def forget_array(self) -> None:
        self._array: Callable[[], np.ndarray | None] = _nothing  # or a weak reference
        self._unsent: np.ndarray | None = None

    def array(self) -> np.ndarray:
        """Return the host array of the tensor."""
        array = self._fresh_array()
        if array is None:
            host = self.tensor.detach().cpu()
            array = (host.float().contiguous() if host.dtype in LOW_DTYPES else host).numpy()
            self._array, self._version = weakref.ref(array), _writes(self.tensor)
        if not self._in_place:
            self._unsent = array  # may be written to, and must live until it is sent
        return array

    def current(self) -> Tensor:
        """Return the tensor, with what the user wrote to its array."""
        if not self._in_place:
            array, self._unsent = self._fresh_array(), None
            if array is not None:
                host = torch.from_numpy(array)
                pinned = self.tensor.is_cuda and host.nbytes <= _MOST_PINNED
                # From other memory the host waits until the GPU comes to the copy.
                host = host.pin_memory() if pinned else host
                # Through .data, which autograd does not count: it sees no writes on the CPU either.
                self.tensor.data.copy_(host, non_blocking=pinned)
        return self.tensor

    def is_shown(self) -> bool:
        """Say whether a user holds the tensor's memory as an array."""
        return self._in_place and self._array() is not None

    def mark_stale(self) -> None:
        """Forget the host copy, after the GPU has written the tensor without autograd's count."""
        if not self._in_place:
            self.forget_array()

    def _fresh_array(self) -> np.ndarray | None:
        array = self._array()
        stale = array is not None and not self._in_place and self._version != _writes(self.tensor)
        return None if stale else array


def _writes(tensor: Tensor) -> int:
    """Return how often a tensor was written in place, as autograd counts."""
    return 0 if tensor.is_inference() else tensor._version


def _fill(store: Store | None, tensor: Tensor) -> Store:
    """Return a store of `tensor`; if a user holds an array that fits, copy the values into it."""
    if store is not None and store.is_shown():
        old = store.tensor
        same = old.dtype == tensor.dtype or tensor.dtype in LOW_DTYPES
        if same and (old.shape, old.device) == (tensor.shape, tensor.device):
            if old.data_ptr() != tensor.data_ptr():
                torch.from_numpy(store.array()).copy_(tensor)
            return store
    # Of 16 bits users see a copy: such a tensor may keep its channels last.
    return Store(tensor if tensor.dtype in LOW_DTYPES else tensor.contiguous())


class Blob:
    """An N-d array of float32 with its gradient, as pycaffe shows it.

    Memory is allocated at the first use and filled with `value`, so a blob that is only
    declared costs nothing.
    """

    def __init__(
        self, shape: Sequence[int] = (), device: torch.device | str = 'cpu', value: float = 0.0
    ):
        self._shape, self._value = check_shape(shape, 'blob'), value
        self._device = torch.device(device)
        self._data: Store | None = None
        self._diff: Store | None = None
        # These set values, and a gradient, that are not computed yet.
        self._later: Callable[[], None] | None = None
        self._diff_later: Callable[[], None] | None = None

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def _legacy_axis(self, axis: int) -> int:
        if len(self.shape) > 4:
            raise CaffeError(
                f'num, channels, height and width need at most 4 axes, '
                f'the blob has {len(self.shape)}: {self.shape}'
            )
        return self.shape[axis] if axis < len(self.shape) else 1

    num = property(lambda self: self._legacy_axis(0))
    channels = property(lambda self: self._legacy_axis(1))
    height = property(lambda self: self._legacy_axis(2))
    width = property(lambda self: self._legacy_axis(3))

    @property
    def data(self) -> np.ndarray:
        """The values: a writable float32 array of `shape`, C order.

        On the CPU the array shows what is computed next, until the blob is reshaped;
        on a GPU, ask for `data` again. What is written to the array reaches the device.
        """
        return self._values().array()

    @property
    def diff(self) -> np.ndarray:
        """The gradient with respect to `data`: a writable array like it."""
        return self._gradient().array()

    def _values(self) -> Store:
        if self._later is not None:
            self._later()
        if self._data is None:
            self._data = Store(torch.full(self._shape, self._value, device=self._device))
        return self._data

    def _gradient(self) -> Store:
        if self._diff_later is not None:
            self._diff_later()
        if self._diff is None:
            self._diff = Store(torch.zeros(self._shape, device=self._device))
        return self._diff

    def reshape(self, *dims: int) -> None:
        """Change the shape; keep the values iff the count stays."""
        shape = check_shape(dims, 'reshape')
        if shape == self._shape:
            return
        kept = math.prod(shape) == self.count
        if kept and self._later is not None:
            self._later()
        if kept and self._diff_later is not None:
            self._diff_later()
        self._later = self._diff_later = None

        def reshape_store(store: Store | None) -> Store | None:
            return Store(store.current().detach().reshape(shape)) if store and kept else None

        self._shape = shape
        self._data, self._diff = reshape_store(self._data), reshape_store(self._diff)

    # What nets use: the same memory as tensors.

    @property
    def tensor(self) -> Tensor:
        """The values on the device, with what was written to `data`.

        A tensor that is assigned must be the blob's alone: later values may overwrite it.
        """
        return self._values().current()

    @tensor.setter
    def tensor(self, tensor: Tensor) -> None:
        self._data = _fill(self._data, tensor)
        self._follow(tensor)

    def borrow(self, tensor: Tensor) -> None:
        """Show a tensor that another blob owns; later values do not overwrite it."""
        self._data = Store(tensor.contiguous())
        self._follow(tensor)

    def _follow(self, tensor: Tensor) -> None:
        self._device, self._later = tensor.device, None
        self._take_shape(tuple(tensor.shape))

    def _take_shape(self, shape: tuple[int, ...]) -> None:
        if self._shape != shape:
            self._diff_later = None
        self._shape = shape
        if self._diff is not None and self._diff.tensor.shape != shape:
            self._diff = None

    def postpone(self, shape: Sequence[int], later: Callable[[], None]) -> None:
        """Take a shape now, and values when they are first needed: `later` sets `tensor`."""
        self._data, self._later = None, later
        self._take_shape(tuple(shape))

    @property
    def is_postponed(self) -> bool:
        return self._later is not None

    def postpone_diff(self, later: Callable[[], None]) -> None:
        """Take a gradient when it is first needed: `later` sets `diff_tensor`."""
        self._diff, self._diff_later = None, later

    @property
    def is_diff_postponed(self) -> bool:
        return self._diff_later is not None

    def is_shown(self) -> bool:
        """Say whether a user holds an array into which new values are copied."""
        return self._data is not None and self._data.is_shown()

    def is_diff_shown(self) -> bool:
        """Say whether a user holds the array of the gradient."""
        return self._diff is not None and self._diff.is_shown()

    @property
    def diff_tensor(self) -> Tensor | None:
        """The gradient on the device; None if it was never set nor asked for."""
        if self._diff_later is not None:
            self._diff_later()
        return None if self._diff is None else self._diff.current()

    @diff_tensor.setter
    def diff_tensor(self, tensor: Tensor) -> None:
        self._diff, self._diff_later = _fill(self._diff, tensor), None

    def to(self, device: torch.device) -> None:
        """Move the values and the gradient to `device`."""

        def move_store(store: Store | None) -> Store | None:
            if store is None or store.tensor.device == device:
                return store
            return Store(store.current().to(device))

        self._data, self._diff = move_store(self._data), move_store(self._diff)
        self._device = device
