"""Strips of a blob, computed side by side: each by one thread, so that it stays in its cache.

PyTorch's own way lets all threads share each operation, and wait for each other at its end. In a
training step that happens thousands of times, and other work on one core holds up all of them.
After its last operation a thread of PyTorch's own goes on waiting actively for milliseconds, at the
cost of what is computed next: where strips come next, even a short operation is worth strips.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar('T')
_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}  # by their number of threads


def _in_new_thread(act: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as one:
        return one.submit(act).result()


def _start_pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads have started, each with PyTorch's number of threads at 1."""
    before = _in_new_thread(torch.get_num_threads)  # that of all threads to come
    barrier = threading.Barrier(threads)

    def begin(_: int) -> None:
        torch.get_num_threads()  # else the thread would take PyTorch's number later
        torch.set_num_threads(1)
        barrier.wait()

    pool = ThreadPoolExecutor(threads, 'strips')
    try:
        list(pool.map(begin, range(threads)))
    except BaseException:
        barrier.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    finally:
        _in_new_thread(lambda: torch.set_num_threads(before))
    return pool


def _pool_of(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            _pools[threads] = _start_pool(threads)
        return _pools[threads]


def _forget_pools() -> None:
    global _lock
    _lock = threading.Lock()
    _pools.clear()  # a fork has no threads


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget_pools)


def step(count: int, most: int) -> int:
    """Return the size of strips of `count` rows: about `most`, and even work for all threads.

    Where there are many threads for few rows, strips stay about as large: `run` then lets all
    threads compute each.
    """
    threads, most = torch.get_num_threads(), max(most, 1)
    rounds = -(-count // (threads * most)) or 1
    even = max(1, -(-count // (threads * rounds)))
    return even if 4 * even >= min(count, most) else most


def share(count: int) -> int:
    """Return the size of strips of `count` rows, one for each thread at most."""
    return max(1, -(-count // torch.get_num_threads()))


def run(compute: Callable[[T], None], strips: Sequence[T], short: bool = False) -> None:
    """Call compute(strip) for each strip, without gradients.

    Strips are computed side by side where there are enough for PyTorch's threads, or all of them
    are `short`, else one after the other, by all threads. They may write to different parts of one
    tensor. Of PyTorch's modes that belong to a thread, only inference mode follows into the
    others: no profiler does.
    """
    threads = torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()

    def compute_alone(strip: T) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            compute(strip)

    futures = []
    done = 0
    if threads > 1 and (short or len(strips) >= threads):
        try:
            try:
                for strip in strips:
                    futures.append(_pool_of(threads).submit(compute_alone, strip))
            except RuntimeError:  # the interpreter is about to exit, and takes no more
                pass
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)  # none may write later to memory that is used again
        done = len(futures)
    for strip in strips[done:]:
        compute_alone(strip)


def copy(image: Tensor, to: Tensor) -> None:
    """Copy N x C x H x W to memory of the same shape, some rows by each thread."""
    size = share(to.shape[2])

    def compute(first: int) -> None:
        to[:, :, first : first + size].copy_(image[:, :, first : first + size])

    run(compute, range(0, to.shape[2], size), short=True)
