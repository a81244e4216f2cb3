"""What a command line may name as NET: an experiment, with its data set, or a prototxt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from caffe_port import plugins, prototxt
from caffe_port.errors import CaffeError
from caffe_port.files.stored import StoredLayer
from caffe_port.proto.caffe_pb2 import NetParameter
from solve.datasets import nyud, pascalcontext, siftflow, voc

DATA = {'voc': voc, 'nyud': nyud, 'siftflow': siftflow, 'pascalcontext': pascalcontext}


def find_fcn(name: str) -> Callable[..., NetParameter] | None:
    """Return the fcn() of an experiment, official or of another package; None for other names."""
    point = plugins.offered(plugins.NETS).get(name)
    return getattr(point.load(), 'fcn', None) if point else None


def find_data(net: str) -> ModuleType | None:
    """Return the module of an official experiment's data set; None for any other net."""
    return DATA.get(net.split('_')[0]) if find_fcn(net) else None


def make_net(net: str, split: str | None, layers: Sequence[StoredLayer]) -> NetParameter:
    """Make the net of an experiment for `split`, as narrow as its weights, or read a prototxt.

    Raises CaffeError for what is neither.
    """
    if fcn := find_fcn(net):
        if split is None:
            raise CaffeError(f'{net}: --split is needed for an experiment that is not official')
        return fcn(split, **_find_widths(fcn, layers))
    if not Path(net).is_file():
        names = [name for name in sorted(plugins.offered(plugins.NETS)) if find_fcn(name)]
        raise CaffeError(f'{net}: no such file, nor an experiment; those are {", ".join(names)}')
    return prototxt.read_net(net)


def _find_widths(fcn: Callable[..., NetParameter], layers: Sequence[StoredLayer]) -> dict[str, Any]:
    """Return the widths of the weights' first and sixth layers, at most the official ones."""
    found = {}
    for argument, start in (('width', 'conv1'), ('fc', 'fc6')):
        shapes = [layer.blobs[0].shape for layer in layers if layer.name.startswith(start)]
        parameter = inspect.signature(fcn).parameters.get(argument)
        if parameter and shapes and shapes[0]:
            # No file may ask for the memory of a net wider than the one that is named.
            found[argument] = min(shapes[0][0], parameter.default)
    return found


def name_classes(data: ModuleType | None, count: int) -> list[str]:
    """Return the names of a data set's `count` classes, or their numbers if it has no names."""
    for known in ('CLASSES', 'SEMANTIC', 'GEOMETRIC'):
        names = getattr(data, known, ())
        if len(names) == count:
            return list(names)
    return [str(number) for number in range(count)]
