"""Strips of a blob, computed side by side: each by one thread, so that it stays in its cache.

PyTorch's own way, all threads at each operation, makes them wait for each other at the end of
each. Strips of milliseconds come to thousands of such ends in a training step, where a core that
other work holds up holds up all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar('T')
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_threads = 0  # of the pool


def _compute_alone() -> None:
    torch.get_num_threads()  # else the thread would take PyTorch's number at its first operation
    torch.set_num_threads(1)


def _pool_of(threads: int) -> ThreadPoolExecutor:
    global _pool, _threads
    with _lock:
        if _pool is None or _threads != threads:
            if _pool is not None:
                _pool.shutdown(wait=False)  # what was handed in is still computed
            _pool, _threads = ThreadPoolExecutor(threads, 'strips', _compute_alone), threads
            barrier = threading.Barrier(threads)
            list(_pool.map(lambda _: barrier.wait(), range(threads)))  # all have started
            torch.set_num_threads(threads)  # for threads to come, as it was
        return _pool


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()  # a fork has no threads


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget_pool)


def step(count: int, most: int) -> int:
    """Return the size of strips of `count` rows: about `most`, and even work for all threads.

    Where these are many for the rows, strips are not cut much smaller: `run` then lets all threads
    compute each.
    """
    threads, most = torch.get_num_threads(), max(most, 1)
    rounds = -(-count // (threads * most)) or 1
    even = max(1, -(-count // (threads * rounds)))
    return even if 4 * even >= min(count, most) else most


def run(compute: Callable[[T], None], strips: Sequence[T]) -> None:
    """Call compute(strip) for each strip, without gradients.

    Strips are computed side by side where there are enough for PyTorch's threads, else one after
    the other, by all threads. They may write to different parts of one tensor.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(strips) < threads:
        with torch.no_grad():
            for strip in strips:
                compute(strip)
        return
    inference = torch.is_inference_mode_enabled()

    def compute_alone(strip: T) -> None:
        # Modes are those of a thread.
        with torch.inference_mode(inference), torch.no_grad():
            compute(strip)

    for _ in _pool_of(threads).map(compute_alone, strips):
        pass
