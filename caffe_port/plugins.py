"""Find what packages register by name: Python layers, and nets for the commands."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from caffe_port.errors import CaffeError

# Entry point group of the modules of Python layers, by the names that prototxts give them.
LAYERS_GROUP = 'caffe_port.python_layers'
# Entry point group of modules with a net: fcn(split), or classifier() and fully_conv().
NETS_GROUP = 'caffe_port.nets'

_SETUP = Path(__file__).resolve().parents[1] / 'setup.cfg'
_registered_only = ContextVar('registered_only', default=False)


@functools.cache
def find_entry_points(group: str) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group by name, as first found; `.load()` imports one.

    They come from the installed packages, and from setup.cfg in a checkout that is not
    installed.
    """
    found = {}
    if _SETUP.is_file():
        config = ConfigParser()
        config.read(_SETUP, encoding='utf-8')
        for line in config.get('options.entry_points', group, fallback='').split('\n'):
            name, equals, value = (part.strip() for part in line.partition('='))
            if equals:
                found[name] = EntryPoint(name, value, group)
    return found | {point.name: point for point in entry_points(group=group)}


@contextmanager
def import_registered_only() -> Iterator[None]:
    """Import only registered modules of Python layers, and write no HDF5Output, in the block.

    Commands use this for files that may come from strangers. Elsewhere a python_param imports
    any module on the path, as in pycaffe, and HDF5Output writes the file that it names.
    """
    token = _registered_only.set(True)
    try:
        yield
    finally:
        _registered_only.reset(token)


def is_restricted() -> bool:
    """Say whether import_registered_only is in force: a prototxt may be a stranger's."""
    return _registered_only.get()


def import_layer_module(name: str) -> ModuleType:
    """Import the module that a python_param names, from the path or else by entry point.

    Raises CaffeError if there is none, or if importing it fails.
    """
    point, only = find_entry_points(LAYERS_GROUP).get(name), _registered_only.get()
    if only and point is None:
        raise CaffeError(
            f'python_param: module {name} is not registered, and this command imports no other; '
            f'a package registers it as an entry point {name} of the group {LAYERS_GROUP}'
        )
    try:
        return point.load() if only and point else _import(name, point)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition('.')[0]:
            raise CaffeError(
                f'python_param: no module {name} on the path, and no installed package '
                f'offers one by that name (entry point group {LAYERS_GROUP})'
            ) from error
        words = f'cannot be imported: {type(error).__name__}: {" ".join(str(error).split())[:300]}'
        if isinstance(error, ModuleNotFoundError):
            words = f'needs {error.name}, which is not installed'
        raise CaffeError(f'python_param: module {name} {words}') from error


def _import(name: str, point: EntryPoint | None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if point is None or error.name != name.partition('.')[0]:
            raise
        return point.load()
