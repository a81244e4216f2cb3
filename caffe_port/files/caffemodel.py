"""Weight files: .caffemodel, .solverstate and .binaryproto, read and written in place.

Values never pass through protobuf's lists: reading makes an index, and each blob is
read straight into the array it belongs to; writing streams one blob after another.
The content of a file, not its name, says what it is; HDF5 files are read here too
(see hdf5.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TypeAlias

import numpy as np
from google.protobuf.message import DecodeError, Message

from caffe_port.blob import check_shape
from caffe_port.errors import CaffeError
from caffe_port.files import hdf5, wire
from caffe_port.files.hdf5 import write_hdf5 as write_hdf5
from caffe_port.files.hdf5 import write_state_hdf5 as write_state_hdf5
from caffe_port.files.stored import (
    LayerArrays,
    Shape,
    StoredBlob,
    StoredLayer,
    StoredState,
    layers_to_write,
    open_to_write,
    payload,
)
from caffe_port.files.upgrade import put, upgrade_net, v0_type, v1_type
from caffe_port.proto.caffe_pb2 import (
    BlobProto,
    BlobShape,
    LayerParameter,
    NetParameter,
    SolverState,
    V0LayerParameter,
    V1LayerParameter,
)

# Protobuf's own limit: no reader takes a larger message.
MAX_BYTES = 2**31 - 1
# What a net may take without its blobs; real ones take less than 1 MiB.
MAX_NET_BYTES = 4 << 20
MODEL, STATE, BLOB = 'a .caffemodel', 'a .solverstate', 'a .binaryproto'
_FLOAT, _DOUBLE = np.dtype('<f4'), np.dtype('<f8')
_NUMBERS: dict[str, np.dtype] = {
    'data': _FLOAT,
    'diff': _FLOAT,
    'double_data': _DOUBLE,
    'double_diff': _DOUBLE,
}
_LEGACY_DIMS = ('num', 'channels', 'height', 'width')
# The messages that hold layers, or blobs, by the field they are in.
_LAYERS: dict[str, type[Message]] = {'layer': LayerParameter, 'layers': V1LayerParameter}
_V0: dict[str, type[Message]] = {'layer': V0LayerParameter}
_MOST_AXES = 32
_MAX_PATH = 1 << 12

Piece: TypeAlias = 'bytes | np.ndarray'


def read(path: str | os.PathLike) -> list[StoredLayer]:
    """Index the layers of a .caffemodel (current, V1 or V0) or .caffemodel.h5, in file order.

    A name may come twice; Caffe copies both. Types are today's strings. The blobs of
    older files keep their 4 axes.

    Raises CaffeError for any other file, and for a blob whose count of values differs
    from its shape's; binary files beyond 2 GiB are refused, as by protobuf.
    """
    source = wire.WireFile(path)
    if source.is_hdf5():
        return hdf5.read(path)
    with _expecting(source, MODEL):
        layers, formats = [], set()
        for name, field in source.named(0, source.size, NetParameter):
            if name in _LAYERS:
                formats.add(name)
                layers.append(_layer(source, field, _LAYERS[name]))
        if len(formats) != 1:
            found = 'both `layer` and the older `layers`' if formats else 'no layers'
            raise CaffeError(f'{source.path}: expected {MODEL}, found {found} in it')
        return layers


def read_net(path: str | os.PathLike) -> NetParameter:
    """Return the net in a .caffemodel, upgraded to the current format, without its blobs."""
    source = wire.WireFile(path)
    if source.is_hdf5():
        raise CaffeError(f'{source.path}: expected {MODEL}, found an HDF5 file, which holds no net')
    with _expecting(source, MODEL):
        data = _without_blobs(source, 0, source.size, NetParameter, _LAYERS)
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
    path: str | os.PathLike, net: NetParameter, blobs: LayerArrays, diffs: LayerArrays | None = None
) -> None:
    """Write a .caffemodel: every layer of `net`, with the blobs given for its name.

    The bytes are those of protobuf's own serializer. Arrays are stored as float32, with
    `diffs` of the same shapes. Layers not named in `blobs` keep the blobs of `net`.

    Raises CaffeError, before anything is written, if the file would exceed 2 GiB.
    """
    pieces: list[Piece] = [_part(net, range(100))]
    for layer, pairs in layers_to_write(path, net, blobs, diffs):
        inner: list[Piece] = [_part(layer, range(7 if pairs else 8))]
        for pair in pairs:
            inner += _message(7, _blob(*pair))
        inner.append(_part(layer, range(8, 1 << 29)))
        pieces += _message(100, inner)
    _write_pieces(path, pieces)


def read_state(path: str | os.PathLike) -> StoredState:
    """Return the content of a .solverstate or .solverstate.h5.

    Raises CaffeError for any other file.
    """
    source = wire.WireFile(path)
    if source.is_hdf5():
        return hdf5.read_state(path)
    learned_net, numbers = '', {'current_step': 0}
    history: list[StoredBlob] = []
    with _expecting(source, STATE):
        for name, field in source.named(0, source.size, SolverState):
            if name == 'history':
                where = f'{source.path}: history blob {len(history)}'
                history.append(_stored(source, field.start, field.end, where))
            elif name == 'learned_net':
                learned_net = source.text(field, _MAX_PATH)
            elif name:
                numbers[name] = wire.signed(field.value, 32)
        if 'iter' not in numbers:
            raise CaffeError(f'{source.path}: expected {STATE}, found no iter in it')
    return StoredState(numbers['iter'], learned_net, numbers['current_step'], history)


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
    """Return the blob of a .binaryproto, such as a mean image 1 x C x H x W: float32."""
    source = wire.WireFile(path)
    with _expecting(source, BLOB):
        return _stored(source, 0, source.size, source.path).array()


def write_blob(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an array as a .binaryproto."""
    _write_pieces(path, _blob(np.asarray(array), None))


