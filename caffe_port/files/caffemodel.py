"""Weight files: .caffemodel, .solverstate and .binaryproto, read and written in place.

Values never pass through protobuf's lists: reading makes an index, and each blob is
read straight into the array it belongs to; writing streams one blob after another.
What a file is shows from its content; HDF5 twins are read here too (see hdf5.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Union

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from caffe_port.errors import CaffeError, replacing
from caffe_port.files import hdf5, wire
from caffe_port.files.hdf5 import write_hdf5, write_state_hdf5
from caffe_port.files.stored import (
    MAX_AXES,
    Arrays,
    LayerBlobs,
    Place,
    State,
    StoredBlob,
    declared_shape,
    layers_to_write,
)
from caffe_port.files.upgrade import MAX_LAYERS, put, upgrade_net, v0_type, v1_type
from caffe_port.proto.caffe_pb2 import BlobProto, BlobShape, NetParameter, SolverState

__all__ = [
    'LayerBlobs',
    'State',
    'StoredBlob',
    'read',
    'read_blob',
    'read_net',
    'read_state',
    'write',
    'write_blob',
    'write_hdf5',
    'write_state',
    'write_state_hdf5',
]

# Protobuf's own limit: no reader takes a larger message.
MAX_BYTES = 2**31 - 1
# What a net may take without its blobs; real ones take less than 1 MiB.
MAX_NET_BYTES = 4 << 20
MODEL, STATE, BLOB = 'a .caffemodel', 'a .solverstate', 'a .binaryproto'
_FLOAT, _DOUBLE = np.dtype('<f4'), np.dtype('<f8')
_NUMBERS = {'data': _FLOAT, 'diff': _FLOAT, 'double_data': _DOUBLE, 'double_diff': _DOUBLE}
_LEGACY_DIMS = ('num', 'channels', 'height', 'width')
_NESTED = ('layer', 'layers')
_MAX_LEARNED_NET = 1 << 12  # no path is longer

Piece = Union[bytes, np.ndarray]


def read(path: str | os.PathLike) -> list[LayerBlobs]:
    """The layers of a .caffemodel (current, V1 or V0) or .caffemodel.h5, in file order.

    A name may come twice; Caffe copies both. Types are today's strings. The blobs of
    older files keep their 4 axes.

    Raises CaffeError for what is no such file, and for a blob whose values are not
    as many as its shape says; binary files beyond 2 GiB are refused, as by protobuf.
    """
    source = wire.Source(path)
    if source.is_hdf5():
        return hdf5.read(path)
    with _expecting(source, MODEL):
        layers, formats = [], set()
        for name, field in source.named(0, source.size, NetParameter.DESCRIPTOR):
            if name in _NESTED:
                source.tally('layers', MAX_LAYERS)
                formats.add(name)
                kind = NetParameter.DESCRIPTOR.fields_by_name[name].message_type
                layers.append(_layer(source, field, kind))
        if len(formats) != 1:
            found = 'both `layer` and the older `layers`' if formats else 'no layers'
            raise CaffeError(f'{source.path}: expected {MODEL}, found {found} in it')
        return layers


def read_net(path: str | os.PathLike) -> NetParameter:
    """The net in a .caffemodel, upgraded to the current format, without its blobs."""
    source = wire.Source(path)
    if source.is_hdf5():
        raise CaffeError(f'{source.path}: expected {MODEL}, found an HDF5 file, which holds no net')
    with _expecting(source, MODEL):
        data = _without_blobs(source, 0, source.size, NetParameter.DESCRIPTOR)
        try:
            net = NetParameter.FromString(data)
        except UnicodeDecodeError as error:
            raise CaffeError(f'{source.path}: a string in it is not UTF-8') from error
        except DecodeError as error:
            raise CaffeError(f'{source.path}: {error}') from error
        if not net.layer and not net.layers:
            raise CaffeError(f'{source.path}: expected {MODEL}, found no layers in it')
    return upgrade_net(net, source.path)


def write(
    path: str | os.PathLike, net: NetParameter, blobs: Arrays, diffs: Arrays | None = None
) -> None:
    """Write a .caffemodel: every layer of `net`, with the blobs that stand under its name.

    The bytes are those of protobuf's own serializer. Arrays are stored as float32;
    `diffs` are theirs, shape for shape. Layers not named in `blobs` keep what `net` says.

    Raises CaffeError, before anything is written, if the file would exceed 2 GiB.
    """
    pieces: list[Piece] = [_part(net, lambda field: field.name != 'layer')]
    for layer, pairs in layers_to_write(path, net, blobs, diffs):
        inner: list[Piece] = [_part(layer, lambda field: field.number < 7 + (not pairs))]
        for pair in pairs:
            inner += _message(7, _blob(*pair))
        inner.append(_part(layer, lambda field: field.number > 7))
        pieces += _message(100, inner)
    _write_pieces(path, pieces)


def read_state(path: str | os.PathLike) -> State:
    """The content of a .solverstate or .solverstate.h5.

    Raises CaffeError for what is no such file.
    """
    source = wire.Source(path)
    if source.is_hdf5():
        return hdf5.read_state(path)
    found: dict[str, int | str] = {'learned_net': '', 'current_step': 0}
    history: list[StoredBlob] = []
    with _expecting(source, STATE):
        for name, field in source.named(0, source.size, SolverState.DESCRIPTOR):
            if name == 'history':
                source.tally('blobs', wire.MAX_BLOBS)
                history.append(
                    _stored(
                        source,
                        field.start,
                        field.end,
                        Place((source.path, f'history blob {len(history)}')),
                    )
                )
            elif name == 'learned_net':
                found[name] = source.text(field, _MAX_LEARNED_NET)
            elif name:
                found[name] = wire.signed(field.value, 32)
        if 'iter' not in found:
            raise CaffeError(f'{source.path}: expected {STATE}, found no iter in it')
    return State(history=history, **found)


def write_state(
    path: str | os.PathLike,
    iter: int,
    learned_net: str | os.PathLike,
    history: Sequence[np.ndarray],
    current_step: int,
) -> None:
    """Write a .solverstate as Caffe does. Raises CaffeError if it would exceed 2 GiB."""
    pieces: list[Piece] = [
        SolverState(iter=iter, learned_net=os.fspath(learned_net)).SerializeToString()
    ]
    for array in history:
        pieces += _message(3, _blob(np.asarray(array), None))
    _write_pieces(path, [*pieces, SolverState(current_step=current_step).SerializeToString()])


def read_blob(path: str | os.PathLike) -> np.ndarray:
    """The blob of a .binaryproto, such as a mean image 1 x C x H x W: float32."""
    source = wire.Source(path)
    with _expecting(source, BLOB):
        return _stored(source, 0, source.size, source.path).array()


def write_blob(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an array as a .binaryproto."""
    _write_pieces(path, _blob(np.asarray(array), None))


