"""Caffe's HDF5 files: .caffemodel.h5 and .solverstate.h5. They need h5py.

Weights are /data/<layer>/<i>, their gradients /diff/<layer>/<i>, a solver's history is
/history/<i>, all float32. Source: Caffe's Net::ToHDF5, SGDSolver::SnapshotSolverStateToHDF5.
Caffe writes contiguous datasets only. h5py says where in the file each one is, and the
values are read from there without it: no filter of the HDF5 library ever runs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from caffe_port.blob import check_shape
from caffe_port.errors import CaffeError, replacing
from caffe_port.files import wire
from caffe_port.files.stored import (
    LayerArrays,
    StoredBlob,
    StoredLayer,
    StoredState,
    import_library,
    layers_to_write,
    translate_errors,
)
from caffe_port.proto.caffe_pb2 import NetParameter

# Groups can hold themselves: these bound the walk through a forged file.
MAX_DEPTH = 32
MAX_OBJECTS = 1 << 15
_MAX_TEXT = 1 << 12
_GROWTH = 1 << 24  # bytes by which a file in memory grows


def read(path: str | os.PathLike) -> list[StoredLayer]:
    """Index the layers of a .caffemodel.h5, by name; the format has neither types nor order.

    Raises CaffeError for any other file, for datasets that are not contiguous, for links,
    or without h5py.
    """
    due = 'a .caffemodel.h5'
    with _open(path) as (source, file):
        layers = _blobs(source, _group(file, 'data', due, path), 'data')
        if not layers:
            raise CaffeError(f'{path}: expected {due}, found no blobs in it')
        diff = _member(file, 'diff', path)
        diffs = _blobs(source, diff, 'diff') if hasattr(diff, 'keys') else {}
        return [
            StoredLayer(name, '', _with_diffs(blobs, diffs.get(name, [])))
            for name, blobs in layers.items()
        ]


def read_state(path: str | os.PathLike) -> StoredState:
    """Return the content of a .solverstate.h5. Raises CaffeError for any other file."""
    with _open(path) as (source, file):
        history = _blobs(source, _group(file, 'history', 'a .solverstate.h5', path), 'history')
        numbers = [
            int(np.frombuffer(_single(source, file, name, 'i'), file[name].dtype)[0])
            for name in ('iter', 'current_step')
        ]
        learned_net = _single(source, file, 'learned_net', 'S').partition(b'\0')[0].decode('utf-8')
        return StoredState(numbers[0], learned_net, numbers[1], history.get('', []))


def write_hdf5(
    path: str | os.PathLike, net: NetParameter, blobs: LayerArrays, diffs: LayerArrays | None = None
) -> None:
    """Write a .caffemodel.h5: a group for each layer of `net`, with the blobs of its name.

    Raises CaffeError for layers whose names HDF5 cannot hold.
    """
    with _create(path) as file:
        groups = [(file.create_group('data'), 0)]
        if diffs:
            groups.append((file.create_group('diff'), 1))
        for layer, pairs in layers_to_write(path, net, blobs, diffs):
            if '\0' in layer.name or {'', '.'} & set(layer.name.split('/')):
                raise CaffeError(
                    f'{path}: not written: HDF5 can hold no layer named {layer.name!r}; its '
                    'names are parts between slashes, none of them empty or "."'
                )
            for group, which in groups:
                if layer.name in group:
                    raise CaffeError(
                        f'{path}: not written: two layers named "{layer.name}"; '
                        'HDF5 keeps them by name'
                    )
                _put_all(group.create_group(layer.name), [pair[which] for pair in pairs])


def write_state_hdf5(
    path: str | os.PathLike,
    iter: int,
    learned_net: str | os.PathLike,
    history: Sequence[np.ndarray],
    current_step: int,
) -> None:
    """Write a .solverstate.h5 as Caffe does."""
    h5py = import_library('h5py', path, 'hdf5')
    with _create(path) as file:
        file.create_dataset('iter', data=np.array([iter], np.int32))
        file.create_dataset('current_step', data=np.array([current_step], np.int32))
        # With its closing zero, as Caffe's reader needs it.
        text = os.fspath(learned_net).encode('utf-8') + b'\0'
        kind, every = h5py.h5t.C_S1.copy(), h5py.h5s.ALL
        kind.set_size(len(text))
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        dataset = h5py.h5d.create(file.id, b'learned_net', kind, space)
        dataset.write(every, every, np.array(text, f'S{len(text)}'), kind)
        _put_all(file.create_group('history'), history)


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[tuple[wire.WireFile, Any]]:
    """Open an HDF5 file twice: to read values in place, and by h5py; close both at the end."""
    h5py, source = import_library('h5py', path, 'hdf5'), wire.WireFile(path)
    with (
        translate_errors(path, "damaged, or not one of Caffe's HDF5 files"),
        h5py.File(path, 'r') as file,
    ):
        yield source, file


@contextmanager
def _create(path: str | os.PathLike) -> Iterator[Any]:
    """Open an HDF5 file to fill, written whole at the end.

    It grows in memory: the library ends the process where a disk refuses its writes.
    """
    h5py = import_library('h5py', path, 'hdf5')
    with (
        translate_errors(path, 'not written'),
        h5py.File(
            os.fspath(path), 'w', driver='core', backing_store=False, block_size=_GROWTH
        ) as file,
    ):
        yield file
        file.flush()
        with replacing(path) as temporary:
            temporary.write_bytes(file.id.get_file_image())


def _group(file: Any, name: str, due: str, path: str | os.PathLike) -> Any:
    group = _member(file, name, path)
    if not hasattr(group, 'keys'):
        found = ', '.join(itertools.islice(file, 5)) or 'nothing'
        raise CaffeError(f'{path}: expected {due} with a group "{name}", found {found}')
    return group


def _member(group: Any, name: str, path: str | os.PathLike) -> Any:
    """Return what a group holds under a name, None if nothing.

    Raises CaffeError for a link, which may lead nowhere, or to any file of the machine.
    """
    link = group.get(name, getlink=True)
    if hasattr(link, 'path'):
        raise CaffeError(
            f'{path}: {group.name}/{name}: expected values, found a link to '
            f'{getattr(link, "filename", "")}{link.path}'
        )
    return link and group[name]


def _blobs(source: wire.WireFile, root: Any, kind: str) -> dict[str, list[StoredBlob]]:
    """Return the blobs 0, 1, ... of each group within `root`, and under '' its own."""
    found: dict[str, dict[str, StoredBlob]] = {}
    for name, key, dataset in _datasets(root, '', source.path, itertools.count(1)):
        where = f'{source.path}: {name or kind}: blob {key}' + ': diff' * (kind == 'diff')
        found.setdefault(name, {})[key] = _stored(source, dataset, where)
    for name, blobs in found.items():
        for i in range(len(blobs)):
            if str(i) not in blobs:
                raise CaffeError(
                    f'{source.path}: {name or kind}: blob {i} is missing, found '
                    f'{", ".join(sorted(blobs)[:5])}'
                )
    return {name: [blobs[str(i)] for i in range(len(blobs))] for name, blobs in found.items()}


def _with_diffs(blobs: list[StoredBlob], diffs: list[StoredBlob]) -> list[StoredBlob]:
    return [replace(blob, diff=diff) for blob, diff in zip(blobs, diffs)] + blobs[len(diffs) :]


def _datasets(
    group: Any, name: str, path: str, count: Iterator[int], depth: int = MAX_DEPTH
) -> Iterator[tuple[str, str, Any]]:
    """Yield each dataset within a group: the name of its own group, its key there, itself."""
    for key in group:
        inner = f'{name}/{key}' if name else key
        if next(count) > MAX_OBJECTS:
            raise CaffeError(f'{path}: more than {MAX_OBJECTS} objects; no net has so many')
        if not depth or len(inner) > wire.MAX_NAME:
            raise CaffeError(
                f'{path}: {inner[:40]}...: nested more than {MAX_DEPTH} deep, or '
                f'named in more than {wire.MAX_NAME} characters'
            )
        item = _member(group, key, path)
        if hasattr(item, 'keys'):
            yield from _datasets(item, inner, path, count, depth - 1)
        else:
            yield name, key, item


def _place(source: wire.WireFile, dataset: Any, where: str) -> int:
    """Return where in the file the values of a dataset begin, all in one piece.

    Raises CaffeError for the ways to store values that Caffe does not use: in chunks, with
    filters, in other files or datasets, not at all.
    """
    place = dataset.id.get_offset()
    if place is None and dataset.size:
        layout = 'in chunks' if dataset.chunks else 'in another place, or nowhere'
        raise CaffeError(f'{where}: expected contiguous values, found them {layout}')
    if place is not None and place + dataset.nbytes > source.size:
        raise CaffeError(
            f'{where}: needs {dataset.nbytes} bytes at byte {place}, the file has {source.size}'
        )
    return place or 0


def _stored(source: wire.WireFile, dataset: Any, where: str) -> StoredBlob:
    dtype = dataset.dtype
    plain = dataset.id.get_type().get_size() == dtype.itemsize and dataset.shape is not None
    if dtype.kind != 'f' or not plain:
        raise CaffeError(f'{where}: expected floats, found {dtype}')
    shape = check_shape(dataset.shape, where)
    runs = [wire.Run(_place(source, dataset, where), dataset.size)]
    return StoredBlob(where, shape, dtype, partial(source.load, runs, dtype))


def _single(source: wire.WireFile, file: Any, name: str, kind: str) -> bytes:
    """Return the bytes of a dataset of one number or string."""
    dataset, where = _member(file, name, source.path), f'{source.path}: {name}'
    if dataset is None or dataset.dtype.kind != kind or dataset.size != 1:
        raise CaffeError(f'{where}: expected one {"number" if kind == "i" else "string"}')
    if dataset.nbytes > _MAX_TEXT:
        raise CaffeError(f'{where}: {dataset.nbytes} bytes, expected at most {_MAX_TEXT}')
    place = _place(source, dataset, where)
    return source.read(place, place + dataset.nbytes)


def _put_all(group: Any, arrays: Sequence[np.ndarray | None]) -> None:
    for i, array in enumerate(array for array in arrays if array is not None):
        group.create_dataset(str(i), data=np.asarray(array, np.float32))
