"""Layers that combine, rescale or reshape whole blobs."""

from __future__ import annotations

import functools
import math
import operator

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.errors import CaffeError
from caffe_port.ops.base import Op, Shape, axis_of, indices, settings
from caffe_port.proto.caffe_pb2 import EltwiseParameter, ReductionParameter


class Eltwise(Op):
    """Product, weighted sum or maximum of bottoms of one shape, as eltwise_layer.cpp."""

    bottoms = (2, math.inf)
    itemwise = True

    def setup(self, *shapes: Shape) -> None:
        p = self.param.eltwise_param
        self.operation, self.coeff = p.operation, list(p.coeff)
        self.require(
            len(self.coeff) in (0, len(shapes)),
            f'{len(self.coeff)} coeff for {len(shapes)} bottoms',
        )
        self.require(
            not self.coeff or self.operation != EltwiseParameter.PROD,
            'coeff does not go with operation PROD',
        )

    def forward(self, *bottoms: Tensor) -> Tensor:
        for bottom in bottoms:
            self.require(
                bottom.shape == bottoms[0].shape,
                f'bottoms differ: {tuple(bottoms[0].shape)} and {tuple(bottom.shape)}',
            )
        if self.operation == EltwiseParameter.PROD:
            return functools.reduce(operator.mul, bottoms)
        if self.operation == EltwiseParameter.MAX:
            # Caffe gives the gradient of a tie to one bottom: of the first two to the second,
            # later to the earlier. torch.maximum would share it.
            first, second, *others = bottoms
            top = torch.where(first > second, first, second)
            return functools.reduce(lambda a, b: torch.where(b > a, b, a), others, top)
        if self.coeff:
            bottoms = tuple(coeff * bottom for coeff, bottom in zip(self.coeff, bottoms))
        return functools.reduce(operator.add, bottoms)


def _either_axis(param, legacy: str, axes: int) -> int:
    """Return the axis of Concat or Slice, from `axis` or the older field."""
    if not param.HasField(legacy):
        return axis_of(param.axis, axes)
    if param.HasField('axis'):
        raise CaffeError(f'give either axis or {legacy}, not both')
    return axis_of(getattr(param, legacy), axes, legacy)


class Concat(Op):
    """Join the bottoms along an axis, as concat_layer.cpp."""

    bottoms = (1, math.inf)

    def setup(self, *shapes: Shape) -> None:
        self.axis = _either_axis(self.param.concat_param, 'concat_dim', len(shapes[0]))
        self.itemwise = self.axis > 0

    def forward(self, *bottoms: Tensor) -> Tensor:
        for bottom in bottoms:  # torch.cat ignores empty vectors, whatever their axes
            self.require(
                bottom.dim() == bottoms[0].dim(),
                f'bottoms differ: {tuple(bottoms[0].shape)} and {tuple(bottom.shape)}',
            )
        return torch.cat(bottoms, self.axis)