@contextmanager
def _expecting(source: wire.Source, due: str) -> Iterator[None]:
    """Let an error say what the file is, if it is something else than `due`."""
    try:
        if source.size > MAX_BYTES:
            raise CaffeError(
                f'{source.path}: {source.size} bytes, and protobuf reads no message '
                f'of more than {MAX_BYTES}; only HDF5 has no such limit'
            )
        yield
    except CaffeError as error:
        found = wire.what_is(source)
        if found in (due, wire.UNKNOWN):
            raise
        raise CaffeError(f'{source.path}: expected {due}, found {found}') from error


def _layer(source: wire.Source, field: wire.Field, kind: Descriptor) -> LayerBlobs:
    parts = list(_layer_parts(source, field, kind))
    said = {part: value for part, value in parts if part != 'blobs'}
    name = said.get('name', '')
    blobs = [value for part, value in parts if part == 'blobs']
    return LayerBlobs(
        name,
        said.get('type', ''),
        [
            _stored(source, blob.start, blob.end, Place((source.path, name, f'blob {i}')))
            for i, blob in enumerate(blobs)
        ],
    )


def _layer_parts(
    source: wire.Source, layer: wire.Field, kind: Descriptor
) -> Iterator[tuple[str, str | wire.Field]]:
    """Name, type and the fields of the blobs of a layer, those of a V0 layer within it too."""
    for name, field in source.named(layer.start, layer.end, kind):
        if name == 'blobs':
            source.tally('blobs', wire.MAX_BLOBS)
            yield name, field
        elif name == 'layer':
            yield from _layer_parts(source, field, kind.fields_by_name[name].message_type)
        elif name == 'name':
            yield name, source.text(field)
        elif name == 'type':
            if kind.name == 'V1LayerParameter':
                yield name, v1_type(field.value)
            else:
                word = source.text(field)
                yield name, v0_type(word) if kind.name == 'V0LayerParameter' else word


