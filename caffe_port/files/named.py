"""Files of named tensors: PyTorch's .pth, .safetensors and numpy's .npz.

Reading makes an index; values stay in the file until they are asked for, except in a .pth
of before PyTorch 1.6, which can only be read whole. Nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import numpy as np
import torch

from caffe_port.errors import CaffeError, replacing
from caffe_port.files import wire
from caffe_port.files.stored import StoredBlob, declared_shape

Named = dict[str, StoredBlob]
Read = Callable[[StoredBlob], np.ndarray]

# What a .safetensors may say before its values; real nets take less than 100 KiB.
MAX_HEADER = 1 << 20
_ZIP = b'PK\x03\x04'
_CHUNK = 1 << 20
_FLOATS = {'F16': np.dtype('<f2'), 'F32': np.dtype('<f4'), 'F64': np.dtype('<f8')}
_TORCH_FLOATS = {
    torch.float16: np.dtype('f2'),
    torch.bfloat16: np.dtype('f4'),
    torch.float32: np.dtype('f4'),
    torch.float64: np.dtype('f8'),
}


@dataclass(frozen=True)
class HeldBlob(StoredBlob):
    """A blob that is in memory, or mapped there; float32 ones are handed out as they are."""

    tensor: torch.Tensor = field(kw_only=True, repr=False)

    def array(self) -> np.ndarray:
        if self.tensor.dtype == torch.float32 and self.tensor.is_contiguous():
            return self.tensor.numpy()
        return super().array()


@contextmanager
def refused(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Turn whatever a library raises within into a CaffeError `path: what: ...`.

    On damaged files torch, zipfile, numpy and h5py raise nearly every exception there is.
    """
    try:
        yield
    except CaffeError:
        raise
    except Exception as error:
        raise CaffeError(f'{path}: {what}: {first_line(error)}') from error


def values_of(blob: StoredBlob) -> np.ndarray:
    """A blob's values; held ones in their own memory."""
    return blob.array()


def first_line(error: Exception) -> str:
    """What an exception says, or its type where it says nothing."""
    said = getattr(error, 'strerror', None) or str(error)
    return (said.strip().splitlines() or [type(error).__name__])[0]


# PyTorch.


def read_torch(path: str | os.PathLike) -> Named:
    """The tensors of a state_dict that torch.save wrote, mapped from the file where it can be.

    Raises CaffeError for what is no plain state_dict of floating tensors, and for a
    pickle that asks for anything but tensors.
    """
    return {key: _held(f'{path}: {key}', tensor) for key, tensor in load_torch(path).items()}


