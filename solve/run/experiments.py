"""What a command line may name as NET: an experiment, with its data set, or a prototxt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from caffe_port import plugins, prototxt
from caffe_port.errors import CaffeError
from caffe_port.files.stored import StoredLayer
from caffe_port.proto.caffe_pb2 import NetParameter
from caffe_port.zoo import find_fcn, find_widths
from solve.datasets import nyud, pascalcontext, siftflow, voc

DATA = {'voc': voc, 'nyud': nyud, 'siftflow': siftflow, 'pascalcontext': pascalcontext}


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
        return fcn(split, **find_widths(fcn, layers))
    if not Path(net).is_file():
        names = [name for name in sorted(plugins.offered(plugins.NETS)) if find_fcn(name)]
        raise CaffeError(f'{net}: no such file, nor an experiment; those are {", ".join(names)}')
    return prototxt.read_net(net)


def name_classes(data: ModuleType | None, count: int) -> list[str]:
    """Return the names of a data set's `count` classes, or their numbers if it has no names."""
    for known in ('CLASSES', 'SEMANTIC', 'GEOMETRIC'):
        names = getattr(data, known, ())
        if len(names) == count:
            return list(names)
    return [str(number) for number in range(count)]
