"""How fast weight files are read and written, and in how much memory.

    python tests/bench_files.py [--rounds 5] [--folder DIR]

An FCN-32s of 134 million parameters is written as a .caffemodel to a temporary folder.
Each round reads it into arrays that exist already, and into new ones, and reads the
same file with numpy.fromfile, into a new one; writes it, and writes as many bytes with
ndarray.tofile and fsync. What is printed are medians over rounds, all from one run with
the file in the page cache, and the peak of memory in a process of its own. Needs 2 GB
of disk and of memory.
"""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from caffe_port.files import caffemodel
from caffe_port.proto.caffe_pb2 import NetParameter

CONVS = [
    (64, 3),
    (64, 64),
    (128, 64),
    (128, 128),
    (256, 128),
    (256, 256),
    (256, 256),
    (512, 256),
    (512, 512),
    (512, 512),
    (512, 512),
    (512, 512),
    (512, 512),
]
READ_BAR, WRITE_BAR, MEMORY_BAR = 3, 4, 1.3


def shapes() -> dict[str, list[tuple[int, ...]]]:
    """The parameters of FCN-32s for PASCAL VOC, layer by layer."""
    layers = {f'conv{i}': [(out, inner, 3, 3), (out,)] for i, (out, inner) in enumerate(CONVS)}
    return {
        **layers,
        'fc6': [(4096, 512, 7, 7), (4096,)],
        'fc7': [(4096, 4096, 1, 1), (4096,)],
        'score_fr': [(21, 4096, 1, 1), (21,)],
        'upscore': [(21, 21, 64, 64)],
    }


def net() -> NetParameter:
    param = NetParameter(name='fcn32s')
    for name in shapes():
        param.layer.add(name=name, type='Convolution')
    return param


def empty() -> dict[str, list[np.ndarray]]:
    return {
        name: [np.empty(shape, np.float32) for shape in blobs] for name, blobs in shapes().items()
    }


def read_into(path: str, arrays: dict[str, list[np.ndarray]]) -> None:
    for layer in caffemodel.read(path):
        for stored, array in zip(layer.blobs, arrays[layer.name]):
            stored.read_into(array)


def read_new(path: str) -> list[np.ndarray]:
    return [stored.array() for layer in caffemodel.read(path) for stored in layer.blobs]


def write_raw(path: str, array: np.ndarray) -> None:
    with open(path, 'wb') as out:
        array.tofile(out)
        os.fsync(out.fileno())


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(rounds: int, actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each action, over rounds in which they take turns.

    A round before these is not counted: in it the system finds its memory.
    """
    times: dict[str, list[float]] = {what: [] for what in actions}
    for _ in range(rounds + 1):
        for what, action in actions.items():
            times[what].append(seconds(action))
    return {what: statistics.median(each[1:]) for what, each in times.items()}


def peak() -> int:
    """The most memory this process has had, in bytes.

    Not ru_maxrss: that starts from what the parent had when it forked.
    """
    status = pathlib.Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) * 1024


def measure_memory(path: str) -> None:
    """Print the peak while reading and, beyond the arrays, while writing; in bytes."""
    before = peak()
    arrays = empty()
    read_into(path, arrays)
    after = peak()
    caffemodel.write(path + '.memory', net(), arrays)
    print(after - before, peak() - after)


def measure_times(path: str, raw: str, rounds: int) -> dict[str, float]:
    """Write the net to `path`, and return the median seconds of each way to read and write."""
    arrays = empty()
    values = np.random.default_rng(0)
    for blobs in arrays.values():
        for array in blobs:
            array[...] = values.random(array.shape, np.float32)
    caffemodel.write(path, net(), arrays)
    block = np.fromfile(path, np.uint8)
    reading: dict[str, Callable[[], object]] = {
        'read': lambda: read_into(path, arrays),
        'read, new arrays': lambda: read_new(path),
        'numpy.fromfile': lambda: np.fromfile(path, np.uint8),
    }
    writing: dict[str, Callable[[], object]] = {
        'write': lambda: caffemodel.write(path, net(), arrays),
        'tofile and fsync': lambda: write_raw(raw, block),
    }
    return measure(rounds, reading) | measure(rounds, writing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--folder', help='where to put the temporary files')
    parser.add_argument('--memory-of', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        measure_memory(options.memory_of)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, raw = os.path.join(folder, 'fcn.caffemodel'), os.path.join(folder, 'raw')
        times = measure_times(path, raw, options.rounds)
        size = os.path.getsize(path)
        output = subprocess.run(
            [sys.executable, __file__, '--memory-of', path],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        reading, writing = map(int, output.split())
    for what, value in times.items():
        print(f'{what:18}{value:7.3f} s  {size / value / 1e9:6.2f} GB/s')
    print(
        f'file: {size / 1e6:.0f} MB, {size // 4 / 1e6:.0f} million parameters; '
        f'{options.rounds} rounds'
    )
    print(
        f'read: {times["read"] / times["numpy.fromfile"]:.2f} times numpy.fromfile '
        f'(bar {READ_BAR}), {times["read, new arrays"] / times["numpy.fromfile"]:.2f} '
        'into new arrays'
    )
    print(
        f'write: {times["write"] / times["tofile and fsync"]:.2f} times tofile and fsync '
        f'(bar {WRITE_BAR})'
    )
    print(
        f'memory: {reading / size:.3f} of the file to read, the arrays included '
        f'(bar {MEMORY_BAR}); {writing / size:.3f} more to write'
    )


if __name__ == '__main__':
    main()
