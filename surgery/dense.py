"""Dense output from a coarse net, in two ways that give the same numbers.

A net whose strides multiply to f gives one output for every f pixels. Shift-and-stitch runs
it on the f x f shifts of the image and interlaces the outputs. Rarefaction sets strides to 1
and dilates every window behind them instead, so that one run gives them all: a filter of
stride s on every s-th pixel is the filter with s - 1 zeros between its taps on all pixels.
Weights stay as they are.

The papers preferred neither: dense output costs f x f as much as coarse output behind the
stride that is given up (rarefaction shares the layers before it), and the filters, as fine
as before, see no more detail than they did; learned upsampling on top of the coarse output is
cheap and can be trained (Long et al., CVPR 2015, sections 3.2 and 4.2).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port import Blob, Layer
from caffe_port.blob import check_shape
from caffe_port.coord_map import PASS_THROUGH_LAYERS
from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import LayerParameter, LRNParameter, NetParameter, PoolingParameter


class _Grid(NamedTuple):
    """How far apart neighbours on a blob are: in the plain net, and in the rarefied one."""

    plain: int
    kept: int

    @property
    def dilation(self) -> int:
        return self.plain // self.kept


def rarefy(net: NetParameter, stride: int) -> NetParameter:
    """Return the net with an output for every `stride` pixels, strides turned into dilation.

    stride: divides the net's own. Layer names and the shapes of params stay, so that the
    plain net's weights fit (Net.share_with, copy_from). Pooling that must be dilated, which
    Caffe's Pooling cannot be, becomes a Python layer, surgery.dense.DilatedPooling.
    Sides of images must be whole multiples where pooling rounds up; see shift_and_stitch.

    Raises CaffeError for a stride that does not divide the net's, and for a layer that
    cannot be dilated, such as Deconvolution: cut the net before it.
    """
    if stride < 1:
        raise CaffeError(f'stride {stride}: expected at least 1')
    made = NetParameter()
    made.CopyFrom(net)
    grids: dict[str, _Grid] = {}
    for layer in made.layer:
        bottoms = [grids[name] for name in layer.bottom if name in grids]
        grid = bottoms[0] if bottoms else _Grid(1, 1)
        if any(other != grid for other in bottoms):
            raise CaffeError(
                f'{layer.name}: its bottoms have pixels of different sizes: '
                + ' and '.join(str(other.plain) for other in bottoms)
            )
        if layer.type in ('Convolution', 'Pooling'):
            grid = _rarefy_layer(layer, grid, stride)
        elif grid.dilation > 1 and not _is_pointwise(layer):
            raise CaffeError(
                f'{layer.name} ({layer.type}): cannot be dilated; cut the net before it'
            )
        grids.update(dict.fromkeys(layer.top, grid))
    return made


def _rarefy_layer(layer: LayerParameter, grid: _Grid, stride: int) -> _Grid:
    """Dilate a layer's window, and give up as much of its stride as goes beyond `stride`."""
    own = _one(layer, 'stride', 1)
    kept = grid.kept * own
    if kept > stride:
        if stride % grid.kept or kept % stride:
            raise CaffeError(
                f'{layer.name}: stride {own} on pixels of {grid.kept}: an output for every '
                f'{stride} pixels does not divide it'
            )
        kept = stride
    after = _Grid(grid.plain * own, kept)
    if layer.type == 'Convolution':
        param = layer.convolution_param
        pad = _one(layer, 'pad', 0) * grid.dilation
        dilation = _one(layer, 'dilation', 1) * grid.dilation
        for field in ('stride', 'pad', 'dilation'):
            param.ClearField(field)
        param.stride.append(kept // grid.kept)
        param.pad.append(pad)
        param.dilation.append(dilation)
    elif grid.dilation == 1:
        layer.pooling_param.stride = kept // grid.kept
    else:
        _become_dilated_pooling(layer, kept // grid.kept, grid.dilation)
    return after


def _one(layer: LayerParameter, field: str, default: int) -> int:
    """Return a setting that is the same along both axes."""
    param = layer.convolution_param if layer.type == 'Convolution' else layer.pooling_param
    value = getattr(param, field)
    values = (set(value) or {default}) if hasattr(value, 'extend') else {value}
    stem = field.removesuffix('_size')
    if field != 'dilation' and param.HasField(f'{stem}_h'):
        values = {getattr(param, f'{stem}_h'), getattr(param, f'{stem}_w')}
    if len(values) != 1:
        raise CaffeError(f'{layer.name}: {field} {sorted(values)} differs between the axes')
    return int(values.pop())


def _become_dilated_pooling(layer: LayerParameter, stride: int, dilation: int) -> None:
    param = layer.pooling_param
    if param.global_pooling or len(layer.top) > 1:
        raise CaffeError(f'{layer.name}: global pooling and pooling with a mask stay as they are')
    settings = dict(
        method=PoolingParameter.PoolMethod.Name(param.pool),
        kernel=_one(layer, 'kernel_size', 0),
        stride=stride,
        pad=_one(layer, 'pad', 0) * dilation,
        dilation=dilation,
    )
    layer.ClearField('pooling_param')
    layer.type = 'Python'
    layer.python_param.module = 'surgery.dense'
    layer.python_param.layer = 'DilatedPooling'
    layer.python_param.param_str = repr(settings)


def _is_pointwise(layer: LayerParameter) -> bool:
    """Say whether each pixel of the tops depends on the same pixel of the bottoms alone."""
    if layer.type == 'LRN':
        return layer.lrn_param.norm_region == LRNParameter.ACROSS_CHANNELS
    if layer.type == 'MVN':
        return False  # a mean over the image, which has other pixels now
    return layer.type in PASS_THROUGH_LAYERS or layer.type in ('Input', 'SoftmaxWithLoss')


_SETTINGS = 'method', 'kernel', 'stride', 'pad', 'dilation'


class DilatedPooling(Layer):
    """Pool over windows with gaps, MAX or AVE; the last windows are whole ones.

    param_str: method, kernel, stride, pad, dilation. MAX pads with nothing, AVE with zeros.

    Raises CaffeError for settings that make no sense, and a window larger than the bottom.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        try:
            given = ast.literal_eval(self.param_str)
            method, *numbers = (given[key] for key in _SETTINGS)
            size, stride, pad, dilation = (operator.index(number) for number in numbers)
        except (ValueError, SyntaxError, TypeError, LookupError) as error:
            raise CaffeError(
                f'DilatedPooling: param_str {self.param_str!r:.80}: expected {", ".join(_SETTINGS)}'
            ) from error
        if method not in ('MAX', 'AVE'):
            raise CaffeError(f'DilatedPooling: method {method!r}: expected MAX or AVE')
        reach = dilation * (size - 1) + 1
        if min(size, stride, dilation) < 1 or not 0 <= pad < reach:
            raise CaffeError(
                f'DilatedPooling: kernel {size}, stride {stride} and dilation {dilation} must be '
                f'positive, and pad {pad} less than the window, {reach}'
            )
        self.settings: dict[str, Any] = given

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        s = self.settings
        reach = s['dilation'] * (s['kernel'] - 1) + 1
        padded = [side + 2 * s['pad'] for side in bottom[0].shape[2:]]
        check_shape([*bottom[0].shape[:2], *padded], 'padded bottom')
        sides = [(side - reach) // s['stride'] + 1 for side in padded]
        if min(sides) < 1:
            raise CaffeError(f'bottom {bottom[0].shape}: smaller than the window of {reach}')
        top[0].reshape(*bottom[0].shape[:2], *sides)

    def _pool(self, bottom: Tensor) -> Tensor:
        s = self.settings
        if s['method'] == 'MAX':
            padded = F.pad(bottom, [s['pad']] * 4, value=-torch.inf)
            return F.max_pool2d(padded, s['kernel'], s['stride'], 0, s['dilation'])
        channels, size = bottom.shape[1], s['kernel']
        ones = torch.full((channels, 1, size, size), 1 / size**2, device=bottom.device)
        return F.conv2d(bottom, ones, None, s['stride'], s['pad'], s['dilation'], channels)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        with torch.no_grad():
            top[0].tensor = self._pool(bottom[0].tensor)

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[0]:
            leaf = bottom[0].tensor.detach().requires_grad_()
            with torch.enable_grad():
                pooled = self._pool(leaf)
            (bottom[0].diff_tensor,) = torch.autograd.grad(pooled, leaf, top[0].diff_tensor)


def shift_and_stitch(
    run: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    inputs: Mapping[str, Tensor],
    factor: int,
    stride: int = 1,
) -> dict[str, Tensor]:
    """Run a net of stride `factor` on shifts of its inputs, and interlace the outputs.

    run: takes N x C x H x W by name and returns N x K x h x w by name, as Net.module does.
    inputs: of one size. Returns each output with a pixel for every `stride` pixels of the input,
    where pixel (i, j) is what the net gives at (0, 0) for the image without its first
    stride * i rows and stride * j columns; as many as all shifts allow. The image is shifted by
    zeros above and left of it, as in the paper, so that a net that pads it sees all of it.

    Raises CaffeError unless `stride` divides `factor`.
    """
    if stride < 1 or factor % stride:
        raise CaffeError(f"stride {stride}: expected a divisor of the net's, {factor}")
    steps = factor // stride
    parts = {}
    for down in range(steps):
        for across in range(steps):
            # Without the first row of pixels, that is a shift up by stride * down.
            above, left = (factor - stride * step if step else 0 for step in (down, across))
            shifted = {name: F.pad(image, (left, 0, above, 0)) for name, image in inputs.items()}
            parts[down, across] = {
                name: top[:, :, bool(down) :, bool(across) :] for name, top in run(shifted).items()
            }
    return {
        name: _interlace({at: tops[name] for at, tops in parts.items()}) for name in parts[0, 0]
    }


def _interlace(parts: Mapping[tuple[int, int], Tensor]) -> Tensor:
    """Return the pixels of parts in turn: part (i, j) of s x s has every s-th, from (i, j) on."""
    steps = max(parts)[0] + 1
    first = parts[0, 0]
    height, width = (
        min(part.shape[axis + 2] * steps + at[axis] for at, part in parts.items())
        for axis in (0, 1)
    )
    whole = first.new_empty((*first.shape[:2], height, width))
    for (down, across), part in parts.items():
        place = whole[:, :, down::steps, across::steps]
        place[...] = part[:, :, : place.shape[2], : place.shape[3]]
    return whole
