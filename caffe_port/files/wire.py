"""Read protobuf's wire format from a file in place, without a message in memory.

A weight file is a few thousand small fields around a few large payloads. `WireFile`
walks the fields; the payloads are read straight into the arrays they belong to.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from caffe_port.errors import CaffeError
from caffe_port.proto.caffe_pb2 import BlobProto, NetParameter, SolverState

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Far above what any net has. They bound the time and memory that a forged file costs: a
# field of two bytes can make a layer or a blob, which takes a kilobyte here.
MAX_FIELDS = 1 << 17
MAX_NAME = 1 << 10
_WINDOW = 1 << 13
_WIRES = {
    FieldDescriptor.TYPE_FLOAT: FIXED32,
    FieldDescriptor.TYPE_DOUBLE: FIXED64,
    FieldDescriptor.TYPE_STRING: BYTES,
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_MESSAGE: BYTES,
}
_CHUNK = 1 << 20
_FIRST_ROWS = 64
# Bytes that one of a few threads reads at a time: fresh memory costs more than the file does.
_PART, _READERS = 1 << 26, 2
UNKNOWN = 'binary data'
HDF5, ZIP = b'\x89HDF\r\n\x1a\n', b'PK\x03\x04'
_MAGIC = (
    (HDF5, 'an HDF5 file'),
    (b'\xff\xd8\xff', 'a JPEG image'),
    (b'\x89PNG\r\n\x1a\n', 'a PNG image'),
    (ZIP, 'a zip archive (perhaps a PyTorch checkpoint)'),
    (b'\x1f\x8b', 'a gzip archive'),
    (b'\x93NUMPY', 'a numpy file'),
)
_KINDS = {'a .caffemodel': NetParameter, 'a .solverstate': SolverState, 'a .binaryproto': BlobProto}


class Field(NamedTuple):
    """A field of a message: its payload is at start:end; `value` is set for varints."""

    number: int
    wire: int
    tag: int
    start: int
    end: int
    value: int = 0


class Run(NamedTuple):
    """Numbers at even steps in a file: packed, or each after a tag byte."""

    start: int
    size: int
    tagged: bool = False


class WireFile:
    """A regular file, open for reading at any place; its errors name it.

    Raises CaffeError if there is no such file, it cannot be read or is empty.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            # Before opening: to open a pipe would wait for its writer.
            mode = os.stat(self.path).st_mode
            if not stat.S_ISREG(mode):
                found = 'a directory' if stat.S_ISDIR(mode) else 'no regular file'
                raise CaffeError(f'{self.path}: expected a file, found {found}')
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except CaffeError:
            raise
        except (OSError, ValueError) as error:
            raise CaffeError(f'{self.path}: {getattr(error, "strerror", error)}') from error
        weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size
        self._window, self._window_start = b'', 0
        self._fields = 0
        if self.size == 0:
            raise CaffeError(f'{self.path}: the file is empty')

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes start:end."""
        data = bytearray(end - start)
        self.readinto(start, memoryview(data))
        return bytes(data)

    def readinto(self, start: int, out: memoryview) -> None:
        """Fill `out`, a flat view of bytes, from `start` on; large ones in parts, side by side."""
        if len(out) <= _PART:
            self._read_part(start, out)
            return
        parts = range(0, len(out), _PART)
        pool = ThreadPoolExecutor(_READERS)
        try:
            for _ in pool.map(lambda at: self._read_part(start + at, out[at : at + _PART]), parts):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # where one fails, no more are begun

    def _read_part(self, start: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._fd, [out[done:]], start + done)
            except OSError as error:
                raise CaffeError(f'{self.path}: {error.strerror}') from error
            if count == 0:
                raise CaffeError(
                    f'{self.path}: truncated: expected {len(out)} bytes at byte '
                    f'{start}, found {done}'
                )
            done += count

    def head(self, count: int = 4096) -> bytes:
        """Return the first bytes, at most `count`."""
        return self.read(0, min(count, self.size))

    def is_hdf5(self) -> bool:
        """Return whether the file begins as HDF5 does."""
        return self.head().startswith(HDF5)

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message at start:end, in file order.

        Raises CaffeError where the bytes are no protobuf message.
        """
        while start < end:
            field = self.field(start, end)
            yield field
            start = field.end

    def named(
        self, start: int, end: int, kind: type[Message]
    ) -> Iterator[tuple[str | None, Field]]:
        """Yield the fields of a message of the given kind, each with its name (see `name`)."""
        for field in self.fields(start, end):
            yield self.name(field, kind), field

    def name(self, field: Field, kind: type[Message]) -> str | None:
        """Return the field's name in a message of the given kind, None if it has no such field.

        Raises CaffeError if the wire type is not that of the field.
        """
        fields = known_fields(kind)  # type: ignore[arg-type]
        name, wires = fields.get(field.number, (None, ()))
        if name and field.wire not in wires:
            raise CaffeError(
                f'{self.path}: {kind.DESCRIPTOR.name}.{name} at byte {field.tag}: '
                f'expected wire type {wires[0]}, found {field.wire}'
            )
        return name

    def text(self, field: Field, most: int = MAX_NAME) -> str:
        """Return the string that a field holds; raise CaffeError for more than `most` bytes."""
        if field.end - field.start > most:
            raise CaffeError(
                f'{self.path}: name at byte {field.start}: expected at most {most} '
                f'bytes, found {field.end - field.start}'
            )
        try:
            return self.read(field.start, field.end).decode('utf-8')
        except UnicodeDecodeError as error:
            raise CaffeError(f'{self.path}: name at byte {field.start} is not UTF-8') from error

    def varints(self, field: Field) -> Iterator[int]:
        """Yield the numbers of a field: its own, or those packed into it."""
        if field.wire == VARINT:
            yield field.value
            return
        at = field.start
        while at < field.end:
            value, at = self._varint(at, field.end)
            yield value

    def field(self, at: int, end: int) -> Field:
        """Return the field whose tag is at `at`, of a message that ends at `end`."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise CaffeError(f'{self.path}: more than {MAX_FIELDS} fields; no net has so many')
        tag, start = self._varint(at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise CaffeError(
                f'{self.path}: not a protobuf message: field number {number} at byte {at}'
            )
        if wire == VARINT:
            value, stop = self._varint(start, end)
            return Field(number, wire, at, start, stop, value)
        if wire == BYTES:
            length, start = self._varint(start, end)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise CaffeError(
                f"{self.path}: not one of Caffe's messages: wire type {wire} at byte {at}"
            )
        if length > end - start:
            raise CaffeError(
                f'{self.path}: truncated or corrupt: field {number} at byte {at} '
                f'needs {length} bytes, {end - start} are left'
            )
        return Field(number, wire, at, start, start + length)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Return the number at `at` and the place after it."""
        value = 0
        for i, byte in enumerate(self._peek(at, min(at + 10, end))):
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return value & (1 << 64) - 1, at + i + 1
        raise CaffeError(f'{self.path}: truncated or corrupt: no number at byte {at}')

    def _peek(self, start: int, end: int) -> bytes:
        first = start - self._window_start
        if first < 0 or end > self._window_start + len(self._window):
            self._window = self.read(start, max(end, min(start + _WINDOW, self.size)))
            self._window_start, first = start, 0
        return self._window[first : first + end - start]

    def numbers(self, field: Field, end: int, itemsize: int) -> tuple[Run, int]:
        """Return the floats or doubles that begin with `field`, and the place after them.

        Unpacked numbers come one to a field: the run takes in all that follow
        without a gap, up to `end`.
        """
        if field.wire == BYTES:
            size = field.end - field.start
            if size % itemsize:
                raise CaffeError(
                    f'{self.path}: {size} bytes at byte {field.start} are not a '
                    f'multiple of {itemsize}'
                )
            return Run(field.start, size // itemsize), field.end
        # The tags of the fields concerned (5, 6, 8 and 9) take one byte.
        tag, step = field.number << 3 | field.wire, itemsize + 1
        at, rows = field.end, _FIRST_ROWS
        while end - at >= step and self._peek(at, at + 1)[0] == tag:
            rows = min((end - at) // step, rows)
            tags = np.frombuffer(self.read(at, at + rows * step), np.uint8)[::step]
            same = rows if (tags == tag).all() else int(np.argmax(tags != tag))
            at += same * step
            if same < rows:
                break
            # Limit how far a short run looks ahead.
            rows = min(2 * rows, _CHUNK // step)
        return Run(field.start - 1, (at - field.start + 1) // step, True), at

    def load(self, runs: list[Run], dtype: np.dtype, out: np.ndarray) -> None:
        """Fill the flat float32 array `out` with the numbers of `runs`, stored as `dtype`."""
        done = 0
        for run in runs:
            part = out[done : done + run.size]
            if dtype == np.float32 and not run.tagged:
                self.readinto(run.start, part.view(np.uint8).data)
            else:
                self._load_converted(run, dtype, part)
            done += run.size

    def _load_converted(self, run: Run, dtype: np.dtype, out: np.ndarray) -> None:
        step, rows = dtype.itemsize + run.tagged, _CHUNK // 8
        for first in range(0, run.size, rows):
            count = min(rows, run.size - first)
            at = run.start + first * step
            raw = np.frombuffer(self.read(at, at + count * step), np.uint8).reshape(count, step)
            with np.errstate(over='ignore'):
                out[first : first + count] = raw[:, int(run.tagged) :].copy().view(dtype)[:, 0]


@cache
def known_fields(kind: type[Message]) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Return name and possible wire types of each field of a message, by number."""
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    for field in kind.DESCRIPTOR.fields:
        own = _WIRES.get(field.type, VARINT)
        # In proto2 a field without presence is a repeated one, which may be packed.
        found[field.number] = field.name, (own,) if field.has_presence else (own, BYTES)
    return found


def describe_file(source: WireFile) -> str:
    """Say what a file is: by its first bytes, else by the message it would fit."""
    head = source.head()
    for magic, words in _MAGIC:
        if head.startswith(magic):
            return words
    if is_text(head):
        return 'text'
    try:
        found = {(field.number, field.wire) for field in source.fields(0, source.size)}
    except CaffeError:
        return UNKNOWN
    for words, kind in _KINDS.items():
        fields = known_fields(kind)
        if all(wire in fields.get(number, ('', ()))[1] for number, wire in found):
            return words
    return UNKNOWN


def is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file look like UTF-8 text."""
    if any(byte < 32 and byte not in b'\t\n\r\f' for byte in head):
        return False
    try:
        head.decode('utf-8')
    except UnicodeDecodeError as error:
        # A character may be cut where the head ends.
        return error.start > len(head) - 4 and error.reason == 'unexpected end of data'
    return True


def signed(value: int, bits: int) -> int:
    """Return the int32 or int64 that a varint encodes."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def encode_header(number: int, length: int) -> bytes:
    """Encode what precedes a payload of `length` bytes: its tag and the length."""
    out = bytearray()
    for value in (number << 3 | BYTES, length):
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)
