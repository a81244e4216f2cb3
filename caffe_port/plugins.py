"""What other packages offer by name: Python layers, and nets that commands may name."""

from __future__ import annotations

from configparser import ConfigParser
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

# Modules of Python layers, under the names that prototxts use for them.
PYTHON_LAYERS = 'caffe_port.python_layers'
# Modules with a net: fcn(split), or classifier() and fully_conv().
NETS = 'caffe_port.nets'

_SETUP = Path(__file__).resolve().parents[1] / 'setup.cfg'


def offered(group: str) -> dict[str, EntryPoint]:
    """List what a group of entry points offers, by name; `.load()` imports one.

    These are the installed packages' and, in a checkout that is not installed, its own.
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