class Slice(Op):
    """Cut the bottom along an axis at slice_point, or into equal parts, as slice_layer.cpp."""

    tops = (1, math.inf)

    def setup(self, shape: Shape) -> None:
        p, parts = self.param.slice_param, self.top_count
        self.axis = _either_axis(p, 'slice_dim', len(shape))
        self.itemwise = self.axis > 0
        self.points = list(p.slice_point)
        self.require(
            len(self.points) in (0, parts - 1),
            f'{len(self.points)} slice_point for {parts} tops, expected {parts - 1}',
        )

    def forward(self, bottom: Tensor) -> tuple[Tensor, ...]:
        size, parts = bottom.shape[self.axis], self.top_count
        if not self.points:
            self.require(
                size % parts == 0,
                f'axis {self.axis} of {tuple(bottom.shape)} does not divide by {parts}',
            )
        points = self.points or [size // parts * i for i in range(1, parts)]
        sizes = [b - a for a, b in zip([0, *points], [*points, size])]
        self.require(min(sizes) > 0, f'slice_point {points} must rise within 1..{size - 1}')
        return tuple(part.contiguous() for part in bottom.split(sizes, self.axis))


class Split(Op):
    """Copy the bottom to each top, as split_layer.cpp."""

    tops = (1, math.inf)
    itemwise = True

    def forward(self, bottom: Tensor) -> tuple[Tensor, ...]:
        return tuple(bottom.clone() for _ in range(self.top_count))


class Silence(Op):
    """Consume bottoms, so that they are not outputs of the net, as silence_layer.cpp."""

    bottoms, tops = (1, math.inf), (0, 0)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()


class Tile(Op):
    """Repeat the bottom along an axis, as tile_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        p = self.param.tile_param
        self.axis, self.tiles = axis_of(p.axis, len(shape)), p.tiles
        self.require(p.tiles > 0, f'tiles {p.tiles} must be positive')

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.repeat(
            [self.tiles if axis == self.axis else 1 for axis in range(bottom.dim())]
        )


class Flatten(Op):
    """Merge the axes from `axis` to `end_axis`, as flatten_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        p = self.param.flatten_param
        self.first, self.last = axis_of(p.axis, len(shape)), axis_of(p.end_axis, len(shape))
        self.require(self.first <= self.last, f'axis {p.axis} comes after end_axis {p.end_axis}')

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.flatten(self.first, self.last)


class Reshape(Op):
    """Replace the dims of some axes, as reshape_layer.cpp: 0 keeps a dim, -1 is inferred."""

    def setup(self, shape: Shape) -> None:
        p, axes = self.param.reshape_param, len(shape)
        self.start = p.axis if p.axis >= 0 else axes + p.axis + 1
        self.require(0 <= self.start <= axes, f'axis {p.axis} is outside a blob of {axes} axes')
        self.end = axes if p.num_axes == -1 else self.start + p.num_axes
        self.require(
            self.start <= self.end <= axes,
            f'num_axes {p.num_axes} from axis {p.axis} exceeds bottom {shape}',
        )
        self.dims = list(p.shape.dim)
        self.require(
            self.dims.count(-1) <= 1 and min(self.dims, default=0) >= -1,
            f'dims {self.dims}: one may be -1, none smaller',
        )
        zeros = [i for i, dim in enumerate(self.dims) if dim == 0]
        self.require(
            not zeros or self.start + zeros[-1] < axes,
            f'dims {self.dims}: 0 copies an axis that bottom {shape} does not have',
        )

    def forward(self, bottom: Tensor) -> Tensor:
        shape = bottom.shape
        dims = [shape[self.start + i] if dim == 0 else dim for i, dim in enumerate(self.dims)]
        wanted = (*shape[: self.start], *dims, *shape[self.end :])
        rest = math.prod(dim for dim in wanted if dim != -1)
        self.require(
            bottom.numel() % rest == 0 if -1 in wanted and rest else bottom.numel() == rest,
            f'{tuple(shape)} does not reshape to {tuple(wanted)}',
        )
        return bottom.reshape(wanted)


class InnerProduct(Op):
    """Multiply all axes from `axis` on by a weight O x I (I x O if transpose), as
    inner_product_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        p = self.param.inner_product_param
        self.axis, self.transpose = axis_of(p.axis, len(shape)), p.transpose
        self.itemwise = self.axis > 0
        self.require(p.num_output > 0, 'num_output must be positive')
        inputs = math.prod(shape[self.axis :])
        self.add_blob(
            'weight',
            (inputs, p.num_output) if p.transpose else (p.num_output, inputs),
            p.weight_filler,
        )
        if p.bias_term:
            self.add_blob('bias', (p.num_output,), p.bias_filler)
        else:
            self.bias = None

    def _channels(self) -> Shape:
        inputs, outputs = self.weight.shape if self.transpose else reversed(self.weight.shape)
        return inputs, outputs

    def _settings(self) -> list[str]:
        return settings(bias_term=False if self.bias is None else None)

    def forward(self, bottom: Tensor) -> Tensor:
        inputs = self.weight.shape[0 if self.transpose else 1]
        flat = bottom.flatten(self.axis)
        self.require(
            flat.shape[-1] == inputs,
            f'bottom {tuple(bottom.shape)} has {flat.shape[-1]} values from axis '
            f'{self.axis} on, expected {inputs}',
        )
        return F.linear(flat, self.weight.t() if self.transpose else self.weight, self.bias)


class Embed(Op):
    """Look up row i of the weight (input_dim x num_output) for each i in the bottom, and add
    the bias, as embed_layer.cpp. The top has one axis more than the bottom."""

    forceable = (False,)
    itemwise = True

    def setup(self, shape: Shape) -> None:
        p = self.param.embed_param
        self.require(
            p.num_output > 0 and p.input_dim > 0,
            f'num_output {p.num_output} and input_dim {p.input_dim} must be positive',
        )
        self.add_blob('weight', (p.input_dim, p.num_output), p.weight_filler)
        if p.bias_term:
            self.add_blob('bias', (p.num_output,), p.bias_filler)
        else:
            self.bias = None

    def forward(self, bottom: Tensor) -> Tensor:
        top = F.embedding(indices(bottom, self.weight.shape[0], 'index'), self.weight)
        return top if self.bias is None else top + self.bias


class BatchReindex(Op):
    """Select items of the first bottom by the second's indices, as batch_reindex_layer.cpp."""

    bottoms = (2, 2)
    forceable = (True, False)

    def forward(self, bottom: Tensor, order: Tensor) -> Tensor:
        self.require(order.dim() == 1, f'the indices {tuple(order.shape)} must have 1 axis')
        return bottom.index_select(0, indices(order, bottom.shape[0], 'index'))


class Filter(Op):
    """Keep the items of each bottom where the last bottom is not 0, as filter_layer.cpp.

    Until the first forward the tops have the bottoms' shapes.
    """

    bottoms, tops = (2, math.inf), (1, math.inf)

    def setup(self, *shapes: Shape) -> None:
        self.require(
            self.top_count == len(shapes) - 1,
            f'{self.top_count} tops for {len(shapes) - 1} bottoms and the selector',
        )

    def top_shapes(self, *shapes: Shape) -> list[Shape]:
        *items, selector = shapes
        self.require(
            len(selector) > 0 and math.prod(selector[1:]) == 1,
            f'selector {selector} must hold one value per item',
        )
        for shape in items:
            self.require(
                shape[:1] == selector[:1],
                f'{selector[0]} values in the selector for bottom {shape}',
            )
        return items

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        self.top_shapes(*(tuple(bottom.shape) for bottom in bottoms))
        *items, selector = bottoms
        kept = selector.detach().flatten().nonzero().flatten()
        return tuple(item.index_select(0, kept) for item in items)


class Parameter(Op):
    """Give a learned blob as a top, as parameter_layer.hpp."""

    bottoms = (0, 0)

    def setup(self) -> None:
        self.add_blob('weight', self.param.parameter_param.shape.dim)

    def forward(self) -> Tensor:
        return self.weight.view_as(self.weight)  # Caffe's top shares the blob's memory too


class Softmax(Op):
    """exp(x) over its sum along an axis, as softmax_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        self.axis = axis_of(self.param.softmax_param.axis, len(shape))
        self.itemwise = self.axis > 0

    def forward(self, bottom: Tensor) -> Tensor:
        return bottom.softmax(self.axis)


class ArgMax(Op):
    """Find the indices of the top_k largest values, as argmax_layer.cpp; there is no gradient.

    Along `axis` the top holds indices, or with out_max_val values. Without `axis`, over all
    but the first axis, it is N x 1 x top_k, or with out_max_val N x 2 x top_k (indices,
    values). Of equal values the later comes first.
    """

    forceable = (False,)

    def setup(self, shape: Shape) -> None:
        p = self.param.argmax_param
        self.axis = axis_of(p.axis, len(shape)) if p.HasField('axis') else None
        size = shape[self.axis] if self.axis is not None else math.prod(shape[1:])
        self.require(1 <= p.top_k <= size, f'top_k {p.top_k} must be 1 to {size}')
        self.top_k, self.out_max_val = p.top_k, p.out_max_val

    def forward(self, bottom: Tensor) -> Tensor:
        axis = 1 if self.axis is None else self.axis
        rows = (
            bottom
            if self.axis is not None
            else bottom.reshape(bottom.shape[0], math.prod(bottom.shape[1:]))
        )
        values = rows.detach().flip(axis)
        best, places = values.sort(dim=axis, descending=True, stable=True)
        best = best.narrow(axis, 0, self.top_k)
        places = values.shape[axis] - 1 - places.narrow(axis, 0, self.top_k).to(bottom.dtype)
        if self.axis is not None:
            return best if self.out_max_val else places
        top = torch.stack([places, best] if self.out_max_val else [places], 1)
        return top.reshape(*top.shape, *(1,) * (bottom.dim() - 3))


class Reduction(Op):
    """Take the sum, absolute sum, sum of squares or mean over all axes from `axis` on, times
    coeff, as reduction_layer.cpp."""

    def setup(self, shape: Shape) -> None:
        p = self.param.reduction_param
        self.axis = axis_of(p.axis, len(shape))
        self.operation, self.coeff = p.operation, p.coeff

    def forward(self, bottom: Tensor) -> Tensor:
        rows = bottom.flatten(self.axis)
        if self.operation == ReductionParameter.MEAN:
            return rows.mean(-1) * self.coeff
        if self.operation == ReductionParameter.ASUM:
            rows = rows.abs()
        elif self.operation == ReductionParameter.SUMSQ:
            rows = rows * rows
        return rows.sum(-1) * self.coeff
