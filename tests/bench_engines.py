"""FCN-8s through every engine at hand, and a training step of FCN-32s, on the same numbers.

python tests/bench_engines.py [--sizes 256x256 500x334 1024x1024] [--repeats 7] [--gpu]

A benchmark, not a test. Each engine has a process of its own, which loads the same weights
and computes the same picture; they take turns, so that all meet the same noise. Printed
are medians, their ratio to ours, the peak memory of each process, the largest difference of
the scores from plain PyTorch's, relative to the largest score, and the share of the machine's
rate in matrix products that the net's arithmetic, counted as direct, comes to. With --gpu
we and plain PyTorch compute on the first GPU, in each precision, and the rate and the memory are
the GPU's.

Engines that are not installed are left out: OpenCV (opencv-python-headless below 5), ONNX Runtime,
OpenVINO and pycaffe; so is a precision of 16 bits on a CPU without instructions for it, unless
--only names it. `--forward` holds Net.forward against net.module instead.

exit status: 0; 1 if --forward finds the face slow
"""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout  # noqa: F401

import argparse
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

import caffe_port as caffe
from caffe_port import mode
from caffe_port.plan.layout import Layout
from nets import voc_fcn8s
from solve.run import precision
from tests.engines import files, workers
from tests.engines.names import KINDS, SIDES

# What the face may cost over the module.
FACE_BAR = 1.03
# A precision that makes products so many times as slow is left out.
SLOW = 4


def find_contenders(kind: str, only: list[str], device: str) -> list[str]:
    """Return the engines that can run here, or those of `only` that can; name those left out."""
    found = []
    for name, contender in KINDS[kind].items():
        if device not in contender.on:
            continue
        if contender.needs and not importlib.util.find_spec(contender.needs):
            continue
        if only:
            found += [name] * (name in only)
            continue
        if device == 'cpu' and contender.precision in mode.LOW:
            slower = precision.slowdown(mode.LOW[contender.precision])
            if slower > SLOW:
                print(f'{name:15} left out: its products take {slower:.0f} times as long here')
                continue
        found.append(name)
    return found


def compare(
    kind: str, folder: Path, options: argparse.Namespace
) -> list[tuple[str, list[dict], float]]:
    device = 'gpu' if options.gpu else 'cpu'
    names = find_contenders(kind, options.only if kind in ('infer', 'train') else [], device)
    return list(workers.compare(kind, names, folder, options.repeats, options.threads, device))


def table(
    kind: str, folder: Path, options: argparse.Namespace, work_done: float, top: Mapping[str, float]
) -> Iterator[str]:
    """Yield a line for each engine; ratios are medians of the ratios turn by turn."""
    found = compare(kind, folder, options)
    own = found[0][1]
    reference = folder / 'PyTorch module.npy'
    for name, times, peak in found:
        median = statistics.median(each['seconds'] for each in times)
        ratio, busy = (
            statistics.median(mine[what] / other[what] for mine, other in zip(own, times))
            for what in ('seconds', 'busy')
        )
        line = f'{name:15} {median:8.3f} s  ours / it {ratio:5.2f}, in CPU time {busy:5.2f}'
        line += f'  {peak:5.2f} GB'
        if work_done:
            rate = top.get(KINDS[kind][name].precision, top['fp32'])
            share = 2 * work_done / median / rate
            line += f'  {share:6.1%} of the matrix rate'
        if kind == 'infer' and reference.exists():
            expected, scores = np.load(reference), np.load(folder / f'{name}.npy')
            apart = np.abs(scores - expected).max() / np.abs(expected).max()
            line += f'  scores {apart:.1e} apart'
            same = (scores.argmax(1) == expected.argmax(1)).mean()
            line += f', {same:.3%} of the classes alike'
        yield line


def count_work(size: tuple[int, int]) -> float:
    """Return the multiply-adds of FCN-8s, layer by layer."""
    net = caffe.Net(voc_fcn8s.fcn('deploy'), caffe.TEST)
    return Layout(net.module, {'data': (1, 3, *size)}, net.outputs).work


def isolated(function: Callable, *args) -> None:
    """Call a function in a process of its own, so that its memory is not ours."""
    # Not by fork: the child would wait for ever for OpenMP's threads, which it does not inherit.
    child = multiprocessing.get_context('spawn').Process(target=function, args=args)
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(f'{function.__name__} failed')


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--sizes', nargs='+', default=['256x256', '500x334', '1024x1024'])
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--gpu', action='store_true', help='on the first GPU')
    parser.add_argument('--only', nargs='+', default=[], metavar='ENGINE')
    parser.add_argument('--no-train', action='store_true', help='leave out the training step')
    parser.add_argument('--forward', action='store_true', help='Net.forward against net.module')
    options = parser.parse_args()
    if options.gpu and not torch.cuda.is_available():
        parser.error('--gpu: PyTorch finds no GPU')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.forward:
            return compare_faces(folder, options)
        top = measure_rates(folder, options)
        with_onnx = not options.gpu and any(
            map(importlib.util.find_spec, ('onnxruntime', 'openvino'))
        )
        for text in options.sizes:
            size = int(text.split('x')[0]), int(text.split('x')[1])
            isolated(files.prepare, folder, size, with_onnx)
            print(f'\nFCN-8s, {text}')
            for line in table('infer', folder, options, count_work(size), top):
                print(line, flush=True)
        if not options.no_train:
            isolated(files.prepare, folder, (334, 500), False)
            print('\nA training step of FCN-32s, 334x500')
            for line in table('train', folder, options, 0, top):
                print(line, flush=True)
    return 0


def measure_rates(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Print and return the operations per second in matrix products, by precision."""
    side = SIDES['gpu' if options.gpu else 'cpu']
    top = {
        name: 2 * side**3 / statistics.median(each['seconds'] for each in times)
        for name, times, _ in compare('rate', folder, options)
    }
    machine = torch.cuda.get_device_name() if options.gpu else platform.machine()
    rates = ', '.join(f'{rate / 1e9:.0f} GFLOP/s in {name}' for name, rate in top.items())
    print(f'{machine}, {options.threads} threads; products of {side} x {side}: {rates}')
    return top


def compare_faces(folder: Path, options: argparse.Namespace) -> int:
    """Print what Net.forward costs over net.module; the exit status says whether it is much."""
    isolated(files.prepare, folder, (256, 256), False)
    found = {
        name: [each['seconds'] for each in times]
        for name, times, _ in compare('face', folder, options)
    }
    ratio = statistics.median(
        one / other for one, other in zip(found['Net.forward'], found['net.module'])
    )
    print(f'Net.forward / net.module {ratio:.3f} (bar {FACE_BAR})')
    return int(ratio > FACE_BAR)


if __name__ == '__main__':
    sys.exit(main())
