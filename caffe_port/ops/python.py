"""Layers written in Python: the Layer base class and the Python layer type."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from caffe_port import plugins
from caffe_port.blob import Blob, ParamBlob
from caffe_port.errors import CaffeError
from caffe_port.ops.base import Op, Shape


class LayerBlobs(list):
    """The parameter blobs of a Python layer; add_blob(*dims) appends one of zeros."""

    def __init__(self, op: Python):
        super().__init__()
        self._op = op

    def add_blob(self, *dims: int) -> Blob:
        name = f'blob{len(self)}'
        self._op.add_blob(name, dims)
        self.append(ParamBlob(getattr(self._op, name)))
        return self[-1]


class Layer:
    """Base of layers written in Python, with pycaffe's protocol.

    A subclass defines setup, reshape, forward (bottom, top) and backward
    (top, propagate_down, bottom), where bottom and top are lists of Blob.
    `param_str` is the prototxt's string, `phase` TRAIN or TEST, `blobs` the
    layer's parameters, which `blobs.add_blob(*dims)` adds in setup.
    """

    param_str: str = ''
    phase: int
    blobs: LayerBlobs

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
    """The class a python_param names; it must derive from Layer, and nothing is evaluated."""
    if not re.fullmatch(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*', module):
        raise CaffeError(f'python_param: "{module}" is not the name of a module')
    loaded = plugins.layer_module(module)
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
        self.layer.blobs = LayerBlobs(self)
        self.layer.__init__()
        self.bottom = [Blob(shape, self.device) for shape in shapes]
        self.top = [Blob((), self.device) for _ in self.param.top]
        if not shapes:
            self.kept_tops = self.top
        self.layer.setup(self.bottom, self.top)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        if not bottoms and not self.blob_names:
            tops = self.run()
            # The layer writes its tops anew next time: a graph must not hold on to them.
            return tuple(top.clone() for top in tops) if torch.is_grad_enabled() else tops
        return _PythonFunction.apply(self, len(bottoms), *bottoms, *self.blobs())

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        for blob, shape in zip(self.bottom, shapes):
            if blob.shape != shape:
                blob.reshape(*shape)
        self.layer.reshape(self.bottom, self.top)
        return [top.shape for top in self.top]

    def run(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        for blob, bottom in zip(self.bottom, bottoms):
            blob.tensor = bottom.detach()
        device = bottoms[0].device if bottoms else self.device
        for blob in self.top:
            blob.to(device)
        self.layer.reshape(self.bottom, self.top)
        self.layer.forward(self.bottom, self.top)
        return tuple(blob.tensor for blob in self.top)


class _PythonFunction(torch.autograd.Function):
    """Lets PyTorch's backward pass call the layer's own."""

    @staticmethod
    def forward(ctx, op: Python, count: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.op, ctx.count = op, count
        # Copies, since the layer writes its tops anew next time.
        return tuple(top.clone() for top in op.run(*inputs[:count]))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        op, propagate = ctx.op, list(ctx.needs_input_grad[2 : 2 + ctx.count])
        for blob, grad in zip(op.top, grads):
            blob.diff_tensor = grad.clone()
        for blob in op.bottom:
            blob.diff_tensor = torch.zeros_like(blob.tensor)
        op.layer.backward(op.top, propagate, op.bottom)
        found = [blob.diff_tensor if wanted else None for blob, wanted in zip(op.bottom, propagate)]
        # The layer has added to the diffs of its own blobs itself.
        return None, None, *found, *([None] * len(op.blob_names))
