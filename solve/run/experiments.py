"""Find what a command line names as NET: an experiment with its data set, or a prototxt."""

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
from solve.datasets.images import VOID, check_exists

# The names of own classes, beside the weights that were trained on them.
CLASSES_FILE = 'classes.txt'
DATA = {'voc': voc, 'nyud': nyud, 'siftflow': siftflow, 'pascalcontext': pascalcontext}
# What nets call the folders of all data sets.
ALL_PLACES = tuple(dict.fromkeys(place for data in DATA.values() for place in data.PLACES))


def read_classes(path: Path) -> list[str]:
    """Read the names of classes, one a line, in the order of their numbers.

    Raises CaffeError for a missing file, for one name or none, for more than 255, and for a
    name that comes twice.
    """
    try:
        lines = check_exists(path).read_text(encoding='utf-8').splitlines()
    except UnicodeError as error:
        raise CaffeError(f'{path}: not a list of names: {error}') from error
    names = [line.strip() for line in lines if line.strip()]
    if not 2 <= len(names) <= VOID:
        raise CaffeError(f'{path}: {len(names)} names, expected 2 to {VOID}, one a line')
    for name in names:
        if names.count(name) > 1:
            raise CaffeError(f'{path}: {name!r} is in it {names.count(name)} times')
    return names


def find_data(net: str) -> ModuleType | None:
    """Return the module of an official experiment's data set; None for any other net."""
    return DATA.get(net.split('_')[0]) if find_fcn(net) else None


def make_net_param(net: str, split: str | None, layers: Sequence[StoredLayer]) -> NetParameter:
    """Make the net of an experiment for `split`, as narrow as its weights, or read a prototxt.

    Raises CaffeError for what is neither.
    """
    if fcn := find_fcn(net):
        if split is None:
            raise CaffeError(f'{net}: --split is needed for an experiment that is not official')
        return fcn(split, **find_widths(fcn, layers))
    if not Path(net).is_file():
        names = [
            name for name in sorted(plugins.find_entry_points(plugins.NETS_GROUP)) if find_fcn(name)
        ]
        raise CaffeError(f'{net}: no such file, nor an experiment; those are {", ".join(names)}')
    return prototxt.read_net(net)


def name_classes(data: ModuleType | None, count: int, weights: Path | None = None) -> list[str]:
    """Return the names of `count` classes, or their numbers if they have no names.

    The names are those of a classes.txt beside `weights`, or else the data set's.
    """
    beside = weights.with_name(CLASSES_FILE) if weights else None
    if beside and beside.is_file() and len(own := read_classes(beside)) == count:
        return own
    for known in ('CLASSES', 'SEMANTIC', 'GEOMETRIC'):
        names = getattr(data, known, ())
        if len(names) == count:
            return list(names)
    return [str(number) for number in range(count)]
