"""Faults put into files: of bytes for any kind, and of the structure each kind has."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from io import BytesIO
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 3, 127, 128, 255, 1 << 16, (1 << 31) - 1, 1 << 31, -(1 << 31), 1 << 32,
           1 << 40, (1 << 63) - 1, -(1 << 63), 1 << 64)  # fmt: skip
TEXTS = ('', 'x', '/', '/x', 'a/', 'a//b', 'a/.', '..', 'a\0b', '\n', '\x1b[2J', '\ud7ff',
         'x' * 5000, 'nan', '1' * 400)  # fmt: skip
VALUES: tuple[Any, ...] = (*NUMBERS, *TEXTS, None, True, [], {}, [[]], 0.5, -0.0, 1e308, '0')
_NUMBER = re.compile(rb'-?\d[\d.e+-]*')
_WORD = re.compile(rb'"[^"\n]*"')


def of_bytes(rng: Random, data: bytes) -> bytes:
    """Flip, cut, drop, set, repeat or insert a few bytes, most often near the start."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(min(len(out), rng.choice((16, 64, 512, 1 << 30))) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 3 and at < len(out):
            out[at] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
        elif kind == 4:
            out[at:at] = out[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            width = rng.choice('<B <H <I <Q >I >Q'.split())
            value = rng.choice(NUMBERS) & ((1 << 8 * struct.calcsize(width)) - 1)
            out[at : at + struct.calcsize(width)] = struct.pack(width, value)
        else:
            out[at:at] = _varint(rng.choice(NUMBERS) & ((1 << 64) - 1))
    return bytes(out)


def of_text(rng: Random, data: bytes) -> bytes:
    """Change numbers and words, drop, repeat, move and nest lines."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.randrange(6)
        lines = data.split(b'\n')
        at = rng.randrange(len(lines))
        if kind == 0:
            data = _one_replaced(rng, _NUMBER, data, str(rng.choice((*NUMBERS, 'nan', 1e38))))
        elif kind == 1:
            word = rng.choice(TEXTS).encode('unicode_escape').decode().replace('"', '')
            data = _one_replaced(rng, _WORD, data, f'"{word}"')
        elif kind == 2:
            del lines[at]
            data = b'\n'.join(lines)
        elif kind == 3:
            lines[at:at] = lines[at : at + rng.randrange(1, 30)] * rng.choice((1, 1, 1, 300))
            data = b'\n'.join(lines)
        elif kind == 4:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
            data = b'\n'.join(lines)
        else:
            depth = rng.choice((1, 40, 4000))
            opening = rng.choice((b'layer {', b'x {', b'<', b'net_param {'))
            data = opening * depth + data + b'}' * rng.choice((0, depth))
    return data


def of_json(rng: Random, data: bytes) -> bytes:
    """Put a strange value somewhere in the tree."""
    try:
        content = json.loads(data)
    except ValueError:
        return of_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        content = _changed(rng, content)
    return json.dumps(content).encode()


def of_safetensors(rng: Random, data: bytes) -> bytes:
    """Change the header, with its length right or wrong."""
    (length,) = struct.unpack('<Q', data[:8])
    header = of_json(rng, data[8 : 8 + length])
    said = len(header) if rng.random() < 0.8 else rng.choice(NUMBERS) & ((1 << 64) - 1)
    return struct.pack('<Q', said) + header + data[8 + length :]


def of_zip(rng: Random, data: bytes) -> bytes:
    """Change a member, its name, its compression, or add a second directory."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return of_bytes(rng, data)
    at = rng.randrange(len(members))
    name, content = members[at]
    kind = rng.randrange(5)
    if kind == 0:
        members[at] = name, of_bytes(rng, content)
    elif kind == 1:
        members[at] = rng.choice(TEXTS).replace('\0', '') or 'x', content
    elif kind == 2:
        members.append((name, content))
    elif kind == 3:
        del members[at]
    out = BytesIO()
    compression = zipfile.ZIP_DEFLATED if rng.random() < 0.3 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, 'w', compression) as archive:
        for each, inside in members:
            archive.writestr(each, inside)
    return out.getvalue() + data if kind == 4 else out.getvalue()


def _one_replaced(rng: Random, pattern: re.Pattern[bytes], data: bytes, text: str) -> bytes:
    found = list(pattern.finditer(data))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + text.encode('utf-8', 'replace') + data[match.end() :]


def _changed(rng: Random, content: Any) -> Any:
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(sorted(content))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in content.items() if k != key}
        if kind < 0.2:
            return {**content, rng.choice(TEXTS): content[key]}
        return {**content, key: _changed(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.8:
        at = rng.randrange(len(content))
        if rng.random() < 0.2:
            return content[:at]
        return [*content[:at], _changed(rng, content[at]), *content[at + 1 :]]
    return rng.choice(VALUES)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
