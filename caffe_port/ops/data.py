"""Blobs that come from no file: Input, DummyData, MemoryData."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import Tensor

from caffe_port.blob import Blob, check_shape, format_shape
from caffe_port.errors import CaffeError
from caffe_port.ops import fillers
from caffe_port.ops.base import Op, Shape
from caffe_port.proto.caffe_pb2 import FillerParameter

LOG = logging.getLogger('caffe_port')


class Input(Op):
    """Declare the net's inputs, which are 0 until written, as input_layer.cpp."""

    bottoms, tops = (0, 0), (1, math.inf)

    def setup(self) -> None:
        shapes = self.param.input_param.shape
        count = len(self.param.top)
        self.require(
            len(shapes) in (0, 1, count),
            f'{len(shapes)} shapes for {count} tops: give none, one or one each',
        )
        self.shapes = [check_shape(s.dim, 'input') for s in shapes] or [()]
        if len(self.shapes) == 1:
            self.shapes *= count

    def top_shapes(self) -> list[Shape]:
        return self.shapes


class DummyData(Op):
    """Fill the tops by fillers in each forward, as dummy_data_layer.cpp.

    A constant top is filled once, when the net is built, and keeps what is written to it.
    """

    bottoms, tops = (0, 0), (1, math.inf)

    def setup(self) -> None:
        p = self.param.dummy_data_param
        legacy = {name: list(getattr(p, name)) for name in ('num', 'channels', 'height', 'width')}
        if any(legacy.values()):
            self.require(not p.shape, 'give either shape or num, channels, height, width')
            shapes = list(zip(*(self._per_top(dims, name) for name, dims in legacy.items())))
        else:
            shapes = self._per_top([s.dim for s in p.shape], 'shape')
        self.shapes = [check_shape(shape, 'data') for shape in shapes]
        self.fillers = self._per_top(list(p.data_filler) or [FillerParameter()], 'data_filler')
        self.kept_tops = [
            Blob(shape, self.device, filler.value) if filler.type == 'constant' else None
            for filler, shape in zip(self.fillers, self.shapes)
        ]

    def _per_top(self, given: list, what: str) -> list:
        """Return one entry per top: those given, or the only one for all."""
        self.require(
            len(given) in (1, self.top_count),
            f'{len(given)} {what} for {self.top_count} tops: give one, or one each',
        )
        return given * (self.top_count if len(given) == 1 else 1)

    def top_shapes(self) -> list[Shape]:
        return self.shapes

    def forward(self) -> tuple[Tensor, ...]:
        return tuple(
            (torch.from_numpy(fillers.fill(filler, shape)) if kept is None else kept.tensor).to(
                self.device
            )
            for filler, shape, kept in zip(self.fillers, self.shapes, self.kept_tops)
        )


class MemoryData(Op):
    """Feed arrays from memory, one batch after the other, as memory_data_layer.cpp.

    They come from set_arrays, which Net.set_input_arrays calls, and begin anew after their
    end; a forward sees what has been written to them. As in Caffe transform_param does not
    change them.
    """

    bottoms, tops = (0, 0), (2, 2)

    def setup(self) -> None:
        p = self.param.memory_data_param
        self.shape = check_shape((p.batch_size, p.channels, p.height, p.width), 'data')
        self.require(
            min(self.shape) > 0,
            'memory_data_param: batch_size, channels, height and width must be positive, found '
            + format_shape(self.shape),
        )
        self.arrays: tuple[np.ndarray, np.ndarray] | None = None
        self.position = 0

    def set_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Feed data (N x channels x height x width) and N labels, float32, from their start.

        Raises CaffeError for another type or shape, and where N is no multiple of batch_size.
        """
        labels = labels.reshape(-1, 1, 1, 1) if labels.ndim == 1 else labels
        for what, array, shape in (('data', data, self.shape[1:]), ('labels', labels, (1, 1, 1))):
            self.require(
                array.dtype == np.float32 and array.flags.c_contiguous,
                f'{what}: expected a C-contiguous float32 array, found {array.dtype}'
                + ('' if array.flags.c_contiguous else ', not contiguous'),
            )
            self.require(
                array.ndim == 4 and array.shape[1:] == shape,
                f'{what}: expected N x {format_shape(shape)}, found {format_shape(array.shape)}',
            )
        self.require(
            len(data) == len(labels), f'{len(data)} images and {len(labels)} labels: must agree'
        )
        self.require(
            len(data) > 0 and len(data) % self.shape[0] == 0,
            f'{len(data)} images: expected a multiple of batch_size {self.shape[0]}',
        )
        if self.param.HasField('transform_param'):
            LOG.warning('%s: transform_param does not change arrays', self.param.name)
        self.arrays, self.position = (data, labels), 0

    def _top_shapes(self) -> list[Shape]:
        return [self.shape, (self.shape[0], 1, 1, 1)]

    top_shapes = _top_shapes

    def forward(self) -> tuple[Tensor, ...]:
        if self.arrays is None:
            raise CaffeError('no arrays to feed: call set_input_arrays')
        begin, end = self.position, self.position + self.shape[0]
        self.position = end % len(self.arrays[0])
        # Copy: the next forward overwrites an array that a user may hold.
        batch = (array[begin:end].copy() for array in self.arrays)
        return tuple(torch.from_numpy(array).to(self.device) for array in batch)

    def state(self) -> dict:
        """Return the position in the arrays; the arrays themselves are not saved."""
        return {'position': self.position}

    def set_state(self, state: dict) -> None:
        """Go on from a state(); raises CaffeError, and stays, if it does not fit the arrays."""
        position = state.get('position') if isinstance(state, dict) else None
        count = len(self.arrays[0]) if self.arrays else 2**31
        if type(position) is not int or not 0 <= position < count or position % self.shape[0]:
            raise CaffeError(f'state of {self.param.name}: place {position} in {count} images')
        self.position = position
