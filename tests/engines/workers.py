"""Engines that take turns, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.engines.names import load


class Worker:
    """A process with one engine, which runs it when told to."""

    def __init__(self, kind: str, name: str, folder: Path, threads: int, device: str):
        environment = {
            **os.environ,
            'OMP_NUM_THREADS': str(threads),
            'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
        }
        command = [sys.executable, '-m', 'tests.engines.workers', kind, name, str(folder), device]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )
        self.ask('')

    def ask(self, what: str) -> dict:
        """Send a word, unless it is empty, and return the answer."""
        if what:
            self.process.stdin.write(what + '\n')
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{'):
                return json.loads(line)
        raise RuntimeError(f'{self.process.args}: ended with {self.process.wait()}')

    def end(self) -> float:
        """End the process and return its peak memory in gigabytes."""
        peak = self.ask('end')['peak']
        self.process.wait()
        return peak


def work(kind: str, name: str, folder: Path, device: str) -> None:
    """Be a worker: answer each line of standard input with one of JSON."""
    run = load(kind, name, folder, device)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        if line.strip() == 'end':
            print(json.dumps({'peak': peak(device)}), flush=True)
            return
        started, busy = time.perf_counter(), time.process_time()
        scores = run()
        answer = {'seconds': time.perf_counter() - started, 'busy': time.process_time() - busy}
        np.save(folder / f'{name}.npy', scores)
        print(json.dumps(answer), flush=True)


def peak(device: str) -> float:
    """Return the most memory of the device that this process has had, in gigabytes."""
    if device == 'gpu':
        return sys.modules['torch'].cuda.max_memory_allocated() / 1e9
    try:
        # ru_maxrss may be what the parent had when it started this process.
        return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def compare(
    kind: str, names: Sequence[str], folder: Path, repeats: int, threads: int, device: str
) -> Iterator[tuple[str, list[dict], float]]:
    """Run the engines in turn; yield each one's name, times and peak memory."""
    workers = {name: Worker(kind, name, folder, threads, device) for name in names}
    times: dict[str, list[dict]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name, worker in workers.items():
            answer = worker.ask('run')
            if turn:  # the first run chooses kernels and takes memory
                times[name].append(answer)
    for name, worker in workers.items():
        yield name, times[name], worker.end()


if __name__ == '__main__':
    work(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
