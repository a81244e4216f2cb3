"""Show what a weight file holds, as a table with a row for each blob."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from caffe_port.blob import format_shape
from caffe_port.errors import printable
from caffe_port.files.named import ReadBlob
from caffe_port.files.stored import StoredLayer
from caffe_port.files.weights import count_bytes, name_blobs

_CHUNK = 1 << 20
_HEAD = ['layer', 'type', 'blob', 'shape', 'parameters', 'min', 'mean', 'max', 'std', '']
_NUMBERS = range(4, 9)  # columns set flush right


class Statistics(NamedTuple):
    """Statistics of all values; nan if there are none."""

    min: float
    mean: float
    max: float
    std: float


def compute_statistics(values: np.ndarray) -> Statistics:
    """Return minimum, mean, maximum and standard deviation, summed in float64."""
    flat = values.reshape(-1)
    if not flat.size:
        return Statistics(*[math.nan] * 4)
    parts = [flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK)]
    with np.errstate(invalid='ignore', over='ignore'):
        mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / flat.size
        squares = sum(float(np.square(part - np.float64(mean)).sum()) for part in parts)
    return Statistics(float(flat.min()), mean, float(flat.max()), math.sqrt(squares / flat.size))


def format_layers(layers: Sequence[StoredLayer], read: ReadBlob) -> Iterator[str]:
    """Yield the lines of the table; one blob is in memory at a time.

    Layers whose values are all zero, or not all finite, are marked.
    """
    rows = [_HEAD]
    for layer in layers:
        found = [compute_statistics(read(blob)) for blob in layer.blobs]
        first = [printable(layer.name), printable(layer.type)]
        mark = _mark([each for each, blob in zip(found, layer.blobs) if blob.count])
        for name, blob, values in zip(name_blobs(layer), layer.blobs, found):
            numbers = [f'{blob.count:,}', *[f'{value:.4g}' for value in values]]
            rows.append([*first, name, format_shape(blob.shape), *numbers, mark])
            first, mark = ['', ''], ''
    yield from align_columns(rows, _NUMBERS)
    yield summarize(layers)


def align_columns(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> Iterator[str]:
    """Yield each row as a line with its cells aligned in columns, those in `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        yield '  '.join(cells).rstrip()


def summarize(layers: Sequence[StoredLayer]) -> str:
    """Count layers, blobs, parameters and bytes."""
    blobs = sum(len(layer.blobs) for layer in layers)
    return (
        f'{len(layers)} layers, {blobs} blobs, {count_bytes(layers) // 4:,} parameters, '
        f'{count_bytes(layers):,} bytes'
    )


def _mark(found: Sequence[Statistics]) -> str:
    if not all(math.isfinite(value) for values in found for value in values):
        return 'NOT FINITE'
    return 'ALL ZERO' if found and all(values.min == values.max == 0 for values in found) else ''
