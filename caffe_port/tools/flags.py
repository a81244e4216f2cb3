"""Flags as gflags takes them: -solver x, --solver x, -solver=x and --solver=x are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caffe_port.errors import CaffeError

Value = str | int | bool


def parse(arguments: Sequence[str], defaults: Mapping[str, Value]) -> tuple[dict[str, Any], list]:
    """Split arguments into the values of `defaults`' flags and what is no flag.

    The kind of a default is the kind of its flag: a bool needs no value, and `--noflag`
    is its opposite. `--` ends the flags.

    Raises CaffeError for an unknown flag, a missing value and a value of another kind.
    """
    values: dict[str, Any] = dict(defaults)
    plain: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == '--':
            return values, plain + left
        if not argument.startswith('-') or argument == '-':
            plain.append(argument)
            continue
        name, equals, text = argument.lstrip('-').partition('=')
        if name.startswith('no') and isinstance(defaults.get(name[2:]), bool) and not equals:
            values[name[2:]] = False
            continue
        if name not in defaults:
            known = ', '.join('--' + each for each in defaults)
            raise CaffeError(f"unknown command line flag '{name}'; there are {known or 'none'}")
        default = defaults[name]
        if isinstance(default, bool):
            values[name] = _truth(name, text) if equals else True
            continue
        if not equals:
            if not left:
                raise CaffeError(f"flag '--{name}' is missing its argument")
            text = left.pop(0)
        values[name] = _number(name, text) if isinstance(default, int) else text
    return values, plain


def _truth(name: str, text: str) -> bool:
    if text.lower() in ('1', 't', 'true', 'y', 'yes'):
        return True
    if text.lower() in ('0', 'f', 'false', 'n', 'no'):
        return False
    raise CaffeError(f"illegal value '{text}' specified for bool flag '{name}'")


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise CaffeError(f"illegal value '{text}' specified for int32 flag '{name}'") from None


def usage(text: str, defaults: Mapping[str, Value]) -> str:
    """Return a command's usage and its flags with their defaults."""
    lines = [f'  --{name} (default: {_text(value)})' for name, value in defaults.items()]
    return '\n'.join([text, 'flags, with one dash or two, as --name=x or --name x:', *lines])


def _text(value: Value) -> str:
    return repr(value) if isinstance(value, str) else str(value).lower()