@contextmanager
def _expecting(source: wire.WireFile, due: str) -> Iterator[None]:
    """Add to an error what kind of file it is, if that is not the expected kind `due`."""
    try:
        if source.size > MAX_BYTES:
            raise CaffeError(
                f'{source.path}: {source.size} bytes, and protobuf reads no message '
                f'of more than {MAX_BYTES}; only HDF5 has no such limit'
            )
        yield
    except CaffeError as error:
        found = wire.describe_file(source)
        if found in (due, wire.UNKNOWN):
            raise
        raise CaffeError(f'{source.path}: expected {due}, found {found}') from error


def _layer(source: wire.WireFile, field: wire.Field, kind: type[Message]) -> StoredLayer:
    name, type_, blobs = _layer_parts(source, field, kind)
    return StoredLayer(
        name,
        type_,
        [
            _stored(source, blob.start, blob.end, f'{source.path}: {name}: blob {i}')
            for i, blob in enumerate(blobs)
        ],
    )


def _layer_parts(
    source: wire.WireFile, layer: wire.Field, kind: type[Message]
) -> tuple[str, str, list[wire.Field]]:
    """Return the name, the type and the fields of the blobs of a layer.

    A V0 layer is in the field `layer` of a V1 layer.
    """
    name, type_ = '', ''
    blobs: list[wire.Field] = []
    for part, field in source.named(layer.start, layer.end, kind):
        if part == 'layer':
            name, type_, inner = _layer_parts(source, field, V0LayerParameter)
            blobs += inner
        elif part == 'blobs':
            blobs.append(field)
        elif part == 'name':
            name = source.text(field)
        elif part == 'type' and kind is V1LayerParameter:
            type_ = v1_type(field.value)
        elif part == 'type':
            word = source.text(field)
            type_ = v0_type(word) if kind is V0LayerParameter else word
    return name, type_, blobs


def _stored(source: wire.WireFile, start: int, end: int, where: str) -> StoredBlob:
    """Index the BlobProto at start:end."""
    legacy: dict[str, int] = {}
    dims: list[int] = []
    runs: dict[str, list[wire.Run]] = {name: [] for name in _NUMBERS}
    at = start
    while at < end:
        field = source.field(at, end)
        name, at = source.name(field, BlobProto), field.end
        if name in _NUMBERS:
            run, at = source.numbers(field, end, _NUMBERS[name].itemsize)
            runs[name].append(run)
        elif name in _LEGACY_DIMS:
            legacy[name] = wire.signed(field.value, 32)
        elif name == 'shape':
            for part, dim in source.named(field.start, field.end, BlobShape):
                values = islice(source.varints(dim), _MOST_AXES + 1)
                dims += [wire.signed(value, 64) for value in values if part]
    # As Blob::FromProto: old dims before `shape`, doubles before floats.
    declared = [legacy.get(name, 0) for name in _LEGACY_DIMS] if legacy else dims
    shape = check_shape(declared, where)
    data = 'double_data' if runs['double_data'] else 'data'
    diff = 'double_diff' if runs['double_diff'] else 'diff'
    stored = partial(_counted, source, where, shape)
    gradient = stored(runs[diff], _NUMBERS[diff]) if runs[diff] else None
    return stored(runs[data], _NUMBERS[data], gradient)


def _counted(
    source: wire.WireFile,
    where: str,
    shape: Shape,
    runs: list[wire.Run],
    dtype: np.dtype,
    diff: StoredBlob | None = None,
) -> StoredBlob:
    blob = StoredBlob(where, shape, dtype, partial(source.load, runs, dtype), diff)
    found = sum(run.size for run in runs)
    if found != blob.count:
        raise CaffeError(f'{where}: expected {blob.count} values for shape {shape}, found {found}')
    return blob


def _without_blobs(
    source: wire.WireFile,
    start: int,
    end: int,
    kind: type[Message],
    layers: dict[str, type[Message]],
) -> bytes:
    """Return the bytes of the net or layer at start:end, less its blobs.

    `layers` are the fields that hold layers in their turn.
    """
    out = bytearray()
    for name, field in source.named(start, end, kind):
        if name == 'blobs':
            continue
        start, body = field.tag, b''
        if name in layers:
            inner = _V0 if name == 'layers' else {}
            body = _without_blobs(source, field.start, field.end, layers[name], inner)
            start, body = field.end, wire.encode_header(field.number, len(body)) + body
        if len(out) + len(body) + field.end - start > MAX_NET_BYTES:
            raise CaffeError(f'{source.path}: more than {MAX_NET_BYTES} bytes besides blobs')
        out += body + source.read(start, field.end)
    return bytes(out)


def _blob(array: np.ndarray, diff: np.ndarray | None) -> list[Piece]:
    """Return a BlobProto in pieces."""
    pieces: list[Piece] = []
    for number, values in ((5, array), (6, diff)):
        if values is not None and values.size:
            pieces += [wire.encode_header(number, 4 * values.size), values]
    if array.ndim:
        shape = BlobShape(dim=array.shape).SerializeToString()
        pieces += [wire.encode_header(7, len(shape)), shape]
    return pieces


def _message(number: int, pieces: list[Piece]) -> list[Piece]:
    """Wrap the pieces of a message as field `number` of another."""
    return [wire.encode_header(number, _length(pieces)), *pieces]


def _part(message: Message, numbers: range) -> bytes:
    """Serialize the fields of a message that have these numbers."""
    part = type(message)()
    for field, value in message.ListFields():
        if field.number in numbers:
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
    with open_to_write(path) as out:
        for piece in pieces:
            out.write(piece if isinstance(piece, bytes) else payload(piece))
