"""Blob: data and diff as host arrays over a tensor on any device."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffeError

MAX_COUNT = 2**31 - 1


def shape_text(shape: Iterable[int]) -> str:
    """Write a shape as Caffe's messages do: 21 x 4096 x 1 x 1."""
    return ' x '.join(str(dim) for dim in shape) or 'scalar'


def checked_shape(shape: Sequence[int], what: str) -> tuple[int, ...]:
    """Return `shape` as ints; raise CaffeError where Caffe refuses it.

    Caffe counts elements in 32 bits, so more than 2**31 - 1 are refused, before
    anything is allocated; so are negative dims and more than 32 axes.
    """
    shape = tuple(int(dim) for dim in shape)
    if len(shape) > 32:
        raise CaffeError(f'{what}: {len(shape)} axes, at most 32')
    if any(dim < 0 for dim in shape):
        raise CaffeError(f'{what}: shape {shape} has a negative dimension')
    count = math.prod(dim or 1 for dim in shape)  # beside a 0 no dim may be absurd either
    if count > MAX_COUNT:
        raise CaffeError(
            f'{what}: shape {shape} has {count} elements, a blob holds at most {MAX_COUNT}'
        )
    return shape


class _Half:
    """The data or the diff of a blob: a tensor and the host array handed out for it.

    On the CPU the host array is the tensor's own memory, and shows the blob's values for
    as long as somebody holds it. Elsewhere it is a copy that counts as written to for
    as long, since numpy does not tell: it is sent back whenever the device needs the
    tensor, and forgotten once the device has written the tensor anew.
    """

    __slots__ = ('tensor', '_host', '_host_ref', '_version')

    def __init__(self, tensor: Tensor | None = None):
        self.replace(tensor)

    def __reduce__(self):  # a copy has its own host array
        return _Half, (self.on_device(),)

    def array(self) -> np.ndarray:
        on_cpu = self.tensor.device.type == 'cpu'
        if not self.tensor.is_contiguous():  # channels last, as a plan leaves it
            self.tensor = self.tensor.contiguous()
        host = self.seen() if on_cpu else self._held()
        if host is None:
            host = self.tensor.detach().cpu().numpy()
            self._host_ref, self._version = weakref.ref(host), self._written()
        if not on_cpu:
            self._host = host  # kept until it is sent, even if nobody else holds it
        return host

    def seen(self) -> np.ndarray | None:
        """On the CPU, the host array that somebody holds."""
        if self._host_ref is None or self.tensor.device.type != 'cpu':
            return None
        return self._host_ref()

    def settle(self, host: np.ndarray) -> None:
        """Move the values to the memory of `host`, which somebody holds, if they fit there."""
        tensor, memory = self.tensor, torch.from_numpy(host)
        if tensor is None or (tensor.shape, tensor.dtype, tensor.device) != (
            memory.shape,
            memory.dtype,
            memory.device,
        ):
            return
        if tensor.data_ptr() != memory.data_ptr():
            memory.copy_(tensor)
        self.replace(memory)
        self._host_ref = weakref.ref(host)

    def _held(self) -> np.ndarray | None:
        """Off the CPU, the host array, unless nobody holds it or the device has written since."""
        if (
            self._host_ref is None
            or self._version != self._written()
            or self.tensor.device.type == 'cpu'
        ):
            return None
        return self._host_ref()

    def _written(self) -> int:
        """How often the device has written the tensor in place, as autograd counts it."""
        return 0 if self.tensor.is_inference() else self.tensor._version

    def on_device(self) -> Tensor | None:
        host, self._host = self._held(), None
        if host is not None:
            # By way of .data, which is not counted: autograd saw no such write on the CPU either.
            self.tensor.data.copy_(torch.from_numpy(host))
        return self.tensor

    def replace(self, tensor: Tensor | None) -> None:
        self.tensor, self._host, self._host_ref = tensor, None, None


