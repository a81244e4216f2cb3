"""Caffe's HDF5 files: .caffemodel.h5 and .solverstate.h5. They need h5py.

Weights are /data/<layer>/<i>, their gradients /diff/<layer>/<i>, a solver's history is
/history/<i>, all float32. Source: Caffe's Net::ToHDF5, SGDSolver::SnapshotSolverStateToHDF5.
"""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from caffe_port.errors import CaffeError, replacing
from caffe_port.files import wire
from caffe_port.files.stored import (
    Arrays,
    LayerBlobs,
    Place,
    State,
    StoredBlob,
    declared_shape,
    layers_to_write,
)
from caffe_port.files.upgrade import MAX_LAYERS
from caffe_port.proto.caffe_pb2 import NetParameter

# A compressed dataset may be larger than its file, a forged one without bound.
MAX_INFLATION = 32
# A few bytes can nest groups, or let them hold themselves, without end.
MAX_DEPTH = 32
MAX_OBJECTS = MAX_LAYERS + wire.MAX_BLOBS
_MIN_BOUND = 1 << 26
_GROWTH = 1 << 24  # bytes by which a file in memory grows


def read(path: str | os.PathLike) -> list[LayerBlobs]:
    """The layers of a .caffemodel.h5, by name; the format knows neither types nor order.

    The file stays open for as long as a blob of it is held, as another of its name may come.

    Raises CaffeError for what is no such file, for links in it, or without h5py.
    """
    due = 'a .caffemodel.h5'
    with _open(path) as file:
        layers = _blobs(_group(file, 'data', due, path), 'data', path)
        if not layers:
            raise CaffeError(f'{path}: expected {due}, found no blobs in it')
        diff = _member(file, 'diff', path)
        diffs = _blobs(diff, 'diff', path) if hasattr(diff, 'keys') else {}
        return [
            LayerBlobs(name, '', _with_diffs(blobs, diffs.get(name, [])))
            for name, blobs in layers.items()
        ]


def read_state(path: str | os.PathLike) -> State:
    """The content of a .solverstate.h5. Raises CaffeError for what is no such file."""
    with _open(path) as file:
        history = _blobs(_group(file, 'history', 'a .solverstate.h5', path), 'history', path)
        learned = _single(file, 'learned_net', path)
        return State(
            iter=operator.index(_single(file, 'iter', path)),
            learned_net=learned.decode('utf-8') if isinstance(learned, bytes) else str(learned),
            current_step=operator.index(_single(file, 'current_step', path)),
            history=history.get('', []),
        )


def write_hdf5(
    path: str | os.PathLike, net: NetParameter, blobs: Arrays, diffs: Arrays | None = None
) -> None:
    """Write a .caffemodel.h5: a group for each layer of `net`, with the blobs under its name."""
    with _create(path) as file:
        groups = [(file.create_group('data'), 0)]
        if diffs:
            groups.append((file.create_group('diff'), 1))
        for layer, pairs in layers_to_write(path, net, blobs, diffs):
            for group, which in groups:
                if not layer.name or layer.name in group:
                    raise CaffeError(
                        f'{path}: not written: two layers named "{layer.name}", or '
                        'one without a name; HDF5 keeps them by name'
                    )
                _put_all(
                    group.create_group(layer.name),
                    [pair[which] for pair in pairs if pair[which] is not None],
                )


def write_state_hdf5(
    path: str | os.PathLike,
    iter: int,
    learned_net: str | os.PathLike,
    history: Sequence[np.ndarray],
    current_step: int,
) -> None:
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
        raise CaffeError(
            f'{path}: HDF5 files need h5py, which is not installed: pip install h5py'
        ) from error
    return h5py


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Any]:
    """An HDF5 file to read from until nobody holds it; it is closed at once if it is refused."""
    h5py = _h5py(path)
    with _refused(path):
        file = h5py.File(path, 'r')
        try:
            yield file
        except BaseException:
            file.close()
            raise


