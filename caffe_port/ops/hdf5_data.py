"""HDF5Data, which feeds datasets of HDF5 files, and HDF5Output, which writes one."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
from torch import Tensor

from caffe_port import parallel, plugins
from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError, WriteError, replacing
from caffe_port.mode import TEST
from caffe_port.ops.base import Op, Shape
from caffe_port.ops.source import Source


def _h5py(path: str) -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise CaffeError(f'{path}: HDF5 files need h5py: pip install h5py') from error
    return h5py


class HDF5Data(Source):
    """Feed the datasets named as the tops from the files that a list names, as
    hdf5_data_layer.cpp.

    A batch may span files. Of many ranks that train each takes every n-th row. With shuffle
    the order of files is drawn anew for each pass over them, and that of rows for each pass
    over a file. As in Caffe it is the same in every run, whatever random_seed; the orders
    themselves are not Caffe's, which come from the C library's rand().
    """

    tops = (1, float('inf'))

    def setup(self) -> None:
        p = self.param.hdf5_data_param
        self.require(p.batch_size > 0, 'hdf5_data_param: batch_size must be positive')
        self.require(
            not self.param.HasField('transform_param'), 'HDF5Data takes no transform_param'
        )
        try:
            with open(p.source, encoding='utf-8') as file:
                self._files = file.read().split()
        except (OSError, UnicodeDecodeError) as error:
            raise CaffeError(f'{p.source}: not read as a list of files: {error}') from error
        self.require(bool(self._files), f'{p.source}: expected file names, found none')
        # Rows seen by all ranks, passes over all files, files loaded: from these all follows.
        self._offset = self._passes = self._loads = self._file = self._row = 0
        self._load()
        self.shapes = [(p.batch_size, *rows.shape[1:]) for rows in self._rows]
        self.begin(self.param.data_param.prefetch)

    def _order(self, count: int, number: int) -> Sequence[int]:
        """Return the `number`-th order of so many files or rows."""
        if not self.param.hdf5_data_param.shuffle:
            return range(count)
        return np.random.RandomState(number + 1).permutation(count).tolist()

    def _load(self) -> None:
        """Read the datasets of the current file."""
        path = self._files[self._order(len(self._files), self._passes)[self._file]]
        h5py = _h5py(path)
        try:
            with h5py.File(path, 'r') as file:
                self._rows = [self._dataset(h5py, file, top, path) for top in self.param.top]
        except OSError as error:
            raise CaffeError(f'{path}: not read as an HDF5 file: {error}') from error
        for top, rows in zip(self.param.top, self._rows):
            expected = len(self._rows[0])
            if len(rows) != expected:
                raise CaffeError(
                    f'{path}: "{top}": expected {expected} rows as "{self.param.top[0]}" has, '
                    f'found {len(rows)}'
                )
        self._row_order = self._order(len(self._rows[0]), self._loads)

    @staticmethod
    def _dataset(h5py: ModuleType, file, top: str, path: str) -> np.ndarray:
        found = file.get(top)
        if not isinstance(found, h5py.Dataset):
            raise CaffeError(
                f'{path}: expected a dataset "{top}", found {", ".join(sorted(file)) or "nothing"}'
            )
        if found.dtype.kind not in 'fiu' or not found.shape or not found.shape[0]:
            raise CaffeError(
                f'{path}: "{top}": expected rows of numbers, found {found.dtype} of shape '
                f'{format_shape(found.shape or ())}'
            )
        return np.asarray(found[()], np.float32)

    def read(self) -> tuple[np.ndarray, ...]:
        tops = [np.empty(shape, np.float32) for shape in self.shapes]
        ranks = 1 if self.phase == TEST else parallel.solver_count()
        for item in range(len(tops[0])):
            while ranks > 1 and self._offset % ranks != parallel.solver_rank():
                self._advance()
            row = self._row_order[self._row]
            for name, top, rows in zip(self.param.top, tops, self._rows):
                if rows.shape[1:] != top.shape[1:]:
                    raise CaffeError(
                        f'{self._files[self._file]}: "{name}": expected rows of '
                        f'{format_shape(top.shape[1:])}, found {format_shape(rows.shape[1:])}'
                    )
                top[item] = rows[row]
            self._advance()
        return tuple(tops)

    def _advance(self) -> None:
        self._offset += 1
        self._row += 1
        if self._row < len(self._rows[0]):
            return
        self._row, self._loads = 0, self._loads + 1
        if len(self._files) == 1:
            self._row_order = self._order(len(self._rows[0]), self._loads)
            return
        self._file += 1
        if self._file == len(self._files):
            self._file, self._passes = 0, self._passes + 1
        self._load()

    def position(self) -> dict:
        return {
            'files': len(self._files),
            'offset': self._offset,
            'passes': self._passes,
            'loads': self._loads,
            'file': self._file,
            'row': self._row,
        }

    def go_to(self, position: dict) -> None:
        files, *places = (
            int(position[name]) for name in ('files', 'offset', 'passes', 'loads', 'file', 'row')
        )
        if files != len(self._files) or min(places) < 0 or places[3] >= files:
            raise CaffeError(f'file {places[3]} of {files}, here are {len(self._files)}')
        loaded = self._passes, self._loads, self._file
        self._offset, self._passes, self._loads, self._file, self._row = places
        if loaded != (self._passes, self._loads, self._file):
            self._load()
        if self._row >= len(self._rows[0]):
            raise CaffeError(f'row {self._row} of {len(self._rows[0])} in the file')


class HDF5Output(Op):
    """Write the two bottoms to an HDF5 file as `data` and `label`, N x C x H x W, as
    hdf5_output_layer.cpp.

    The first forward replaces the file, later ones add rows to it; Caffe stops there. Of
    many ranks the first writes alone.
    """

    bottoms, tops = (2, 2), (0, 0)
    forceable = (False,)

    def setup(self, data: Shape, label: Shape) -> None:
        self._path = self.param.hdf5_output_param.file_name
        self.require(self._path != '', 'hdf5_output_param: file_name is not given')
        self._begun = False

    def forward(self, data: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        self.require(
            data.shape[:1] == label.shape[:1] and min(data.dim(), label.dim()) > 0,
            f'data {tuple(data.shape)} and label {tuple(label.shape)} must have as many rows',
        )
        self.require(
            max(data.dim(), label.dim()) <= 4,
            f'data {tuple(data.shape)} and label {tuple(label.shape)} must have at most 4 axes',
        )
        if not data.is_meta and not parallel.solver_rank():
            if plugins.is_restricted():
                raise CaffeError(
                    f'{self._path}: not written: this command lets no prototxt choose a file to '
                    'write'
                )
            self._write({'data': _rows_of(data), 'label': _rows_of(label)})
        return ()

    def _write(self, rows: dict[str, np.ndarray]) -> None:
        h5py = _h5py(self._path)
        if not self._begun:
            with replacing(self._path) as temporary, h5py.File(temporary, 'w') as file:
                for name, values in rows.items():
                    file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]))
            self._begun = True
            return
        try:
            with h5py.File(self._path, 'r+') as file:
                for name, values in rows.items():
                    begin = len(file[name])
                    file[name].resize(begin + len(values), 0)
                    file[name][begin:] = values
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise WriteError(f'{self._path}: rows not added: {error}') from error


def _rows_of(bottom: Tensor) -> np.ndarray:
    """Return a blob of up to 4 axes with 4."""
    return bottom.detach().cpu().numpy().reshape(*bottom.shape, *(1,) * (4 - bottom.dim()))
