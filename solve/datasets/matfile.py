"""Reading one array of a MATLAB 5 .mat file without trusting the file.

scipy.io.loadmat believes what a file says of itself: 200 bytes can make it take
gigabytes, and nested cells crash the interpreter. A label is one numeric array,
which is found here by walking to it and to nothing else.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from caffe_port.errors import CaffeError
from solve.datasets.images import existing

# The most bytes a file may have, and may unpack to: 64 million labels.
MAX_BYTES = 64 * 2**20

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STRUCT = 2
_COMPLEX = 0x0800
_NUMERIC_CLASSES = range(6, 16)
_LONGEST_NAME = 64
# Data types of stored numbers, as numpy types.
_STORED = {
    1: 'i1',
    2: 'u1',
    3: 'i2',
    4: 'u2',
    5: 'i4',
    6: 'u4',
    7: 'f4',
    9: 'f8',
    12: 'i8',
    13: 'u8',
}


class _Malformed(Exception):
    """What is wrong with the file, without its name."""


def read_mat(path: str | os.PathLike, *names: str) -> np.ndarray:
    """Read the array at `names`: a variable, then the fields of 1 x 1 structs.

    Rows x columns, in the type stored, which may be narrower than the one MATLAB
    shows. Source: MathWorks' MAT-File Format, level 5 (save -v6 and -v7).

    Raises CaffeError if there is no such file or array, if it is not of real numbers
    in two dimensions, or if the file is malformed or above 64 MiB.
    """
    path = existing(path)
    try:
        with open(path, 'rb') as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    try:
        if len(content) > MAX_BYTES:
            raise _Malformed(f'above {MAX_BYTES} bytes')
        return _array(content, names)
    except _Malformed as error:
        raise CaffeError(f'{path}: {".".join(names)} not read from .mat file: {error}') from None


def _array(content: bytes, names: tuple[str, ...]) -> np.ndarray:
    order = _byte_order(content)
    for array in _variables(memoryview(content)[_HEADER:], order):
        matrix = _Matrix(array, order)
        if matrix.name == names[0]:
            for name in names[1:]:
                matrix = matrix.field(name)
            return matrix.values()
    raise _Malformed(f'it has no variable {names[0]}')


def _byte_order(content: bytes) -> str:
    order = {b'IM': '<', b'MI': '>'}.get(content[126:_HEADER])
    if content[:8] == b'\x89HDF\r\n\x1a\n' or content[512:520] == b'\x89HDF\r\n\x1a\n':
        raise _Malformed('it is of version 7.3 (HDF5); save it with -v7')
    if order is None or content[124:126] != (b'\0\1' if order == '<' else b'\1\0'):
        raise _Malformed('not a MATLAB 5 file')
    return order


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield type and payload of each element of `data`, none of which may leave it."""
    tag, at = struct.Struct(order + 'II'), 0
    while at < len(data):
        if len(data) - at < 8:
            raise _Malformed('truncated')
        kind, size = tag.unpack_from(data, at)
        if kind >> 16:  # a small element: its data follow in the tag
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise _Malformed(f'a small element of {size} bytes')
            following = at + 8
        else:
            start = at + 8
            # Compressed elements are the only ones that are not padded.
            following = start + size + (-size % 8 if kind != _COMPRESSED else 0)
        if start + size > len(data):
            raise _Malformed(f'truncated: {size} bytes expected, {len(data) - start} left')
        yield kind, data[start : start + size]
        at = following


def _variables(data: memoryview, order: str) -> Iterator[memoryview]:
    """Yield the payload of each variable, unpacked."""
    room = MAX_BYTES
    for kind, payload in _elements(data, order):
        if kind == _COMPRESSED:
            payload = _unpacked(payload, room)
            room -= len(payload)
            kind, payload = next(_elements(payload, order), (0, payload))
        if kind != _MATRIX:
            raise _Malformed(f'an element of type {kind} where a variable was expected')
        yield payload


def _unpacked(packed: memoryview, room: int) -> memoryview:
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed, room + 1)
    except zlib.error as error:
        raise _Malformed(str(error)) from error
    if len(data) > room:
        raise _Malformed(f'unpacks to more than {MAX_BYTES} bytes')
    if not stream.eof:
        raise _Malformed('truncated')
    return memoryview(data)


class _Matrix:
    """One array: its flags, dimensions and name read, its values not yet."""

    def __init__(self, payload: memoryview, order: str):
        self._order = order
        self._parts = _elements(payload, order)
        flags = self._next_numbers(2, 'flags')
        self._class, self._complex = flags[0] & 0xFF, bool(flags[0] & _COMPLEX)
        self._shape = self._next_numbers(None, 'dimensions')
        self.name = bytes(self._next('a name')).decode('latin-1')

    def _next(self, what: str) -> memoryview:
        for _, payload in self._parts:
            return payload
        raise _Malformed(f'an array without {what}')

    def _next_numbers(self, count: int | None, what: str) -> list[int]:
        payload = self._next(what)
        if len(payload) % 4 or (count is not None and len(payload) != 4 * count):
            raise _Malformed(f'{what} of {len(payload)} bytes')
        return np.frombuffer(payload, self._order + 'u4').tolist()

    def field(self, name: str) -> _Matrix:
        """The field of that name of a struct of one element."""
        if self._class != _STRUCT:
            raise _Malformed(
                f'a struct with field {name} expected, an array of class {self._class} came'
            )
        if math.prod(self._shape) != 1:
            raise _Malformed(
                f'a struct of one element expected, {" x ".join(map(str, self._shape))} came'
            )
        (length,) = self._next_numbers(1, 'the length of field names')
        table = bytes(self._next('field names'))
        if not 0 < length <= _LONGEST_NAME or len(table) % length:
            raise _Malformed(f'field names of {length} characters in {len(table)} bytes')
        for start, (kind, payload) in zip(range(0, len(table), length), self._parts):
            if table[start : start + length].split(b'\0')[0] == name.encode():
                if kind != _MATRIX:
                    raise _Malformed(f'field {name} is an element of type {kind}')
                return _Matrix(payload, self._order)
        raise _Malformed(f'it has no field {name}')

    def values(self) -> np.ndarray:
        if self._class not in _NUMERIC_CLASSES or self._complex:
            raise _Malformed(
                'an array of real numbers expected, it is of class '
                f'{self._class}{" (complex)" if self._complex else ""}'
            )
        if len(self._shape) != 2:
            raise _Malformed(f'two dimensions expected, there are {len(self._shape)}')
        for kind, payload in self._parts:
            break
        else:
            raise _Malformed('an array without values')
        if kind not in _STORED:
            raise _Malformed(f'values of type {kind}')
        stored = np.dtype(self._order + _STORED[kind])
        if math.prod(self._shape) * stored.itemsize != len(payload):
            raise _Malformed(
                f'{self._shape[0]} x {self._shape[1]} values expected, '
                f'{len(payload) // stored.itemsize} came'
            )
        values = np.frombuffer(payload, stored).reshape(self._shape, order='F')
        return values.astype(stored.newbyteorder('='))