def load_torch(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The state_dict itself, on the CPU. Raises CaffeError for anything else in the file."""
    zipped = wire.Source(path).head(4) == _ZIP
    if zipped:
        _check_archive(path)
    try:
        with warnings.catch_warnings():  # the errors say enough
            warnings.simplefilter('ignore')
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=zipped)
    except Exception as error:  # see `refused`
        asked = re.search(r'GLOBAL ([\w.]+)', str(error))
        why = (
            f'it asks for {asked[1]}, and a weight file may hold nothing but tensors'
            if asked
            else f'damaged, or not written by torch.save: {first_line(error)}'
        )
        raise CaffeError(f'{path}: not loaded: {why}') from error
    if isinstance(content, dict):
        strange = [
            repr(key)[:40]
            for key, value in content.items()
            if not (isinstance(key, str) and isinstance(value, torch.Tensor))
        ]
        if not strange:
            return content
        found = f'a dict with {", ".join(strange[:5])}'
    else:
        found = f'a {type(content).__name__}'
    raise CaffeError(f'{path}: expected a plain state_dict, names to tensors, found {found}')


def _check_archive(path: str | os.PathLike) -> None:
    """Refuse what torch.save never writes and would unpack to more than the file's size."""
    with refused(path, 'damaged'), zipfile.ZipFile(path) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise CaffeError(
                f'{path}: expected the archive that torch.save writes, found a compressed one'
            )


def _held(where: str, tensor: torch.Tensor) -> HeldBlob:
    if (
        tensor.layout != torch.strided
        or tensor.device.type != 'cpu'
        or tensor.dtype not in _TORCH_FLOATS
    ):
        raise CaffeError(
            f'{where}: expected a dense tensor of floats, found '
            f'{tensor.dtype}, {tensor.layout}, on {tensor.device}'
        )
    tensor = tensor.detach()
    shape = declared_shape(tensor.shape, where)
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise CaffeError(
            f'{where}: shape {shape} needs {tensor.nbytes} bytes, '
            f'the file has {tensor.untyped_storage().nbytes()}'
        )

    def fill(out: np.ndarray) -> None:
        torch.from_numpy(out).view(tensor.shape).copy_(tensor)

    return HeldBlob(where, shape, _TORCH_FLOATS[tensor.dtype], fill, tensor=tensor)


def write_torch(
    path: str | os.PathLike, blobs: Sequence[tuple[str, StoredBlob]], read: Read = values_of
) -> None:
    """Write a state_dict of float32 tensors that torch.load(weights_only=True) takes."""
    state = {key: torch.from_numpy(read(blob)) for key, blob in blobs}
    with _writing(path) as out:
        try:
            torch.save(state, out)
        except RuntimeError as error:  # the disk's own words stand behind torch's
            raise error.__context__ or error from None


# safetensors: 8 bytes of length, a JSON header, the values without a gap.


def read_safetensors(path: str | os.PathLike) -> Named:
    """The tensors of a .safetensors, F16, F32 or F64.

    Raises CaffeError for what is no such file. Source: the format's own description.
    """
    source = wire.Source(path)
    length = struct.unpack('<Q', source.read(0, 8))[0]
    if length > min(MAX_HEADER, source.size - 8):
        raise CaffeError(
            f'{path}: expected a .safetensors, found a header of {length} bytes '
            f'in a file of {source.size}'
        )
    with refused(path, 'damaged, or not a .safetensors'):
        header = json.loads(source.read(8, 8 + length))
        header.pop('__metadata__', None)
        spans = {key: (*_offsets(entry), entry) for key, entry in header.items()}
    found, at = {}, 0
    for key, (start, end, entry) in sorted(spans.items(), key=lambda item: item[1][:2]):
        if start != at:
            raise CaffeError(f'{path}: {key}: expected its values at byte {at}, found {start}')
        found[key], at = _slice(source, f'{path}: {key}', 8 + length, start, end, entry), end
    if at != source.size - 8 - length:
        raise CaffeError(f'{path}: expected {at} bytes of values, found {source.size - 8 - length}')
    return {key: found[key] for key in header}


def _offsets(entry: dict[str, Any]) -> tuple[int, int]:
    start, end = entry['data_offsets']
    if type(start) is not int or type(end) is not int or start > end:
        raise ValueError(f'data_offsets {start!r}, {end!r}')
    return start, end


def _slice(
    source: wire.Source, where: str, base: int, start: int, end: int, entry: dict[str, Any]
) -> StoredBlob:
    dtype = _FLOATS.get(str(entry.get('dtype')))
    if dtype is None:
        raise CaffeError(f'{where}: expected {", ".join(_FLOATS)}, found {entry.get("dtype")!r}')
    with refused(where, 'no shape'):
        shape = declared_shape(entry['shape'], where)
    count = math.prod(shape)
    if count * dtype.itemsize != end - start:
        raise CaffeError(
            f'{where}: expected {count * dtype.itemsize} bytes for shape {shape}, '
            f'found {end - start}'
        )
    runs = [wire.Run(base + start, count, False)]
    return StoredBlob(where, shape, dtype, partial(source.load, runs, dtype))


def write_safetensors(
    path: str | os.PathLike, blobs: Sequence[tuple[str, StoredBlob]], read: Read = values_of
) -> None:
    """Write float32 tensors one after another, in the order given."""
    header, at = {}, 0
    for key, blob in blobs:
        header[key] = {
            'dtype': 'F32',
            'shape': list(blob.shape),
            'data_offsets': [at, at + 4 * blob.count],
        }
        at += 4 * blob.count
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with _writing(path) as out:
        out.write(struct.pack('<Q', len(text)) + text)
        for _, blob in blobs:
            out.write(_bytes(read(blob)))


# numpy.


def read_npz(path: str | os.PathLike) -> Named:
    """The arrays of an .npz, compressed or not; it must hold floats only.

    Raises CaffeError for what is no such file.
    """
    wire.Source(path)  # refuses what is no file, in the words of the other kinds
    found = {}
    with refused(path, 'damaged, or not an .npz'):
        archive = zipfile.ZipFile(path)
        for info in archive.infolist():
            key = info.filename.removesuffix('.npy')
            where = f'{path}: {key}'
            with archive.open(info) as member:
                shape, fortran, dtype = _npy_header(member)
            if dtype.kind != 'f' or key in found:
                raise CaffeError(
                    f'{where}: expected floats, found '
                    + ('it twice' if key in found else str(dtype))
                )
            shape = declared_shape(shape, where)
            fill = partial(_fill_npy, archive, info, where, shape[::-1] if fortran else None)
            found[key] = StoredBlob(where, shape, dtype, fill)
    return found


def _npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _fill_npy(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    where: str,
    reversed_shape: tuple[int, ...] | None,
    out: np.ndarray,
) -> None:
    """Fill `out`; `reversed_shape` is given where the file's order is Fortran's."""
    with refused(where, 'damaged'), archive.open(info) as member:
        _, _, dtype = _npy_header(member)
        for first in range(0, out.size, _CHUNK):
            part = out[first : first + _CHUNK]
            with np.errstate(over='ignore'):
                part[:] = np.frombuffer(member.read(part.size * dtype.itemsize), dtype)
    if reversed_shape is not None:
        out[:] = out.reshape(reversed_shape).T.reshape(-1)


def write_npz(
    path: str | os.PathLike, blobs: Sequence[tuple[str, StoredBlob]], read: Read = values_of
) -> None:
    """Write an uncompressed .npz of float32 arrays, one after another."""
    with _writing(path) as out, zipfile.ZipFile(out, 'w') as archive:
        for key, blob in blobs:
            # Without a date: equal values make equal files.
            info = zipfile.ZipInfo(f'{key}.npy')
            with archive.open(info, 'w', force_zip64=True) as member:
                array = read(blob)
                np.lib.format.write_array_header_1_0(
                    member, {'descr': '<f4', 'fortran_order': False, 'shape': array.shape}
                )
                member.write(_bytes(array))


def _bytes(array: np.ndarray) -> memoryview:
    """The values as they lie in files: float32, little-endian, C order."""
    return memoryview(np.ascontiguousarray(array, '<f4').reshape(-1).view(np.uint8))


@contextmanager
def _writing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    with refused(path, 'not written'), replacing(path) as temporary, open(temporary, 'wb') as out:
        yield out
