"""Caffe's HDF5 files: .caffemodel.h5 and .solverstate.h5. They need h5py.

Weights are /data/<layer>/<i>, their gradients /diff/<layer>/<i>, a solver's history is
/history/<i>, all float32. Source: Caffe's Net::ToHDF5, SGDSolver::SnapshotSolverStateToHDF5.
"""

from __future__ import annotations

import operator
import os
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Iterator, Sequence

import numpy as np

from caffe_port.errors import CaffeError, replacing
from caffe_port.proto.caffe_pb2 import NetParameter
from caffe_port.stored import (Arrays, LayerBlobs, State, StoredBlob, declared_shape,
                               layers_to_write)

# A compressed dataset may be larger than its file, a forged one without bound.
MAX_INFLATION = 32
_MIN_BOUND = 1 << 26
_GROWTH = 1 << 24  # bytes by which a file in memory grows


def read(path: str | os.PathLike) -> list[LayerBlobs]:
    """The layers of a .caffemodel.h5, by name; the format knows neither types nor order.

    Raises CaffeError for what is no such file, or without h5py.
    """
    with _open(path) as file:
        data, diff = _group(file, 'data', 'a .caffemodel.h5', path), file.get('diff')
        names: dict[str, None] = {}

        def note(name: str, item: Any) -> None:
            if not hasattr(item, 'keys'):
                names[name.rpartition('/')[0]] = None

        # Each object once, and links out of the file not at all.
        data.visititems(note)
        return [LayerBlobs(name, '', _blobs(data, name, path, diff)) for name in names]


def read_state(path: str | os.PathLike) -> State:
    """The content of a .solverstate.h5. Raises CaffeError for what is no such file."""
    with _open(path) as file:
        history = _group(file, 'history', 'a .solverstate.h5', path)
        learned = _single(file, 'learned_net', path)
        return State(iter=operator.index(_single(file, 'iter', path)),
                     learned_net=learned.decode('utf-8') if isinstance(learned, bytes)
                     else str(learned),
                     current_step=operator.index(_single(file, 'current_step', path)),
                     history=_blobs(file, 'history', path) if len(history) else [])


def write_hdf5(path: str | os.PathLike, net: NetParameter, blobs: Arrays,
               diffs: Arrays | None = None) -> None:
    """Write a .caffemodel.h5: a group for each layer of `net`, with the blobs under its name."""
    with _create(path) as file:
        groups = [(file.create_group('data'), 0)]
        if diffs:
            groups.append((file.create_group('diff'), 1))
        for layer, pairs in layers_to_write(path, net, blobs, diffs):
            for group, which in groups:
                if not layer.name or layer.name in group:
                    raise CaffeError(f'{path}: not written: two layers named "{layer.name}", or '
                                     'one without a name; HDF5 keeps them by name')
                _put_all(group.create_group(layer.name),
                         [pair[which] for pair in pairs if pair[which] is not None])


def write_state_hdf5(path: str | os.PathLike, iter: int, learned_net: str | os.PathLike,
                     history: Sequence[np.ndarray], current_step: int) -> None:
    """Write a .solverstate.h5 as Caffe does."""
    with _create(path) as file:
        file.create_dataset('iter', data=np.array([iter], np.int32))
        file.create_dataset('current_step', data=np.array([current_step], np.int32))
        _put_string(file, 'learned_net', os.fspath(learned_net))
        _put_all(file.create_group('history'), history)


def _h5py(path: str | os.PathLike) -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise CaffeError(f'{path}: HDF5 files need h5py, which is not installed: '
                         'pip install h5py') from error
    return h5py


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Any]:
    """An HDF5 file open for reading; what the library says of it becomes CaffeError."""
    h5py = _h5py(path)
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except CaffeError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CaffeError(f'{path}: damaged, or not an HDF5 file of Caffe\'s: '
                         f'{" ".join(str(error).split())}') from error


@contextmanager
def _create(path: str | os.PathLike) -> Iterator[Any]:
    """An HDF5 file to fill, written whole when done.

    It grows in memory: the library ends the process where a disk refuses its writes.
    """
    h5py = _h5py(path)
    with h5py.File(os.fspath(path), 'w', driver='core', backing_store=False,
                   block_size=_GROWTH) as file:
        yield file
        file.flush()
        with replacing(path) as temporary:
            temporary.write_bytes(file.id.get_file_image())


def _group(file: Any, name: str, due: str, path: str | os.PathLike) -> Any:
    group = file.get(name)
    if not hasattr(group, 'keys'):
        found = ', '.join(sorted(file)[:5]) or 'nothing'
        raise CaffeError(f'{path}: expected {due} with a group "{name}", found {found}')
    return group


def _single(file: Any, name: str, path: str | os.PathLike) -> Any:
    dataset = file[name]
    if dataset.size != 1 or dataset.nbytes > 1 << 16:
        raise CaffeError(f'{path}: {name}: expected one value, found {dataset.shape}')
    return np.ravel(dataset[()])[0]


def _blobs(parent: Any, name: str, path: str | os.PathLike,
           diffs: Any = None) -> list[StoredBlob]:
    """The blobs 0, 1, ... of the group `name`."""
    group = parent[name] if name else parent
    blobs = []
    for i in range(sum(not hasattr(item, 'keys') for item in group.values())):
        where = f'{path}: {name}: blob {i}'
        if str(i) not in group:
            raise CaffeError(f'{where} is missing, found {", ".join(sorted(group)[:5])}')
        diff = diffs.get(f'{name}/{i}') if hasattr(diffs, 'keys') else None
        blobs.append(_stored(group[str(i)], where, path,
                             diff and _stored(diff, f'{where}: diff', path)))
    return blobs


def _stored(dataset: Any, where: str, path: str | os.PathLike,
            diff: StoredBlob | None = None) -> StoredBlob:
    if dataset.dtype.kind != 'f' or dataset.shape is None:
        raise CaffeError(f'{where}: expected floats, found {dataset.dtype}')
    shape = declared_shape(dataset.shape, where)
    bound = max(MAX_INFLATION * os.path.getsize(path), _MIN_BOUND)
    if dataset.is_virtual or dataset.external or dataset.file.filename != os.fspath(path):
        raise CaffeError(f'{where}: its values are in another file')
    if dataset.nbytes > bound:
        raise CaffeError(f'{where}: expected at most {bound} bytes from a file of this size, '
                         f'found {dataset.nbytes}')
    return StoredBlob(where, shape, dataset.dtype, partial(_fill, path, dataset.name, shape), diff)


def _fill(path: str | os.PathLike, name: str, shape: tuple[int, ...], out: np.ndarray) -> None:
    with _open(path) as file:
        if file[name].shape != shape:
            raise CaffeError(f'{path}: {name} has changed since the file was opened')
        if out.size:
            file[name].read_direct(out.reshape(shape))


def _put_all(group: Any, arrays: Sequence[np.ndarray]) -> None:
    for i, array in enumerate(arrays):
        group.create_dataset(str(i), data=np.asarray(array, np.float32))


def _put_string(file: Any, name: str, text: str) -> None:
    """Store a string with its closing zero, as Caffe's reader needs it."""
    from h5py import h5d, h5s, h5t
    data = text.encode('utf-8') + b'\0'
    kind = h5t.C_S1.copy()
    kind.set_size(len(data))
    dataset = h5d.create(file.id, name.encode(), kind, h5s.create(h5s.SCALAR))
    dataset.write(h5s.ALL, h5s.ALL, np.array(data, f'S{len(data)}'), kind)
