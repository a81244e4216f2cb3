"""Read and write PyTorch's .pth: index a state_dict's tensors without unpickling.

torch.load builds whatever a pickle describes, and a hundred bytes can describe gigabytes.
Here the few opcodes that torch.save writes for a state_dict act on plain values, one by
one; every other opcode is refused. What other names make is a mark that nothing looks into: a
checkpoint may have such values beside its state_dict, the state_dict may not. Values stay in the
file. Sources: torch/serialization.py (both layouts), Python's pickletools (opcodes).
"""

from __future__ import annotations

import io
import logging
import math
import os
import pickletools
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from caffe_port.blob import check_shape
from caffe_port.errors import CaffeError
from caffe_port.files import wire
from caffe_port.files.named import MAX_INDEX, Named, ReadBlob, archive
from caffe_port.files.stored import StoredBlob, open_to_write, translate_errors

LOG = logging.getLogger('caffe_port')

# A tensor takes some 40 opcodes; the deepest nets published have 10,000.
MAX_STEPS = 1 << 19
_MAGIC = 0x1950A86A20F9469CFC6C  # opens a file of before PyTorch 1.6
_FLOATS: dict[str, np.dtype] = {
    'Half': np.dtype('<f2'),
    'BFloat16': np.dtype('<u2'),  # the upper half of a float32
    'Float': np.dtype('<f4'),
    'Double': np.dtype('<f8'),
}
_TENSOR = ('torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_tensor')
_PARAMETER, _DICT = 'torch._utils._rebuild_parameter', 'collections.OrderedDict'
# Where training checkpoints keep the state_dict.
_WRAPPED = 'state_dict', 'model_state_dict', 'model'
_PUSH = set('BINUNICODE SHORT_BINSTRING BINSTRING BININT BININT1 BININT2 LONG1 BINFLOAT'.split())
_MAKE: dict[str, Callable[[], Any]] = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_TUPLE': tuple,
    'EMPTY_LIST': list,
    'EMPTY_DICT': dict,
}


class _Name(NamedTuple):
    """A class or function that a pickle asks for."""

    text: str


class _Strange(NamedTuple):
    """A value that is not made, as no weights need it; `why` is what an error says of it."""

    why: str


class _Storage(NamedTuple):
    """The values behind a tensor: their kind (Float, ...), key in the file and count."""

    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_torch(path: str | os.PathLike) -> Named:
    """Index the tensors of a state_dict that torch.save wrote, alone or in a checkpoint.

    A checkpoint is a dict with the state_dict under one of `state_dict`, `model_state_dict`
    and `model`; what else is in it is not looked at.
    Raises CaffeError for what is not a plain state_dict of dense floating tensors.
    """
    source = wire.WireFile(path)
    with translate_errors(path, 'not a state_dict that torch.save wrote'):
        unpack = _zipped if source.head(4) == wire.ZIP else _flat
        content, place_of = unpack(source)
        _refuse_strange(content)
        if not isinstance(content, dict):
            raise CaffeError(
                f'{path}: expected a plain state_dict, names to tensors, '
                f'found a {type(content).__name__}'
            )
        content = _unwrapped(path, content)
        for value in content.values():
            _refuse_strange(value)
        strange = [
            repr(key)[:40]
            for key, value in content.items()
            if not (isinstance(key, str) and isinstance(value, _Tensor))
        ]
        if strange:
            raise CaffeError(
                f'{path}: expected a plain state_dict, names to tensors, '
                f'found a dict with {", ".join(strange[:5])}'
            )
        return {
            key: _stored(source, f'{path}: {key}', tensor, place_of)
            for key, tensor in content.items()
        }


def write_torch(
    path: str | os.PathLike, blobs: Sequence[tuple[str, StoredBlob]], read: ReadBlob
) -> None:
    """Write a state_dict of float32 tensors that torch.load(weights_only=True) reads."""
    state = {key: torch.from_numpy(read(blob)) for key, blob in blobs}
    with open_to_write(path) as out:
        try:
            torch.save(state, out)
        except RuntimeError as error:  # torch hides the disk's own error behind it
            raise error.__context__ or error from None


def _refuse_strange(value: Any) -> None:
    if isinstance(value, _Strange):
        raise ValueError(value.why)


