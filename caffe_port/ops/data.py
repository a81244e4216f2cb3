"""Where blobs come from: Input, DummyData; and what to use in place of databases and files."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from caffe_port.blob import Blob, checked_shape
from caffe_port.ops import fillers
from caffe_port.ops.base import Op, Shape
from caffe_port.proto.caffe_pb2 import FillerParameter

# Types that nothing here stands in for: what each does, and what to do instead.
FED_TYPES = {
    **dict.fromkeys(
        ('Data', 'ImageData', 'HDF5Data', 'WindowData'),
        "reads a database or files of Caffe's own: feed the net through an Input "
        'or a Python layer instead',
    ),
    'MemoryData': 'takes its values from the program: feed the net through an Input or a '
    'DummyData layer instead',
    'HDF5Output': 'writes a file: take the blobs from net.blobs instead',
}


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
        self.shapes = [checked_shape(s.dim, 'input') for s in shapes] or [()]
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
        self.shapes = [checked_shape(shape, 'data') for shape in shapes]
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
