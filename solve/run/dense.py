"""Scores for every few pixels in place of a net's own upsampling.

What dense means for a net that ends in one Deconvolution (and a Crop) to the size of the picture:
the scores that this layer reads, for every `stride` pixels instead of every 32, by rarefaction or
by shift-and-stitch (see surgery.dense), and bilinear interpolation of these at every pixel. Pixels
beyond the centres of the outermost scores take the nearest. What the net's own upsampling has
learned is not used.

A net that upsamples more than once (FCN-16s, FCN-8s) adds scores of several strides, which no shift
of the picture but by 32 moves by whole pixels. It is refused: in the papers dense
scores are the other way to what its finer strides give.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor

from caffe_port import TEST, Net, summary
from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import NetParameter
from solve.run import tiles
from solve.run.free_memory import format_memory
from surgery.dense import rarefy, shift_and_stitch

WAYS = ('rarefy', 'stitch')


class Dense:
    """A net with its upsampling cut off, with scores for every `stride` pixels.

    net: with its weights, which are shared. outputs: those of its outputs that are wanted, of the
    size of the picture. way: one of WAYS; both give the same scores, but for those whose windows
    reach beyond the padding of the net's first layer (half a receptive field less that padding from
    the picture's edge: 102 pixels for FCN-32s).

    Raises CaffeError for an output that is not upsampled once, at the end, and for a stride that
    does not divide the net's.
    """

    def __init__(self, net: Net, outputs: list[str], stride: int, way: str) -> None:
        self.stride, self.way = stride, way
        self._coarse = {output: find_coarse(net.module.param, output) for output in outputs}
        cut = cut_net(net.module.param, set(self._coarse.values()))
        plain = Net(cut, TEST)
        self.factor, self.centre = find_grid(plain, self._coarse[outputs[0]])
        if stride < 1 or self.factor % stride:
            raise CaffeError(
                f'--dense {stride}: expected a divisor of the stride of the scores, {self.factor}'
            )
        self._net = Net(rarefy(cut, stride), TEST) if way == 'rarefy' else plain
        self._net.share_with(net)

    def compute(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scores of each output for every pixel, 1 x K x H x W."""
        module, names = self._net.module, [*dict.fromkeys(self._coarse.values())]
        if self.way == 'rarefy':
            coarse = tiles.compute(module, inputs, names)
        else:
            with torch.no_grad():
                coarse = shift_and_stitch(
                    lambda shifted: tiles.compute(module, shifted, names),
                    inputs,
                    self.factor,
                    self.stride,
                )
        height, width = next(iter(inputs.values())).shape[2:]
        return {
            output: interpolate(coarse[name], self.stride, self.centre, (height, width))
            for output, name in self._coarse.items()
        }

    def label(self, inputs: Mapping[str, Tensor], budget: int | None = None) -> tiles.Labels:
        """Begin to find the best class of every pixel, by each output; as tiles.label.

        Raises CaffeError if it takes more than `budget` bytes.
        """
        height, width = next(iter(inputs.values())).shape[2:]
        self._check_memory((height, width), budget)
        everywhere, module = slice(None), self._net.module
        return tiles.collect(
            (height, width),
            (
                tiles.Scored(
                    output,
                    everywhere,
                    everywhere,
                    scores[0],
                    partial(tiles.explain, module, inputs, self._coarse[output]),
                )
                for output, scores in self.compute(inputs).items()
            ),
        )

    def _check_memory(self, size: tuple[int, int], budget: int | None) -> None:
        """Raise CaffeError if a picture of height and width `size` takes more than `budget` bytes.

        Unlike the net's own output this one is not computed in tiles.
        """
        module, names = self._net.module, [*self._coarse.values()]
        shift = 0 if self.way == 'rarefy' else self.factor - self.stride
        needed = tiles.estimate(module, (size[0] + shift, size[1] + shift), names)
        if budget is not None and needed > budget:
            raise CaffeError(
                f'a picture of {size[0]} x {size[1]} takes about {format_memory(needed)} with '
                f'--dense, which computes no tiles; --max-memory is {format_memory(budget)}'
            )


def find_coarse(net: NetParameter, output: str) -> str:
    """Return the blob that the Deconvolution before an output reads.

    Raises CaffeError if the output is not made by one, with nothing but a Crop behind it, or if
    the net upsamples before it too.
    """
    makers = {top: layer for layer in net.layer for top in layer.top}
    layer = makers[output]
    if layer.type == 'Crop':
        layer = makers[layer.bottom[0]]
    if layer.type != 'Deconvolution':
        raise CaffeError(
            f'output {output}: --dense takes the place of a Deconvolution at the end of a net, '
            f'found {layer.name} ({layer.type})'
        )
    coarse = layer.bottom[0]
    earlier = [each.name for each in cut_net(net, {coarse}).layer if each.type == 'Deconvolution']
    if earlier:
        raise CaffeError(
            f'output {output}: --dense is for a net that upsamples once; this one adds scores of '
            f'several strides, upsampled by {", ".join([*earlier, layer.name])}'
        )
    return coarse


def cut_net(net: NetParameter, wanted: set[str]) -> NetParameter:
    """Return the layers that the wanted blobs are computed from."""
    needed, kept = set(wanted), []
    for layer in reversed(net.layer):
        if needed & set(layer.top):
            needed.update(layer.bottom)
            kept.append(layer)
    made = NetParameter(name=net.name)
    made.layer.extend(reversed(kept))
    return made


def find_grid(net: Net, blob: str) -> tuple[int, tuple[Fraction, Fraction]]:
    """Return how many pixels of the inputs a blob's are apart, and where the first one's centre is.

    Raises CaffeError if they have no place there, or differ between the axes in stride.
    """
    given = {name: net.module.shapes[name] for name in net.inputs}
    rows = {row.name: row for row in summary.rows(net.module, given)}
    last = next(node.name for node in reversed(net.module.nodes) if blob in node.tops)
    sights = rows[last].sights
    if sights is None or sights[0].stride != sights[1].stride or sights[0].stride % 1:
        raise CaffeError(f'{last}: --dense needs scores at the same whole stride on both axes')
    return int(sights[0].stride), (sights[0].offset, sights[1].offset)


def interpolate(
    coarse: Tensor, stride: int, centre: tuple[Fraction, Fraction], size: tuple[int, int]
) -> Tensor:
    """Interpolate N x K x h x w at every pixel of height and width `size`, bilinearly.

    centre: the pixel at which the first score lies, the next being `stride` further, on each axis.
    """
    for axis, (side, first) in enumerate(zip(size, centre), 2):
        last = coarse.shape[axis] - 1
        places = ((np.arange(side) - float(first)) / stride).clip(0, last)
        below = np.minimum(places.astype(int), max(last - 1, 0))
        shares = torch.from_numpy((places - below).astype(np.float32)).to(coarse.device)
        shares = shares.view(-1, *[1] * (3 - axis))
        low, high = (
            coarse.index_select(axis, torch.from_numpy(index).to(coarse.device))
            for index in (below, np.minimum(below + 1, last))
        )
        coarse = low.lerp(high, shares)
    return coarse
