"""New databases, LMDB or LevelDB, that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from caffe_port.errors import CaffeError, WriteError

BACKENDS = 'lmdb', 'leveldb'
_MAP_SIZE = 1 << 40  # as in Caffe; the file is as large as what is in it
_RECORDS_AT_ONCE = 1000


class _Database(Protocol):
    """What a database offers while it is written."""

    @property
    def error(self) -> type[Exception]: ...

    def put(self, key: bytes, value: bytes) -> None: ...

    def commit(self) -> None: ...

    def close(self) -> None: ...


class _Lmdb:
    def __init__(self, folder: str, name: str):
        try:
            import lmdb
        except ImportError as error:
            raise CaffeError(f'{name}: an LMDB needs lmdb: pip install lmdb') from error
        self.error = lmdb.Error
        self._environment = lmdb.open(folder, map_size=_MAP_SIZE)
        self._transaction = self._environment.begin(write=True)

    def put(self, key: bytes, value: bytes) -> None:
        self._transaction.put(key, value)

    def commit(self) -> None:
        self._transaction.commit()
        self._transaction = self._environment.begin(write=True)

    def close(self) -> None:
        self._transaction.abort()
        self._environment.close()


class _LevelDb:
    def __init__(self, folder: str, name: str):
        try:
            import plyvel
        except ImportError as error:
            raise CaffeError(f'{name}: a LevelDB needs plyvel: pip install plyvel') from error
        self.error = plyvel.Error
        self._database = plyvel.DB(folder, create_if_missing=True)
        self._batch = self._database.write_batch(sync=True)

    def put(self, key: bytes, value: bytes) -> None:
        self._batch.put(key, value)

    def commit(self) -> None:
        self._batch.write()
        self._batch = self._database.write_batch(sync=True)

    def close(self) -> None:
        self._database.close()


class NewDatabase:
    """A database in the making: `put` adds a record, and `count` counts them."""

    def __init__(self, database: _Database, name: str):
        self._database, self._name, self.count = database, name, 0

    def put(self, key: bytes, value: bytes) -> bool:
        """Add a record; return whether the records up to it have been committed."""
        try:
            self._database.put(key, value)
            self.count += 1
            if self.count % _RECORDS_AT_ONCE:
                return False
            self._database.commit()
        except (self._database.error, OSError) as error:
            where = key.decode(errors='replace')
            raise WriteError(f'{self._name}: record {where} not written: {error}') from error
        return True


@contextmanager
def create_database(backend: str, path: str) -> Iterator[NewDatabase]:
    """Write a database, which is at `path` once the body is done.

    Until then it has a temporary name beside it. When the body raises, nothing is left.

    Raises CaffeError for an unknown backend, WriteError if something is at `path` already or
    the disk refuses.
    """
    if backend not in BACKENDS:
        raise CaffeError(f'Unknown database backend "{backend}"; there are {", ".join(BACKENDS)}')
    target = Path(path)
    # As in Caffe an LMDB makes its folder, a LevelDB takes an empty one.
    empty = backend == 'leveldb' and target.is_dir() and not any(target.iterdir())
    if os.path.lexists(target) and not empty:
        raise WriteError(f'{path}: exists; a new database needs a name of its own')
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    try:
        temporary.mkdir()
    except OSError as error:
        raise WriteError(f'{path}: not written: {error.strerror}') from error
    try:
        database = (_Lmdb if backend == 'lmdb' else _LevelDb)(str(temporary), path)
        try:
            yield NewDatabase(database, path)
            database.commit()
        except (database.error, OSError) as error:
            raise WriteError(f'{path}: not written: {error}') from error
        finally:
            database.close()
        os.rename(temporary, target)
    except OSError as error:
        raise WriteError(f'{path}: not written: {error.strerror or error}') from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
