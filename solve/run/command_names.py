"""How commands are called: as scripts of a checkout, or by the names that pip installs."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from solve.run.experiments import DATA

_INSTALLED = 'fcn-'
_COMMANDS = re.compile(r'(?:python solve/)?\b(infer|score|plot|doctor|finetune)\.py\b')
_EXPERIMENTS = re.compile(rf'(?:python )?(?:solve/)?\b((?:{"|".join(DATA)})_\w+)\.py\b')


# The words that started this command, if not its file or an installed name of its own.
_start: list[str] = []


def start_as(*words: str) -> None:
    """Let messages name this command by `words`, as fcn-solve voc_fcn32s."""
    _start[:] = words


def is_installed() -> bool:
    """Return whether this command was called by a name that pip installs."""
    return bool(_start) or Path(sys.argv[0]).name.startswith(_INSTALLED)


def list_start() -> list[str]:
    """Return the words that start this command: python solve/infer.py, or fcn-infer."""
    if is_installed():
        return [*_start] or [Path(sys.argv[0]).name]
    return ['python', sys.argv[0]]


def as_called(text: str) -> str:
    """Name the commands in a text as they are called here: infer.py, or fcn-infer."""
    if not is_installed():
        return text
    return _EXPERIMENTS.sub(r'fcn-solve \1', _COMMANDS.sub(r'fcn-\1', text))


class Parser(argparse.ArgumentParser):
    """A parser whose texts name commands as they are called."""

    def format_usage(self) -> str:
        return as_called(super().format_usage())

    def format_help(self) -> str:
        return as_called(super().format_help())
