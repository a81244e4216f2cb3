"""The Data layer: Datum records of an LMDB or a LevelDB."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from google.protobuf.message import DecodeError

from caffe_port import parallel
from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError
from caffe_port.mode import TEST
from caffe_port.ops import images
from caffe_port.ops.source import ImageSource
from caffe_port.proto.caffe_pb2 import DataParameter, Datum

Item = tuple[bytes, bytes]  # a key and its value


class _Lmdb:
    """An LMDB opened for reading."""

    def __init__(self, path: str):
        try:
            import lmdb
        except ImportError as error:
            raise CaffeError(f'{path}: an LMDB needs lmdb: pip install lmdb') from error
        self.error = lmdb.Error
        file = Path(path, 'data.mdb') if os.path.isdir(path) else Path(path)
        try:
            self.environment = lmdb.open(
                path, subdir=os.path.isdir(path), readonly=True, lock=False, create=False
            )
            pages = self.environment.info()['last_pgno'] + 1
            expected = pages * self.environment.stat()['psize']
            found = file.stat().st_size
        except (lmdb.Error, OSError) as error:
            raise CaffeError(f'{path}: not opened as an LMDB: {error}') from error
        # Past the end of the file there is no memory: a read there would end the process.
        if found < expected:
            raise CaffeError(f'{file}: truncated: expected {expected} bytes, found {found}')

    def cursor(self) -> _LmdbCursor:
        return _LmdbCursor(self)


class _LmdbCursor:
    """A place in an LMDB."""

    def __init__(self, database: _Lmdb):
        self._database = database
        self._cursor = database.environment.begin().cursor()

    def first(self) -> Item | None:
        return self._cursor.item() if self._cursor.first() else None

    def next(self) -> Item | None:
        return self._cursor.item() if self._cursor.next() else None

    def at(self, key: bytes) -> Item | None:
        return self._cursor.item() if self._cursor.set_key(key) else None


class _LevelDb:
    """A LevelDB opened for reading; the format lets one process do so at a time."""

    def __init__(self, path: str):
        try:
            import plyvel
        except ImportError as error:
            raise CaffeError(f'{path}: a LevelDB needs plyvel: pip install plyvel') from error
        self.error = plyvel.Error
        if not Path(path, 'CURRENT').exists():  # plyvel would make a folder
            raise CaffeError(f'{path}: not opened as a LevelDB: it has no file CURRENT')
        try:
            self.database = plyvel.DB(path, create_if_missing=False)
        except (plyvel.Error, OSError) as error:
            raise CaffeError(f'{path}: not opened as a LevelDB: {error}') from error

    def cursor(self) -> _LevelDbCursor:
        return _LevelDbCursor(self)


class _LevelDbCursor:
    """A place in a LevelDB."""

    def __init__(self, database: _LevelDb):
        self._database = database
        self._iterator: Iterator[Item] = iter(())

    def first(self) -> Item | None:
        self._iterator = self._database.database.iterator()
        return self.next()

    def next(self) -> Item | None:
        return next(self._iterator, None)

    def at(self, key: bytes) -> Item | None:
        self._iterator = self._database.database.iterator(start=key)
        item = self.next()
        return item if item and item[0] == key else None


# Neither library opens a database twice in one process.
_opened: WeakValueDictionary[str, _Lmdb | _LevelDb] = WeakValueDictionary()


class Records:
    """Walks the records of a database in the order of their keys, over and over.

    Raises CaffeError for what is no such database, or an empty one.
    """

    def __init__(self, backend: int, path: str):
        self._is_lmdb, self.path = backend == DataParameter.LMDB, path
        self._open()
        with self._reading():
            self._take(self._cursor.first())

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except self._database.error as error:
            after = f' after record {self.key!r}' if hasattr(self, 'key') else ''
            raise CaffeError(f'{self.path}: not read{after}: {error}') from error

    def _open(self) -> None:
        name = os.path.realpath(self.path)
        database = _opened.get(name)
        if database is None:
            database = _Lmdb(self.path) if self._is_lmdb else _LevelDb(self.path)
            _opened[name] = database
        self._database, self._cursor = database, database.cursor()

    def _take(self, item: Item | None) -> None:
        if item is None:
            raise CaffeError(f'{self.path}: expected records, found none')
        self.key, self.value = item

    def where(self) -> str:
        """Return what errors call the current record."""
        return f'{self.path}: record {self.key.decode(errors="replace")}'

    def datum(self) -> Datum:
        """Return the current record; raises CaffeError if it is no Datum."""
        try:
            return Datum.FromString(self.value)
        except DecodeError as error:
            raise CaffeError(
                f'{self.where()}: expected a Datum, found {len(self.value)} bytes: {error}'
            ) from error

    def walk(self) -> Iterator[Datum]:
        """Yield every record once, from the current one on."""
        first = self.key
        yield self.datum()
        self.advance()
        while self.key != first:
            yield self.datum()
            self.advance()

    def advance(self) -> None:
        """Go on to the next record, after the last to the first."""
        with self._reading():
            self._take(self._cursor.next() or self._cursor.first())

    def seek(self, key: bytes) -> None:
        """Go to the record of a key; raises CaffeError, and stays, if there is none."""
        with self._reading():
            item = self._cursor.at(key)
            if item is None:
                self._cursor.at(self.key)
                raise CaffeError(f'{self.path}: no record {key!r}')
            self._take(item)

    def __getstate__(self) -> dict:
        # A cursor cannot be copied or pickled: the copy opens its own.
        return {**self.__dict__, '_database': None, '_cursor': None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()
        self.seek(self.key)


def pixels_of(datum: Datum, color: bool | None, where: str) -> np.ndarray:
    """Return the image of a Datum, channels x H x W: uint8, or float32 if it has float_data.

    An encoded image is decoded in colour, in grey or, with None, as it is. Raises CaffeError,
    which begins with `where`, if it is none or has another number of values than its shape.
    """
    if datum.encoded:
        return images.decode(datum.data, color, where).transpose(2, 0, 1)
    shape = datum.channels, datum.height, datum.width
    values: np.ndarray = np.frombuffer(datum.data, np.uint8)
    if not values.size:
        values = np.array(datum.float_data, np.float32)
    if min(shape) <= 0 or values.size != math.prod(shape):
        raise CaffeError(
            f'{where}: expected {format_shape(shape)} values, found {values.size}; a Datum '
            'with an image file in it must say encoded'
        )
    return values.reshape(shape)


class Data(ImageSource):
    """Feed images and labels from a database of Datum records, as data_layer.cpp.

    Records come in the order of their keys, and then again from the first. In training with n
    ranks, each rank takes every n-th record. A Datum holds an encoded image or its values,
    bytes or float_data. As in Caffe 1.0 rand_skip does nothing.
    """

    tops = (1, 2)

    def open(self) -> None:
        p = self.param.data_param
        self.require(p.batch_size > 0, 'data_param: batch_size must be positive')
        self.require(p.source != '', 'data_param: source is not given')
        self.records, self.offset = Records(p.backend, p.source), 0
        image, _, where = self._image()
        shape = self.transform.shape(image, where)
        self.shapes = [(p.batch_size, *shape), (p.batch_size,)][: self.top_count]

    def read(self) -> tuple[np.ndarray, ...]:
        return self.batch_of(self.param.data_param.batch_size, self._load)[: self.top_count]

    def _load(self) -> tuple[np.ndarray, float, str]:
        # In TEST rank 0 runs alone.
        ranks = 1 if self.phase == TEST else parallel.solver_count()
        while ranks > 1 and self.offset % ranks != parallel.solver_rank():
            self._advance()
        loaded = self._image()
        self._advance()
        return loaded

    def _advance(self) -> None:
        self.records.advance()
        self.offset += 1

    def _image(self) -> tuple[np.ndarray, float, str]:
        """Return the image, the label and the place of the current record."""
        datum, where = self.records.datum(), self.records.where()
        return pixels_of(datum, self.transform.color, where), datum.label, where

    def position(self) -> dict:
        return {
            'key': self.records.key.hex(),
            'offset': self.offset,
            'random': self.transform.state(),
        }

    def go_to(self, position: dict) -> None:
        key, offset = bytes.fromhex(position['key']), int(position['offset'])
        self.transform.set_state(position['random'])
        self.records.seek(key)
        self.offset = offset