def _unwrapped(path: str | os.PathLike, content: dict) -> dict:
    """Return the state_dict in a training checkpoint, or else the content as it is."""
    found = [key for key in _WRAPPED if isinstance(content.get(key), dict)]
    if not found:
        return content
    LOG.info('%s: a checkpoint; its weights are under %s', path, found[0])
    return content[found[0]]


Places = Callable[[_Storage], tuple[int, int]]  # where a storage begins, and its bytes


def _zipped(source: wire.WireFile) -> tuple[Any, Places]:
    """Read an archive: its directory, then data.pkl."""
    members = {info.filename: info for info in archive(source.path).infolist()}
    pickles = [name for name in members if re.fullmatch(r'[^/]*/data\.pkl', name)]
    if len(pickles) != 1:
        raise ValueError('an archive without a data.pkl, or with two')
    prefix = pickles[0].removesuffix('data.pkl')

    def span(name: str) -> tuple[int, int]:
        info = members.get(prefix + name)
        if info is None or info.compress_type:
            raise ValueError(f'{name} is missing or compressed')
        header = source.read(info.header_offset, info.header_offset + 30)
        extra = int.from_bytes(header[26:28], 'little') + int.from_bytes(header[28:], 'little')
        return info.header_offset + 30 + extra, info.file_size

    if f'{prefix}byteorder' in members:
        start, size = span('byteorder')
        if source.read(start, start + min(size, 9)) != b'little':
            raise ValueError('its byte order is not little endian')
    start, size = span('data.pkl')
    if size > MAX_INDEX:
        raise ValueError(f'data.pkl takes {size} bytes, expected at most {MAX_INDEX}')
    content = _unpickle(io.BytesIO(source.read(start, start + size)), {})
    return content, lambda storage: span(f'data/{storage.key}')


def _flat(source: wire.WireFile) -> tuple[Any, Places]:
    """Read a file of before PyTorch 1.6: five pickles, then each storage after its count."""
    file, storages = io.BytesIO(source.head(MAX_INDEX)), dict[str, _Storage]()
    magic, _, system = (_unpickle(file, storages) for _ in range(3))
    if magic != _MAGIC or not system['little_endian']:
        raise ValueError('not a little endian file of torch.save')
    content, keys = _unpickle(file, storages), _unpickle(file, storages)
    places, at = {}, file.tell()
    for key in keys:
        if type(key) is not str:
            raise ValueError('a key that is no string')
        size = storages[key].size * _FLOATS[storages[key].kind].itemsize
        if int.from_bytes(source.read(at, at + 8), 'little') != storages[key].size:
            raise ValueError(f'expected {storages[key].size} values at byte {at}')
        places[key] = at + 8, size
        at += 8 + size
    return content, lambda storage: places[storage.key]


