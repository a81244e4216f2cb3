"""Copy parameters from one net to another."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError
from surgery.blobs import blobs_of, shape_of


class Moved(NamedTuple):
    """Blob number `blob` of `layer` went to the same blob of `new_layer`."""

    layer: str
    new_layer: str
    blob: int
    shape: tuple[int, ...]
    new_shape: tuple[int, ...]


class Dropped(NamedTuple):
    """Blob number `blob` of `layer` has no counterpart in the new net."""

    layer: str
    blob: int
    shape: tuple[int, ...]


@dataclass
class Transplant:
    """The blobs that a transplant copied, coerced to another shape, or dropped."""

    copied: list[Moved] = field(default_factory=list)
    coerced: list[Moved] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)


def transplant(new_net: Any, net: Any, suffix: str = '') -> Transplant:
    """Copy the parameters of each layer of `net` to the layer `name + suffix` of `new_net`.

    Values keep their C order where the shape differs. That makes fully connected layers
    convolutions: O x (I*H*W) weights are O x I x H x W ones. A blob without counterpart is
    dropped. Prints the release's lines.

    Raises CaffeError if two blobs differ in count; then nothing has been written.
    """
    done, lines = Transplant(), []
    for layer in net.params:
        new_layer = layer + suffix
        new_blobs = new_net.params.get(new_layer, ())
        if not new_blobs:
            lines.append(f'dropping {layer}')
        for i, blob in enumerate(net.params[layer]):
            if i >= len(new_blobs):
                done.dropped.append(Dropped(layer, i, shape_of(blob)))
                if new_blobs:
                    lines.append(f'dropping {layer} {i}')
                continue
            moved = Moved(layer, new_layer, i, shape_of(blob), shape_of(new_blobs[i]))
            _check_count(moved)
            if moved.shape == moved.new_shape:
                done.copied.append(moved)
                lines.append(f'copying {layer}  ->  {new_layer} {i}')
            else:
                done.coerced.append(moved)
                lines.append(f'coercing {layer} {i} from {moved.shape} to {moved.new_shape}')
    for layer, new_layer, i, _, new_shape in done.copied + done.coerced:
        new_net.params[new_layer][i].data[...] = net.params[layer][i].data.reshape(new_shape)
    print(*lines, sep='\n', end='\n' if lines else '')
    return done


def _check_count(moved: Moved) -> None:
    count, new_count = math.prod(moved.shape), math.prod(moved.new_shape)
    if count != new_count:
        raise CaffeError(
            f'{moved.layer} {moved.blob} of shape {format_shape(moved.shape)} cannot be '
            f'{moved.new_layer} of shape {format_shape(moved.new_shape)}: a transplant may '
            f'change the shape but not the count, {count} and {new_count}'
        )


def expand_score(new_net: Any, new_layer: str, net: Any, layer: str) -> None:
    """Copy a score layer's K classes to the first K outputs of one with more classes.

    Weights are K x I x 1 x 1, biases K.

    Raises CaffeError if a layer or its bias is missing, there are fewer new classes than
    old, or the inputs differ; then nothing has been written.
    """
    blobs, new_blobs = blobs_of(net, layer), blobs_of(new_net, new_layer)
    if len(blobs) < 2 or len(new_blobs) < 2:
        raise CaffeError(
            f'{layer} and {new_layer}: {len(blobs)} and {len(new_blobs)} blobs; '
            'weights and biases expected'
        )
    shape, new_shape = shape_of(blobs[0]), shape_of(new_blobs[0])
    classes, new_classes = (math.prod(shape_of(b[1])) for b in (blobs, new_blobs))
    if (shape[:1], new_shape[:1]) != ((classes,), (new_classes,)):
        raise CaffeError(
            f'{layer} and {new_layer}: {classes} and {new_classes} biases for weights '
            f'of shape {format_shape(shape)} and {format_shape(new_shape)}'
        )
    if shape[1:] != new_shape[1:] or classes > new_classes:
        raise CaffeError(
            f'{layer} of shape {format_shape(shape)} cannot be the first classes of '
            f'{new_layer} of shape {format_shape(new_shape)}'
        )
    new_blobs[0].data[:classes] = blobs[0].data
    # Deviates: the release indexes biases as 1 x 1 x 1 x K, which only old files have.
    # `flat` is right for those and for biases of one axis.
    new_blobs[1].data.flat[:classes] = blobs[1].data.flat


def color_to_color_depth(new_net: Any, new_layer: str, net: Any, layer: str) -> None:
    """Fill a first layer on color and depth from the one of a net on color.

    Weights O x 3 x k x k become O x 4 x k x k: those of depth are the mean over the colors.

    Raises CaffeError if a layer is missing or of another shape; then nothing has been written.
    """
    blobs, new_blobs = blobs_of(net, layer), blobs_of(new_net, new_layer)
    shape, new_shape = shape_of(blobs[0]), shape_of(new_blobs[0])
    if len(shape) != 4 or new_shape != (shape[0], shape[1] + 1, *shape[2:]):
        raise CaffeError(
            f'{layer} of shape {format_shape(shape)} cannot fill {new_layer} of shape '
            f'{format_shape(new_shape)}: expected one input channel more, the depth'
        )
    weight = blobs[0].data
    new_blobs[0].data[:, :-1] = weight
    new_blobs[0].data[:, -1] = weight.mean(1)
    new_blobs[1].data[...] = blobs[1].data.reshape(new_blobs[1].shape)
