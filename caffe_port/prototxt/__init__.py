"""Prototxts: text to messages and back, older formats made current.

As a command, `python -m caffe_port.prototxt SRC [DST]` upgrades a prototxt.
"""

from __future__ import annotations

import io
import os
import re
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from caffe_port.errors import CaffeError, replacing
from caffe_port.files import wire
from caffe_port.files.upgrade import V1_TYPES, upgrade_net, upgrade_solver
from caffe_port.ops import LAYER_TYPES
from caffe_port.proto.caffe_pb2 import NetParameter, SolverParameter

__all__ = [
    'parse_net',
    'parse_solver',
    'read_net',
    'read_solver',
    'to_text',
    'upgrade_net',
    'upgrade_solver',
    'write',
]

# The largest nets take a few hundred KB; a message costs far more than the text it is read from.
MAX_BYTES = 8 << 20
MAX_MESSAGES = 1 << 17
# Caffe's messages nest 6 deep.
MAX_DEPTH = 32
# Comments and strings are matched so that the braces in them are not.
_BRACES = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|[{}<>]""")

_LAYER = re.compile(r'\blayers?\s*:?\s*$')
_SAID = re.compile(r"""\b(name|type)\s*:\s*("[^"\n]*"|'[^'\n]*'|\w+)""")

M = TypeVar('M', bound=Message)


def read_net(path: str | os.PathLike) -> NetParameter:
    """Read a net prototxt of any format as a current one.

    Raises CaffeError, naming file, line and field, for what is no such prototxt.
    """
    return parse_net(_read_text(path), os.fspath(path))


def read_solver(path: str | os.PathLike) -> SolverParameter:
    """Read a solver prototxt, `type` standing for the older `solver_type`.

    Raises CaffeError, naming file, line and field, for what is no such prototxt.
    """
    return parse_solver(_read_text(path), os.fspath(path))


def parse_net(text: str, name: str = '<string>') -> NetParameter:
    """As `read_net`, of text; errors call it `name`."""
    return upgrade_net(_parse(text, NetParameter(), name), name)


def parse_solver(text: str, name: str = '<string>') -> SolverParameter:
    """As `read_solver`, of text; errors call it `name`."""
    return upgrade_solver(_parse(text, SolverParameter(), name), name)


def to_text(message: Message) -> str:
    """A message as prototxt."""
    return text_format.MessageToString(message, as_utf8=True)


def write(message: Message, path: str | os.PathLike) -> None:
    """Write a message as a prototxt, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(to_text(message), encoding='utf-8')


def _read_text(path: str | os.PathLike) -> str:
    source = wire.Source(path)
    if source.size > MAX_BYTES:
        raise CaffeError(f'{source.path}: {source.size} bytes, a prototxt has at most {MAX_BYTES}')
    data = source.read(0, source.size)
    try:
        if b'\0' not in data:
            return data.decode('utf-8-sig')
        line = None
    except UnicodeDecodeError as error:
        line = data.count(b'\n', 0, error.start) + 1
    if line is not None and wire.is_text(source.head()):
        raise CaffeError(f'{source.path}:{line}: not UTF-8 text')
    raise CaffeError(f'{source.path}: expected a prototxt, found {wire.what_is(source)}')


def _parse(text: str, message: M, name: str) -> M:
    _check_braces(text, name)
    try:
        # Lines one at a time: split up, a text of short lines takes many times its size.
        text_format.ParseLines((line.rstrip('\n') for line in io.StringIO(text)), message)
    except text_format.ParseError as error:
        raise CaffeError(f'{name}:{_with_layer(error, text)}') from error
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise CaffeError(f'{name}: {_one_line(error)}') from error
    missing = message.FindInitializationErrors()
    if missing:
        raise CaffeError(f'{name}: missing {", ".join(missing[:5])}')
    if not message.ListFields():
        raise CaffeError(f'{name}: holds nothing, expected a {message.DESCRIPTOR.name}')
    return message


def _one_line(error: Exception) -> str:
    """An error's text, short; where it begins with `line:column : `, without the blank."""
    text = re.sub(r'^(\d+:\d+) :', r'\1:', ' '.join(str(error).split()))
    text = text.replace('caffe_port.', '')
    return text if len(text) <= 300 else text[:300] + '...'


def _with_layer(error: text_format.ParseError, text: str) -> str:
    """An error on one line that names the layer it is in; a type that is not ours is told first.

    A setting that no message has is most often that of such a type.
    """
    if not error.GetLine():
        return _one_line(error)
    place, _, words = _one_line(error).partition(': ')
    layer = _layer_at(text, error.GetLine(), error.GetColumn())
    type_ = layer.get('type', '')
    who = f'{layer["name"]}: ' if 'name' in layer else ''
    if ' has no ' not in words or V1_TYPES.get(type_, type_) in {'', *LAYER_TYPES}:
        return f'{place}: {who}{words}'
    return f'{place}: {who}no layer type "{type_}" ({words.rstrip(".")}); there are ' + ', '.join(
        sorted(LAYER_TYPES)
    )


def _layer_at(text: str, line: int, column: int) -> dict[str, str]:
    """What the text says of `name` and `type` of the layer around a place; empty if none is."""
    at = -1
    for _ in range(line - 1):
        at = text.find('\n', at + 1)
    at += column
    depth, own, end = 0, [], 0
    for match in _BRACES.finditer(text):
        token, start = match.group(), match.start()
        if not depth and start > at:
            break
        if depth == 1:
            own += text[end:start], token
        end = match.end()
        if token in '{<' and (depth or _LAYER.search(text, max(start - 40, 0), start)):
            depth += 1
        elif token in '}>' and depth:
            depth -= 1
            if not depth:
                if end > at:
                    break
                own = []
    return {field: value.strip('"\'')[:100] for field, value in _SAID.findall(''.join(own))}


def _check_braces(text: str, name: str) -> None:
    """Refuse nesting that would exhaust the parser's stack, and more messages than memory bears."""
    depth = messages = 0
    for match in _BRACES.finditer(text):
        brace = match.group()
        if brace in '{<':
            depth += 1
            messages += 1
        elif brace in '}>':
            depth -= 1
        if depth > MAX_DEPTH or messages > MAX_MESSAGES:
            line = text.count('\n', 0, match.start()) + 1
            limit = (
                f'nested more than {MAX_DEPTH} deep'
                if depth > MAX_DEPTH
                else f'more than {MAX_MESSAGES} messages'
            )
            raise CaffeError(f'{name}:{line}: {limit}')