def _unpickle(file: BinaryIO, storages: dict[str, _Storage]) -> Any:
    """Carry out one pickle of plain values, names and tensors; its storages are added.

    Time and memory are bounded by MAX_STEPS: each step moves, makes or looks at one value.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    steps, arg = 0, None  # type: int, Any
    for opcode, arg, _ in pickletools.genops(file):
        op, steps = opcode.name, steps + 1
        if steps > MAX_STEPS:
            raise ValueError(f'its pickle takes more than {MAX_STEPS} steps')
        if op in _PUSH:
            stack.append(arg)
        elif op in _MAKE:
            stack.append(_MAKE[op]())
        elif op in ('BINPUT', 'LONG_BINPUT'):
            memo[arg] = stack[-1]
        elif op in ('BINGET', 'LONG_BINGET'):
            stack.append(memo[arg])
        elif op == 'MARK':
            marks.append(len(stack))
        elif op.startswith('TUPLE'):
            start = marks.pop() if op == 'TUPLE' else len(stack) - int(op[5:])
            stack.append(tuple(_popped(stack, start)))
        elif op in ('APPEND', 'APPENDS'):
            start = marks.pop() if op == 'APPENDS' else len(stack) - 1
            items = _popped(stack, start)
            if not isinstance(stack[-1], _Strange):
                stack[-1].extend(items)
        elif op in ('SETITEM', 'SETITEMS'):
            start = marks.pop() if op == 'SETITEMS' else len(stack) - 2
            items = _popped(stack, start)
            if not isinstance(stack[-1], _Strange):
                stack[-1].update(_pairs(zip(items[::2], items[1::2])))
        elif op == 'GLOBAL':
            stack.append(_name(arg.replace(' ', '.')))
        elif op == 'BINPERSID':
            stack[-1] = storage = _storage(*stack[-1])
            if isinstance(storage, _Storage):
                storages[storage.key] = storage
        elif op in ('REDUCE', 'NEWOBJ'):
            args, name = stack.pop(), stack.pop()
            if isinstance(name, _Strange):
                stack.append(name)
            elif op == 'REDUCE' and name.text == _DICT and args:
                # As Python 2 wrote it: a list of pairs.
                steps += len(args[0])
                stack.append(dict(_pairs(args[0])))
            else:
                stack.append(_made(name.text, args))
        elif op == 'BUILD':
            stack.pop()  # an OrderedDict's attributes, such as _metadata
            if not isinstance(stack[-1], (dict, _Strange)):
                raise ValueError('a value with a state')
        elif op == 'STOP':
            return stack.pop()
        elif op != 'PROTO':
            raise ValueError(f'opcode {op} in its pickle')
    raise ValueError('its pickle has no end')


def _popped(stack: list[Any], start: int) -> list[Any]:
    items = stack[start:]
    del stack[start:]
    return items


def _pairs(items) -> list[tuple[Any, Any]]:
    # The hash of a nested tuple can take forever.
    return [(key if type(key) is str else int(key), value) for key, value in items]


def _name(text: str) -> _Name | _Strange:
    if text in (*_TENSOR, _PARAMETER, _DICT) or re.fullmatch(r'torch\.\w+Storage', text):
        return _Name(text)
    return _Strange(
        f'it asks for {text[:100]}, and a weight file may hold nothing but dense tensors'
    )


def _storage(
    tag: str, name: _Name, key: str, place: str, size: int, view: None = None
) -> _Storage | _Strange:
    kind = name.text.removeprefix('torch.').removesuffix('Storage')
    if kind not in _FLOATS:
        return _Strange(f'expected dense tensors of floats only, found a {kind}Tensor')
    if tag != 'storage' or view is not None or type(key) is not str or type(size) is not int:
        raise ValueError('a storage that torch.save does not write')
    return _Storage(kind, key, size)


def _made(name: str, args: tuple) -> Any:
    if name == _DICT:
        return {}
    if name == _PARAMETER:
        return args[0]
    if name in _TENSOR:
        return _Tensor(*args[:4])
    raise ValueError(f'a call of {name}')


def _stored(source: wire.WireFile, where: str, tensor: _Tensor, place_of: Places) -> StoredBlob:
    storage, offset, shape, stride = tensor
    _refuse_strange(storage)
    if not isinstance(storage, _Storage):
        raise ValueError('a tensor without values')
    kind, _, count = storage
    if any(type(number) is not int or number < 0 for number in (count, offset, *shape, *stride)):
        raise CaffeError(f'{where}: its shape, strides or offset are no counts')
    shape, dtype = check_shape(shape, where), _FLOATS[kind]
    blob_size = math.prod(shape) * dtype.itemsize
    start, size = place_of(storage)
    size = min(size, count * dtype.itemsize, source.size - start)
    # From the first value to the last, with strides; what is between them is read too.
    span = 1 + sum((dim - 1) * step for dim, step in zip(shape, stride)) if blob_size else 0
    if blob_size > size or (offset + span) * dtype.itemsize > size or len(shape) != len(stride):
        raise CaffeError(
            f'{where}: shape {shape}, strides {stride} and offset {offset} need '
            f'{max(blob_size, (offset + span) * dtype.itemsize)} bytes, the file has {size}'
        )
    run = wire.Run(start + offset * dtype.itemsize, span)
    return StoredBlob(where, shape, dtype, partial(_fill, source, run, dtype, shape, stride))


def _fill(
    source: wire.WireFile,
    run: wire.Run,
    dtype: np.dtype,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    out: np.ndarray,
) -> None:
    values = np.empty(run.size, np.float32)
    source.load([run], dtype, values)
    if dtype.kind == 'u':
        values = (values.astype(np.uint32) << 16).view(np.float32)
    steps = [4 * step for step in stride]
    out[:] = np.lib.stride_tricks.as_strided(values, shape, steps).reshape(-1)