def _stored(source: wire.Source, start: int, end: int, where: str | Place) -> StoredBlob:
    """Index the BlobProto at start:end."""
    legacy: dict[str, int] = {}
    dims: list[int] = []
    runs: dict[str, list[wire.Run]] = {name: [] for name in _NUMBERS}
    at = start
    while at < end:
        field = source.field(at, end)
        name, at = source.name(field, BlobProto.DESCRIPTOR), field.end
        if name in _NUMBERS:
            run, at = source.numbers(field, end, _NUMBERS[name].itemsize)
            runs[name].append(run)
        elif name in _LEGACY_DIMS:
            legacy[name] = wire.signed(field.value, 32)
        elif name == 'shape':
            dims += islice(_dims(source, field), MAX_AXES + 1)
    # As Blob::FromProto: old dims before `shape`, doubles before floats.
    declared = [legacy.get(name, 0) for name in _LEGACY_DIMS] if legacy else dims
    shape = declared_shape(declared, where)
    diff = 'double_diff' if runs['double_diff'] else 'diff'
    stored = partial(_counted, source, where, shape)
    data = 'double_data' if runs['double_data'] else 'data'
    return stored(
        runs[data], _NUMBERS[data], stored(runs[diff], _NUMBERS[diff]) if runs[diff] else None
    )


def _counted(
    source: wire.Source,
    where: str | Place,
    shape: tuple[int, ...],
    runs: list[wire.Run],
    dtype: np.dtype,
    diff: StoredBlob | None = None,
) -> StoredBlob:
    blob = StoredBlob(where, shape, dtype, partial(source.load, runs, dtype), diff)
    found = sum(run.count for run in runs)
    if found != blob.count:
        raise CaffeError(f'{where}: expected {blob.count} values for shape {shape}, found {found}')
    return blob


def _dims(source: wire.Source, shape: wire.Field) -> Iterator[int]:
    for name, field in source.named(shape.start, shape.end, BlobShape.DESCRIPTOR):
        if name and field.wire == wire.VARINT:
            yield wire.signed(field.value, 64)
        elif name:
            for value in source.varints(field.start, field.end):
                yield wire.signed(value, 64)


def _without_blobs(source: wire.Source, start: int, end: int, kind: Descriptor) -> bytes:
    """The bytes of a net or layer that lies at start:end, less its blobs."""
    out = bytearray()
    for name, field in source.named(start, end, kind):
        if name == 'blobs':
            continue
        start, body = field.tag, b''
        if name in _NESTED:
            source.tally('layers', 2 * MAX_LAYERS)  # a V0 layer lies in another
            inner = kind.fields_by_name[name].message_type
            body = _without_blobs(source, field.start, field.end, inner)
            out += wire.opening(field.number, len(body))
            start = field.end
        if len(out) + len(body) + field.end - start > MAX_NET_BYTES:
            raise CaffeError(f'{source.path}: more than {MAX_NET_BYTES} bytes besides blobs')
        out += body or source.read(start, field.end)
    return bytes(out)


def _blob(array: np.ndarray, diff: np.ndarray | None) -> list[Piece]:
    """A BlobProto in pieces."""
    pieces: list[Piece] = []
    for number, values in ((5, array), (6, diff)):
        if values is not None and values.size:
            pieces += [wire.opening(number, 4 * values.size), values]
    if array.ndim:
        shape = BlobShape(dim=array.shape).SerializeToString()
        pieces += [wire.opening(7, len(shape)), shape]
    return pieces


def _message(number: int, pieces: list[Piece]) -> list[Piece]:
    """The pieces of a message as those of field `number` of the one around it."""
    return [wire.opening(number, _length(pieces)), *pieces]


def _part(message: Message, keep: Callable[[FieldDescriptor], bool]) -> bytes:
    """The bytes of those fields of a message that are to be kept."""
    part = type(message)()
    for field, value in message.ListFields():
        if keep(field):
            put(part, field.name, value)
    return part.SerializeToString()


def _length(pieces: list[Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else 4 * piece.size for piece in pieces)


def _write_pieces(path: str | os.PathLike, pieces: list[Piece]) -> None:
    size = _length(pieces)
    if size > MAX_BYTES:
        raise CaffeError(
            f'{path}: not written: {size} bytes, and protobuf reads no message of '
            f'more than {MAX_BYTES}; HDF5 (a name that ends in .h5) has no such limit'
        )
    with replacing(path) as temporary, open(temporary, 'wb') as out:
        for piece in pieces:
            if isinstance(piece, bytes):
                out.write(piece)
            else:
                out.write(np.ascontiguousarray(piece, _FLOAT).reshape(-1).view(np.uint8))
