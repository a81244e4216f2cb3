"""Prototxts: text to messages and back, with older formats made current.

As a command, `python -m caffe_port.prototxt SRC [DST]` upgrades a prototxt.
"""

from __future__ import annotations

import io
import os
import re
from itertools import islice
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from caffe_port.errors import CaffeError, replacing
from caffe_port.files import wire
from caffe_port.files.upgrade import upgrade_net, upgrade_solver
from caffe_port.proto.caffe_pb2 import NetParameter, SolverParameter

__all__ = [
    'parse_net',
    'parse_solver',
    'read_net',
    'read_solver',
    'read_unchanged',
    'to_text',
    'upgrade_net',
    'upgrade_solver',
    'write',
]

# The largest nets take a few hundred KB. The parser takes up to 2 s for a MiB, and a message
# costs far more memory than the two braces it is read from.
MAX_TEXT_BYTES = 4 << 20
MAX_MESSAGES = 1 << 17

# Comments and strings are matched so that the braces in them do not count.
_BRACES = re.compile(
    r"""#[^\n]*|"[^"\\\n]*(?:\\.[^"\\\n]*)*"?|'[^'\\\n]*(?:\\.[^'\\\n]*)*'?|[{}<>]"""
)
_LAYER = re.compile(r'\blayers?\s*:?\s*$')
_FIELD = re.compile(r"""\b(name|type)\s*:\s*("[^"\n]*"|'[^'\n]*'|\w+)""")

M = TypeVar('M', bound=Message)


def read_net(path: str | os.PathLike) -> NetParameter:
    """Read a net prototxt of any format as a current one.

    Raises CaffeError, naming file, line and field, for any other file.
    """
    return parse_net(_read_text(path), os.fspath(path))


def read_solver(path: str | os.PathLike) -> SolverParameter:
    """Read a solver prototxt, with `type` for the older `solver_type`.

    Raises CaffeError, naming file, line and field, for any other file.
    """
    return parse_solver(_read_text(path), os.fspath(path))


def read_unchanged(path: str | os.PathLike, message: M) -> M:
    """Read a prototxt into an empty message, in whatever format it is.

    Raises CaffeError, naming file, line and field, for any other file.
    """
    return _parse(_read_text(path), message, os.fspath(path))


def parse_net(text: str, name: str = '<string>') -> NetParameter:
    """Do as `read_net`, with text; errors call it `name`."""
    return upgrade_net(_parse(text, NetParameter(), name), name)


def parse_solver(text: str, name: str = '<string>') -> SolverParameter:
    """Do as `read_solver`, with text; errors call it `name`."""
    return upgrade_solver(_parse(text, SolverParameter(), name), name)


def to_text(message: Message) -> str:
    """Return a message as prototxt."""
    return text_format.MessageToString(message, as_utf8=True)


def write(message: Message, path: str | os.PathLike) -> None:
    """Write a message as a prototxt, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(to_text(message), encoding='utf-8')


def _read_text(path: str | os.PathLike) -> str:
    source = wire.WireFile(path)
    if source.size > MAX_TEXT_BYTES:
        raise CaffeError(
            f'{source.path}: {source.size} bytes, a prototxt has at most {MAX_TEXT_BYTES}'
        )
    data = source.read(0, source.size)
    try:
        if b'\0' not in data:
            return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        if wire.is_text(source.head()):
            line = data.count(b'\n', 0, error.start) + 1
            raise CaffeError(f'{source.path}:{line}: not UTF-8 text') from error
    raise CaffeError(f'{source.path}: expected a prototxt, found {wire.describe_file(source)}')


def _parse(text: str, message: M, name: str) -> M:
    if text.count('{') + text.count('<') > MAX_MESSAGES:
        raise CaffeError(f'{name}: more than {MAX_MESSAGES} messages')
    try:
        # Lines one at a time: split up, a text of short lines takes many times its size.
        lines = (line.rstrip('\n') for line in io.StringIO(text))
        text_format.ParseLines(lines, message)  # type: ignore[attr-defined]
    except text_format.ParseError as error:
        words, line, column = _one_line(error), error.GetLine(), error.GetColumn()
        if line and column:
            place, _, words = words.partition(': ')
            at = sum(map(len, islice(io.StringIO(text), line - 1))) + column - 1
            words = f'{place}: {_layer_at(text, at)}{words}'
        raise CaffeError(f'{name}:{words}') from error
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise CaffeError(f'{name}: {_one_line(error)}') from error
    missing = message.FindInitializationErrors()  # type: ignore[attr-defined]
    if missing:
        raise CaffeError(f'{name}: missing {", ".join(missing[:5])}')
    if not message.ListFields():
        raise CaffeError(f'{name}: holds nothing, expected a {message.DESCRIPTOR.name}')
    return message


def _one_line(error: Exception) -> str:
    """Return an error's text, short; a `line:column :` before it loses its blank."""
    text = re.sub(r'^(\d+:\d+) :', r'\1:', ' '.join(str(error).split()))
    text = text.replace('caffe_port.', '')
    return text if len(text) <= 300 else text[:300] + '...'


def _layer_at(text: str, at: int) -> str:
    """Return `name (type): ` of the layer around a place in a text, '' if none is."""
    opened: list[int] = []
    for match in _BRACES.finditer(text, 0, at):
        if match[0] in '{<':
            opened.append(match.end())
        elif match[0] in '}>' and opened:
            opened.pop()
    for start in opened:
        if _LAYER.search(text, max(start - 40, 0), start - 1):
            # A layer's own name comes before those of its parameters, so take the first.
            fields = _FIELD.findall(text, start, start + 4000)
            found = {field: value.strip('"\'')[:100] for field, value in reversed(fields)}
            return f'{found.get("name", "a layer")} ({found.get("type", "no type")}): '
    return ''