class Blob:
    """An N-d array of float32 with its gradient, as pycaffe shows it.

    Memory comes with the first use, all of `value`, so a blob that is only declared
    costs nothing.
    """

    def __init__(
        self, shape: Sequence[int] = (), device: torch.device | str = 'cpu', value: float = 0.0
    ):
        self._shape, self._value = checked_shape(shape, 'blob'), value
        self._device = torch.device(device)
        self._data, self._diff = _Half(), _Half()
        self._later: Callable[[], None] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def count(self) -> int:
        return math.prod(self._shape)

    def _legacy_axis(self, axis: int) -> int:
        if len(self._shape) > 4:
            raise CaffeError(
                f'num, channels, height and width need at most 4 axes, '
                f'the blob has {len(self._shape)}: {self._shape}'
            )
        return self._shape[axis] if axis < len(self._shape) else 1

    num = property(lambda self: self._legacy_axis(0))
    channels = property(lambda self: self._legacy_axis(1))
    height = property(lambda self: self._legacy_axis(2))
    width = property(lambda self: self._legacy_axis(3))

    @property
    def data(self) -> np.ndarray:
        """The values: a writable float32 array of `shape`, C order."""
        self._need(self._data)
        return self._data.array()

    @property
    def diff(self) -> np.ndarray:
        """The gradient with respect to `data`: a writable array of the same shape."""
        self._need(self._diff)
        return self._diff.array()

    def reshape(self, *dims: int) -> None:
        """Give the blob another shape; values stay iff the count does."""
        shape = checked_shape(dims, 'reshape')
        if math.prod(shape) == self.count:
            self._keep_promise()
            for half in (self._data, self._diff):
                if half.tensor is not None:
                    half.replace(half.on_device().detach().reshape(shape))
        else:
            self._later = None
            self._data.replace(None)
            self._diff.replace(None)
        self._shape = shape

    def _need(self, half: _Half) -> None:
        if half is self._data:
            self._keep_promise()
        if half.tensor is None:
            value = self._value if half is self._data else 0.0
            half.replace(torch.full(self._shape, value, device=self._device))

    # What nets use: the same memory as tensors.

    def promise(self, shape: Sequence[int], later: Callable[[], None]) -> None:
        """Take a shape now, and values when somebody needs them: `later` then sets `tensor`."""
        self._shape, self._later = tuple(shape), later
        self._data.replace(None)
        if self._diff.tensor is not None and self._diff.tensor.shape != self._shape:
            self._diff.replace(None)

    @property
    def is_promised(self) -> bool:
        return self._later is not None

    def _keep_promise(self) -> None:
        if self._later is not None:
            self._later()
            self._later = None

    def held(self) -> list[tuple[_Half, np.ndarray]]:
        """The halves whose array somebody holds, on the CPU, and these arrays."""
        return [
            (half, host) for half in (self._data, self._diff) if (host := half.seen()) is not None
        ]

    @property
    def data_is_held(self) -> bool:
        return self._data.seen() is not None

    @property
    def tensor(self) -> Tensor:
        """The values on the device, with what was written to `data` since."""
        self._need(self._data)
        return self._data.on_device()

    @tensor.setter
    def tensor(self, tensor: Tensor) -> None:
        self._shape, self._device, self._later = tuple(tensor.shape), tensor.device, None
        self._data.replace(tensor)
        if self._diff.tensor is not None and self._diff.tensor.shape != tensor.shape:
            self._diff.replace(None)

    @property
    def diff_tensor(self) -> Tensor | None:
        """The gradient on the device; None where nobody has set or asked for one."""
        return self._diff.on_device()

    @diff_tensor.setter
    def diff_tensor(self, tensor: Tensor | None) -> None:
        self._diff.replace(tensor)

    def to(self, device: torch.device) -> None:
        """Move the values and the gradient to `device`."""
        self._keep_promise()
        for half in (self._data, self._diff):
            if half.tensor is not None:
                half.replace(half.on_device().to(device))
        self._device = device


class ParamBlob(Blob):
    """A layer's parameter as a blob: its data is the Parameter's, its diff the grad."""

    def __init__(self, parameter: torch.nn.Parameter, view: Sequence[int] | None = None):
        super().__init__(parameter.shape, parameter.device)
        self.parameter, self._view = parameter, view

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._view or self.parameter.shape)

    count = property(lambda self: self.parameter.numel())

    def _need(self, half: _Half) -> None:
        # The module may have been moved, or its grad replaced, since last time.
        parameter = self.parameter
        if half is self._diff and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        is_data = half is self._data
        tensor = (parameter if is_data else parameter.grad).detach()
        if half.tensor is None or half.tensor.data_ptr() != tensor.data_ptr():
            setattr(
                self,
                '_data' if is_data else '_diff',
                _Half(tensor.view(self._view) if self._view else tensor),
            )

    @property
    def tensor(self) -> Tensor:
        self.flush()
        return self.parameter.detach()

    def share(self, other: ParamBlob) -> None:
        """Use the memory of `other`'s values, and so its host array."""
        other._need(other._data)
        self.parameter.data = other.parameter.data
        self._data = other._data

    def load(self, stored) -> None:
        """Read the values from a stored blob of the same count, straight into place."""
        if self.parameter.device.type == 'cpu' and self.parameter.dtype == torch.float32:
            stored.read_into(self.data.reshape(-1))
        else:
            values = torch.from_numpy(stored.array()).reshape(self.parameter.shape)
            with torch.no_grad():
                self.parameter.copy_(values)

    def written(self) -> None:
        """Forget host arrays: the device has written the parameter where nobody counts it."""
        if self.parameter.device.type == 'cpu':
            return  # they are its memory
        self._data.replace(self._data.tensor)  # which another net may share
        self._diff.replace(None)

    def clear_diff(self) -> None:
        """Set the gradient to zero: in place where somebody holds its array."""
        if self.parameter.grad is not None and self._diff.seen() is not None:
            self.parameter.grad.zero_()
        else:
            self.parameter.grad = None

    def flush(self) -> None:
        """Send what was written to host arrays to the parameter."""
        for half in (self._data, self._diff):
            half.on_device()

    def reshape(self, *dims: int) -> None:
        shape = checked_shape(dims, 'reshape')
        self.flush()
        parameter = self.parameter
        same = math.prod(shape) == parameter.numel()
        parameter.data = (
            parameter.data.reshape(shape) if same else torch.zeros(shape, device=parameter.device)
        )
        parameter.grad = None
        self._data, self._diff = _Half(), _Half()