@contextmanager
def _refused(path: str | os.PathLike) -> Iterator[None]:
    """Let what the library says of a file become CaffeError."""
    try:
        yield
    except CaffeError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CaffeError(
            f"{path}: damaged, or not an HDF5 file of Caffe's: {' '.join(str(error).split())}"
        ) from error


@contextmanager
def _create(path: str | os.PathLike) -> Iterator[Any]:
    """An HDF5 file to fill, written whole when done.

    It grows in memory: the library ends the process where a disk refuses its writes.
    """
    h5py = _h5py(path)
    with h5py.File(
        os.fspath(path), 'w', driver='core', backing_store=False, block_size=_GROWTH
    ) as file:
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
    """What a group holds under a name, None if nothing.

    Raises CaffeError for a link, which may lead nowhere, or to any file of the machine.
    """
    link = group.get(name, getlink=True)
    if hasattr(link, 'path'):
        raise CaffeError(
            f'{path}: {group.name}/{name}: expected values, found a link to '
            f'{getattr(link, "filename", "")}{link.path}'
        )
    return link and group[name]


def _single(file: Any, name: str, path: str | os.PathLike) -> Any:
    dataset = _member(file, name, path)
    if dataset is None or dataset.size != 1 or dataset.nbytes > 1 << 16:
        found = 'nothing' if dataset is None else dataset.shape
        raise CaffeError(f'{path}: {name}: expected one value, found {found}')
    return np.ravel(dataset[()])[0]


def _blobs(root: Any, kind: str, path: str | os.PathLike) -> dict[str, list[StoredBlob]]:
    """The blobs 0, 1, ... of each group within `root`, and under '' its own."""
    found: dict[str, dict[str, StoredBlob]] = {}
    for name, key, dataset in _datasets(root, '', path, MAX_DEPTH, itertools.count(1)):
        where = Place((os.fspath(path), name or kind, f'blob {key}' + ': diff' * (kind == 'diff')))
        found.setdefault(name, {})[key] = _stored(root.file, kind, name, key, dataset, where)
    for name, blobs in found.items():
        for i in range(len(blobs)):
            if str(i) not in blobs:
                raise CaffeError(
                    f'{path}: {name or kind}: blob {i} is missing, found '
                    f'{", ".join(sorted(blobs)[:5])}'
                )
    return {name: [blobs[str(i)] for i in range(len(blobs))] for name, blobs in found.items()}


def _with_diffs(blobs: list[StoredBlob], diffs: list[StoredBlob]) -> list[StoredBlob]:
    return [replace(blob, diff=diff) for blob, diff in zip(blobs, diffs)] + blobs[len(diffs) :]


def _datasets(
    group: Any, name: str, path: str | os.PathLike, depth: int, count: Iterator[int]
) -> Iterator[tuple[str, str, Any]]:
    """Each dataset within a group: the name of its own group, its key there, itself."""
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
            yield from _datasets(item, inner, path, depth - 1, count)
        else:
            yield name, key, item


def _stored(file: Any, kind: str, name: str, key: str, dataset: Any, where: Place) -> StoredBlob:
    if dataset.dtype.kind != 'f' or dataset.shape is None:
        raise CaffeError(f'{where}: expected floats, found {dataset.dtype}')
    shape = declared_shape(dataset.shape, where)
    bound = max(MAX_INFLATION * file.id.get_filesize(), _MIN_BOUND)
    if dataset.is_virtual or dataset.external:
        raise CaffeError(f'{where}: its values are in another file')
    if dataset.nbytes > bound:
        raise CaffeError(
            f'{where}: expected at most {bound} bytes from a file of this size, '
            f'found {dataset.nbytes}'
        )
    return StoredBlob(where, shape, dataset.dtype, partial(_fill, file, (kind, name, key), shape))


def _fill(file: Any, names: Sequence[str], shape: tuple[int, ...], out: np.ndarray) -> None:
    if out.size:
        with _refused(file.filename):
            file['/'.join(filter(None, names))].read_direct(out.reshape(shape))


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
