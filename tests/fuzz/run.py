"""Read file after damaged file, each in bounds of memory and time; keep what breaks them.

A case is a number: the seed and it give the file. Cases run in child processes, many in
one; a child that dies is a failure of the case it was at.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import caffe_port as caffe
from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel, weights
from caffe_port.solving import resume
from solve.datasets.images import read_label_png, read_rgb
from tests.fuzz import faults, files

# What a case may take above ALLOWANCE: so many times its file's size.
TIMES, ALLOWANCE, SECONDS = 8, 96 << 20, 10
# A prototxt may ask for values drawn by fillers, up to a documented bound.
NET_ALLOWANCE = 1600 << 20
CHILD = 150  # cases


@dataclass(frozen=True)
class Kind:
    """A kind of file: its suffix, how it is made, damaged and read."""

    suffix: str
    makes: tuple[files.Make, ...]
    faults: tuple[Callable[[Random, bytes], bytes], ...]
    read: Callable[[Path], object]
    allowance: int = ALLOWANCE
    own: bool = False  # the user's own data: being out of memory is a clear error, too


def _weights(path: Path) -> None:
    for layer in weights.read(path):
        for blob in layer.blobs:
            blob.array()


def _net(path: Path) -> None:
    caffe.Net(str(path), caffe.TEST)


def _state(path: Path) -> None:
    for blob in caffemodel.read_state(path).history:
        blob.array()


BYTES = (faults.of_bytes,)
TEXT = (faults.of_text, faults.of_text, faults.of_bytes)
KINDS = {
    'caffemodel': Kind('.caffemodel', (files.model, files.old_model), BYTES, _weights),
    'caffemodel.h5': Kind('.caffemodel.h5', (files.hdf5_model,), BYTES, _weights),
    'pth': Kind(
        '.pth', (files.torch_file, files.torch_pickle), (faults.of_zip, faults.of_bytes), _weights
    ),
    'safetensors': Kind(
        '.safetensors',
        (files.safetensors_file,),
        (faults.of_safetensors, faults.of_bytes),
        _weights,
    ),
    'npz': Kind('.npz', (files.npz,), (faults.of_zip, faults.of_bytes), _weights),
    'solverstate': Kind('.solverstate', (files.state,), BYTES, _state),
    'solverstate.h5': Kind('.solverstate.h5', (files.hdf5_state,), BYTES, _state),
    'binaryproto': Kind('.binaryproto', (files.mean,), BYTES, caffemodel.read_blob),
    'prototxt': Kind('.prototxt', (files.prototxt,), TEXT, _net, NET_ALLOWANCE),
    'solver': Kind(
        '.prototxt', (files.solver,), TEXT, lambda path: caffe.get_solver(str(path)), NET_ALLOWANCE
    ),  # fmt: skip
    'memory': Kind(
        '.memory.json',
        (files.memory,),
        (faults.of_json, faults.of_bytes),
        lambda path: resume.read(path, 4),
    ),  # fmt: skip
    'picture': Kind('.jpg', (files.picture,), BYTES, read_rgb, 400 << 20, own=True),
    'label': Kind('.png', (files.picture,), BYTES, read_label_png, 400 << 20, own=True),
}


class TooSlow(BaseException):
    """A case has taken longer than SECONDS."""


def case(seed: int, number: int, folder: Path) -> tuple[str, Path]:
    """Write the file of a case; returns its kind and its path."""
    rng = Random(f'{seed}:{number}')
    name = rng.choice(sorted(KINDS))
    kind = KINDS[name]
    path = folder / f'case{kind.suffix}'
    rng.choice(kind.makes)(rng, path)
    if rng.random() < 0.95:
        path.write_bytes(rng.choice(kind.faults)(rng, path.read_bytes()))
    return name, path


def try_case(name: str, path: Path) -> str:
    """Read a file within its bounds; returns what went wrong, or nothing."""
    kind = KINDS[name]
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + kind.allowance + TIMES * path.stat().st_size
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    Path('/proc/self/clear_refs').write_text('5')  # start the peak of resident memory anew
    before = _resident_peak()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        kind.read(path)
    except CaffeError as error:
        if '\n' in str(error) or not str(error):
            return f'CaffeError of several lines, or none: {str(error)[:200]!r}'
        if not kind.own and _is_out_of_memory(error):
            return f'out of memory, though told as a CaffeError:\n{traceback.format_exc()}'
    except TooSlow:
        return f'more than {SECONDS} s'
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    grown = _resident_peak() - before
    if grown > kind.allowance + TIMES * path.stat().st_size:
        return f'{grown} bytes of memory for a file of {path.stat().st_size}'
    return ''


def _resident_peak() -> int:
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) * 1024


def _is_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def run(seed: int, minutes: float, out: Path) -> tuple[Counter, list[str]]:
    """Run cases until the time is over; returns how many of each kind, and what failed.

    Files that failed are kept in `out`, with what went wrong beside them.
    """
    caffe.Net(files.nets()[0], caffe.TEST)  # imports what a net needs, once for all children
    counts: Counter = Counter()
    failures: list[str] = []
    began, first = time.monotonic(), 0
    while time.monotonic() - began < 60 * minutes:
        log = out / 'progress'
        log.write_text('')
        child = os.fork()
        if not child:
            _be_child(seed, first, out, log)
        _wait(child)
        lines = log.read_text().splitlines()
        for line in lines:
            number, name, result = line.split(' ', 2)
            if result == 'ok':
                counts[name] += 1
        if lines and not lines[-1].endswith(' ok') and not lines[-1].endswith(' failed'):
            number, name, _ = lines[-1].split(' ', 2)
            failures.append(f'case {number}, {name}: the process died')
        failures += [
            f'case {number}, {name}: see {out}/{number}.txt'
            for number, name, result in (line.split(' ', 2) for line in lines)
            if result == 'failed'
        ]
        first = int(lines[-1].split()[0]) + 1 if lines else first + 1
    return counts, failures


def _be_child(seed: int, first: int, out: Path, log: Path) -> None:
    """Run CHILD cases from `first` on, a line of `log` before and after each; never returns."""

    def too_slow(*_):
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    warnings.simplefilter('ignore')
    sys.stdout = sys.stderr = io.StringIO()
    folder = out / f'child{os.getpid()}'
    folder.mkdir()
    try:
        with open(log, 'a', buffering=1) as lines:
            for number in range(first, first + CHILD):
                name, path, wrong = 'unmade', folder / 'none', ''
                try:
                    name, path = case(seed, number, folder)
                except Exception:
                    wrong = f'not made: {traceback.format_exc()}'
                lines.write(f'{number} {name} ')
                wrong = wrong or try_case(name, path)
                if wrong:
                    if path.exists():
                        path.rename(out / f'{number}{path.suffix}')
                    (out / f'{number}.txt').write_text(f'seed {seed}, {name}\n{wrong}')
                lines.write('failed\n' if wrong else 'ok\n')
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        os._exit(0)


def _wait(child: int) -> None:
    """Wait for a child, but not for ever: a case that hangs in C hears no timer."""
    deadline = time.monotonic() + SECONDS * CHILD
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.05)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return


def main() -> None:
    """Read one case again: python -m tests.fuzz.run SEED NUMBER."""
    seed, number = map(int, sys.argv[1:3])
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TooSlow()))
    folder = Path('fuzz-case')
    folder.mkdir(exist_ok=True)
    name, path = case(seed, number, folder)
    print(name, path, try_case(name, path) or 'ok')


if __name__ == '__main__':
    main()
