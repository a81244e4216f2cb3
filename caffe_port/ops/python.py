"""Layers written in Python: the Layer base class and the Python layer type."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_port import plugins
from caffe_port.blob import Blob
from caffe_port.errors import CaffeError
from caffe_port.ops.base import Op, Shape, as_tuple


class ParamBlobs(list):
    """The parameter blobs of a Python layer."""

    def __init__(self, op: Python):
        super().__init__()
        self._op = op

    def add_blob(self, *dims: int) -> Blob:
        """Append a blob of zeros, to be called in the layer's setup."""
        self._op.add_blob(f'blob{len(self)}', dims)
        return self[-1]


class Layer:
    """Base of layers written in Python, with pycaffe's protocol.

    A subclass defines setup, reshape, forward (bottom, top) and backward
    (top, propagate_down, bottom), where bottom and top are lists of Blob.
    `param_str` is the prototxt's string, `phase` is TRAIN or TEST, `blobs` are the layer's
    parameters: setup adds each by `blobs.add_blob(*dims)` and fills its data.
    """

    param_str: str = ''
    phase: int
    blobs: ParamBlobs

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Read param_str and check bottoms and tops; called once."""

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Give the tops their shapes; called before every forward."""
        raise CaffeError(f'{type(self).__name__} defines no reshape')

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        """Compute top[i].data from bottom[i].data."""
        raise CaffeError(f'{type(self).__name__} defines no forward')

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        """Compute bottom[i].diff from top[i].diff where propagate_down[i]."""
        raise CaffeError(f'{type(self).__name__} defines no backward')


def _find(module: str, layer: str) -> type[Layer]:
    """Return the class that a python_param names, which must derive from Layer."""
    if not re.fullmatch(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*', module):
        raise CaffeError(f'python_param: "{module}" is not the name of a module')
    loaded = plugins.import_layer_module(module)
    found = getattr(loaded, layer, None)
    if not (isinstance(found, type) and issubclass(found, Layer)):
        raise CaffeError(
            f'python_param: module {module} has no class {layer} that derives from caffe_port.Layer'
        )
    return found


class Python(Op):
    """Run a layer written in Python, as python_layer.hpp."""

    bottoms = tops = (0, math.inf)

    def setup(self, *shapes: Shape) -> None:
        p = self.param.python_param
        layer_class = _find(p.module, p.layer)
        self.layer = layer_class.__new__(layer_class)
        self.layer.param_str, self.layer.phase = p.param_str, self.phase
        self.param_blobs = self.layer.blobs = ParamBlobs(self)
        layer_class.__init__(self.layer)
        self.bottom = [Blob(shape, self.device) for shape in shapes]
        self.top = [Blob((), self.device) for _ in self.param.top]
        if not shapes:
            self.kept_tops = [*self.top]
        self.layer.setup(self.bottom, self.top)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        if not bottoms and not self.blob_names:
            tops = self.run()
            # The layer overwrites its tops next time: a graph needs its own.
            return tuple(top.clone() for top in tops) if torch.is_grad_enabled() else tops
        return _PythonFunction.apply(self, False, len(bottoms), *bottoms, *self.blobs())

    def retrace(self, bottoms: Sequence[Tensor], tops: Sequence[Tensor]) -> tuple[Tensor, ...]:
        # Its backward reads its blobs, so its forward need not run.
        for blob, bottom in zip(self.bottom, bottoms):
            blob.borrow(bottom.detach())
        for blob, top in zip(self.top, tops):
            blob.tensor = top.detach().clone()
        return as_tuple(_PythonFunction.apply(self, True, len(bottoms), *bottoms, *self.blobs()))

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        for blob, shape in zip(self.bottom, shapes):
            if blob.shape != shape:
                blob.reshape(*shape)
        self.layer.reshape(self.bottom, self.top)
        return [top.shape for top in self.top]

    def run(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        for blob, bottom in zip(self.bottom, bottoms):
            blob.borrow(bottom.detach())
        for blob in self.top:
            blob.to(bottoms[0].device if bottoms else self.device)
        self.layer.reshape(self.bottom, self.top)
        self.layer.forward(self.bottom, self.top)
        return tuple(blob.tensor for blob in self.top)


class _PythonFunction(torch.autograd.Function):
    """Let PyTorch's backward pass call the layer's own.

    With `done`, the layer's blobs already hold bottoms and tops, and its forward is not run.
    """

    @staticmethod
    def forward(ctx, op: Python, done: bool, count: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.op, ctx.count = op, count
        tops = [blob.tensor for blob in op.top] if done else op.run(*inputs[:count])
        # Copies, since the layer overwrites its tops next time.
        return tuple(top.clone() for top in tops)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        op, propagate = ctx.op, list(ctx.needs_input_grad[3 : 3 + ctx.count])
        for blob, grad in zip(op.top, grads):
            blob.diff_tensor = grad.clone()
        for blob in op.bottom:
            blob.diff_tensor = torch.zeros_like(blob.tensor)
        op.layer.backward(op.top, propagate, op.bottom)
        # Copies, since the layer overwrites its diffs next time.
        found = [
            blob.diff_tensor.clone() if wanted else None
            for blob, wanted in zip(op.bottom, propagate)
        ]
        # The layer has added to the diffs of its own blobs itself.
        return None, None, None, *found, *([None] * len(op.blob_names))
