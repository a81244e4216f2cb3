"""Make nets by the names that plugins.NETS_GROUP registers, at the widths of their weights."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from caffe_port import plugins
from caffe_port.errors import CaffeError
from caffe_port.files import weights
from caffe_port.files.stored import StoredLayer
from caffe_port.mode import TEST
from caffe_port.net import Net
from caffe_port.proto.caffe_pb2 import NetParameter

# The arguments that make a net narrow, and the layers whose channels they are.
_WIDTHS = ('width', 'conv1'), ('fc', 'fc6'), ('classes', 'score_fr')
# A label is a byte, and 255 is void.
MOST_CLASSES = 255


def find_fcn(name: str) -> Callable[..., NetParameter] | None:
    """Return the fcn() of an experiment, official or of another package; None for other names."""
    point = plugins.find_entry_points(plugins.NETS_GROUP).get(name)
    return getattr(point.load(), 'fcn', None) if point else None


def make_deploy(
    name: str, layers: Sequence[StoredLayer] = (), fully_conv: bool = False
) -> NetParameter:
    """Make a named net to deploy, as narrow as the weights in `layers`.

    With `fully_conv` a classifier's fully connected layers are convolutions.
    Raises CaffeError if there is no such net.
    """
    known = plugins.find_entry_points(plugins.NETS_GROUP)
    if name not in known:
        raise CaffeError(f'{name}: no such net; there are {", ".join(known)}')
    module = known[name].load()
    if hasattr(module, 'fcn'):
        return module.fcn('deploy', **find_widths(module.fcn, layers))
    make = module.fully_conv if fully_conv else module.classifier
    return make(**find_widths(make, layers))


def find_widths(make: Callable[..., NetParameter], layers: Sequence[StoredLayer]) -> dict[str, Any]:
    """Return the widths of the weights' first and sixth layers, at most the official ones.

    They are named as the arguments of `make`, a net's fcn() or classifier(). With them comes
    the number of classes of its scores, where the net leaves that open.
    """
    found = {}
    for argument, start in _WIDTHS:
        shapes = [layer.blobs[0].shape for layer in layers if layer.name.startswith(start)]
        parameter = inspect.signature(make).parameters.get(argument)
        if parameter and shapes and shapes[0]:
            # No file may ask for the memory of a net wider than the one that is named.
            most = MOST_CLASSES if argument == 'classes' else parameter.default
            found[argument] = min(shapes[0][0], most)
    return found


def load_all(
    net: Net, path: str | os.PathLike, layers: Sequence[StoredLayer], fully_conv: bool = False
) -> None:
    """Load every weight of `net` from the layers of the file `path`.

    With `fully_conv`, fully connected layers of the file become convolutions of the net.
    Raises CaffeError if the file lacks a layer of the net, or has one of another shape or
    with a value that is not finite.
    """
    found = weights.fit(layers, net.find_owners(str(path)), fully_conv)
    found.check(path)
    net.load_layers(found.layers)
    for layer in found.layers:
        for number, blob in enumerate(net.params[layer.name]):
            bad = 0 if math.isfinite(blob.tensor.sum()) else int((~blob.tensor.isfinite()).sum())
            if bad:
                raise CaffeError(
                    f'{path}: layer {layer.name}, blob {number}: {bad} of {blob.count} values '
                    'are NaN or infinite'
                )


def load(name: str, path: str | os.PathLike, fully_conv: bool = False) -> nn.Module:
    """Return a named net, as deployed, with every weight from a file, as a module in eval mode.

    The file is of any kind; narrow weights give the narrow net. With `fully_conv` a
    classifier's fully connected layers are convolutions, and the file's too.
    Raises CaffeError if there is no such net or file, or if a weight is missing or does not fit.
    """
    layers = weights.read_layers(path)
    net = Net(make_deploy(name, layers, fully_conv), TEST)
    load_all(net, path, layers, fully_conv)
    return net.module
