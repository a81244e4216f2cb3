"""Files of named tensors: .safetensors and numpy's .npz (.pth: see pth.py).

Reading makes an index; values stay in the file until they are asked for.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO

import numpy as np

from caffe_port.blob import check_shape
from caffe_port.errors import CaffeError
from caffe_port.files import wire
from caffe_port.files.stored import (
    Shape,
    StoredBlob,
    import_library,
    open_to_write,
    payload,
    translate_errors,
)

Named = dict[str, StoredBlob]
ReadBlob = Callable[[StoredBlob], np.ndarray]

# What a file may say besides its values: real nets take less than 1 MiB for names and shapes.
MAX_INDEX = 1 << 21
_FLOATS: dict[str, np.dtype] = {
    'F16': np.dtype('<f2'),
    'F32': np.dtype('<f4'),
    'F64': np.dtype('<f8'),
}


class _BoundedFile(io.FileIO):
    """A file of which at most MAX_INDEX is read at once: zipfile reads its directory so."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_INDEX:
            raise ValueError(f'its directory takes {size} bytes, expected at most {MAX_INDEX}')
        return super().read(size)

    def __del__(self) -> None:
        self.close()


def archive(path: str | os.PathLike) -> zipfile.ZipFile:
    """Open a zip archive; raise what zipfile raises, and for a directory beyond MAX_INDEX."""
    return zipfile.ZipFile(_BoundedFile(path))


# safetensors.


def read_safetensors(path: str | os.PathLike) -> Named:
    """Index the tensors of a .safetensors, F16, F32 or F64.

    Raises CaffeError for any other file, or without the safetensors library.
    """
    numpy, source = import_library('safetensors.numpy', path, 'safetensors'), wire.WireFile(path)
    length = int.from_bytes(source.head(8), 'little')
    if length > min(MAX_INDEX, source.size - 8):
        raise CaffeError(
            f'{path}: expected a .safetensors, found a header of {length} bytes '
            f'in a file of {source.size}'
        )
    with translate_errors(path, 'damaged, or not a .safetensors'):
        file = numpy.safe_open(path, 'numpy')
        return {key: _slice(file, key, f'{path}: {key}') for key in sorted(file.keys())}


def _slice(file, key: str, where: str) -> StoredBlob:
    part = file.get_slice(key)
    dtype = _FLOATS.get(part.get_dtype())
    if dtype is None:
        raise CaffeError(f'{where}: expected {", ".join(_FLOATS)}, found {part.get_dtype()}')

    def fill(out: np.ndarray) -> None:
        with translate_errors(where, 'damaged'), np.errstate(over='ignore'):
            out[:] = file.get_tensor(key).reshape(-1)

    return StoredBlob(where, check_shape(part.get_shape(), where), dtype, fill)


def write_safetensors(
    path: str | os.PathLike, blobs: Sequence[tuple[str, StoredBlob]], read: ReadBlob
) -> None:
    """Write float32 tensors in the library's order, by name; they are in memory together."""
    numpy = import_library('safetensors.numpy', path, 'safetensors')
    with open_to_write(path) as out:
        out.write(numpy.save({key: read(blob) for key, blob in blobs}))


# numpy.


def read_npz(path: str | os.PathLike) -> Named:
    """Index the arrays of an .npz, deflated or not; it must hold floats only.

    Raises CaffeError for any other file.
    """
    wire.WireFile(path)  # refuses what is no file
    found: Named = {}
    with translate_errors(path, 'damaged, or not an .npz'):
        file = archive(path)
        for info in file.infolist():
            key = info.filename.removesuffix('.npy')
            where = f'{path}: {key}'
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CaffeError(f'{where}: compressed by another method than deflate')
            with file.open(info) as member:
                shape, fortran, dtype = _npy_header(member)
                size = info.file_size - member.tell()
            if dtype.kind != 'f' or key in found:
                what = 'it twice' if key in found else str(dtype)
                raise CaffeError(f'{where}: expected floats, found {what}')
            fill = partial(_fill_npy, file, info, where, shape[::-1] if fortran else None)
            found[key] = blob = StoredBlob(where, check_shape(shape, where), dtype, fill)
            if size != blob.count * dtype.itemsize:
                raise CaffeError(
                    f'{where}: expected {blob.count * dtype.itemsize} bytes for shape '
                    f'{shape}, found {size}'
                )
    return found


def _npy_header(member: IO[bytes]) -> tuple[Shape, bool, np.dtype]:
    # Later versions are for headers beyond 64 KiB, which no array of floats has.
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise ValueError(f'expected an array in format 1.0, found {version}')
    return np.lib.format.read_array_header_1_0(member)


def _fill_npy(
    file: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    where: str,
    reversed_shape: Shape | None,
    out: np.ndarray,
) -> None:
    """Fill `out`; `reversed_shape` is given for Fortran order."""
    with translate_errors(where, 'damaged'), file.open(info) as member, np.errstate(over='ignore'):
        dtype = _npy_header(member)[2]
        count = MAX_INDEX // dtype.itemsize
        for first in range(0, out.size, count):
            part = out[first : first + count]
            values = np.frombuffer(member.read(part.size * dtype.itemsize), dtype)
            if values.size != part.size:
                raise ValueError(f'truncated: {first + values.size} values of {out.size}')
            part[:] = values
        if member.read(1):
            raise ValueError(f'more than {out.size} values')
    if reversed_shape is not None:
        out[:] = out.reshape(reversed_shape).T.reshape(-1)


def write_npz(
    path: str | os.PathLike, blobs: Sequence[tuple[str, StoredBlob]], read: ReadBlob
) -> None:
    """Write an uncompressed .npz of float32 arrays, one after another."""
    with open_to_write(path) as out, zipfile.ZipFile(out, 'w') as file:
        for key, blob in blobs:
            # Without a date: equal values make equal files.
            info = zipfile.ZipInfo(f'{key}.npy')
            with file.open(info, 'w', force_zip64=True) as member:
                array = read(blob)
                np.lib.format.write_array_header_1_0(
                    member, {'descr': '<f4', 'fortran_order': False, 'shape': array.shape}
                )
                member.write(payload(array))
