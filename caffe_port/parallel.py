"""Training on many devices, as in Caffe: one process each, started by torchrun, with one net.

Each process is a rank. It takes its share of the data, gradients are averaged over ranks,
and rank 0 alone logs and writes. Every rank must call each collective function, in the same
order. In a single process these functions do nothing and cost nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist

# Imported later, as PyTorch itself does, its functions would take the process group of that
# time for a default argument, and nothing could destroy the group any more.
import torch.distributed.nn.functional
from torch import Tensor

from caffe_port.errors import CaffeError

LOG = logging.getLogger('caffe_port')
T = TypeVar('T')
# Send small tensors together, up to this many bytes: one message per bias would be slow.
_BUCKET = 2**26
_LAST_WORDS = 'last words'  # key in the store: why the first rank ended

_rank, _count = 0, 1
_store: dist.Store | None = None


def solver_rank() -> int:
    """Return the number of this process, from 0; 0 is the root solver."""
    return _rank


def solver_count() -> int:
    """Return how many processes train together."""
    return _count


def set_solver_count(count: int) -> None:
    """Join the processes that torchrun has started, which must be `count`.

    Deviates: Caffe believes the number; here torchrun starts and counts the processes.

    Raises CaffeError if there are not as many, or they cannot be reached.
    """
    join()
    if count != _count:
        raise CaffeError(
            f'set_solver_count: expected {_count}, as many processes as there are, found {count}; '
            'torchrun --nproc_per_node starts more'
        )


def set_solver_rank(rank: int) -> None:
    """Check that this process, one of torchrun's, is number `rank`.

    Raises CaffeError if it is not.
    """
    if rank != _rank:
        raise CaffeError(
            f"set_solver_rank: expected {_rank}, this process's number, found {rank}; "
            'torchrun gives the numbers'
        )


def set_multiprocess(multiprocess: bool) -> None:
    """Do nothing: ranks are always processes here, never threads of one."""


def local_rank() -> int:
    """Return the number of this process on its machine, which is also its GPU's."""
    return int(os.environ.get('LOCAL_RANK', 0))


def run_id() -> str | None:
    """Return a name for this call of torchrun, which its restarts share; None without torchrun."""
    name = os.environ.get('TORCHELASTIC_RUN_ID')
    return f'{name} {os.getppid()}' if name else None


def is_restarted() -> bool:
    """Return whether torchrun has restarted this process after a rank ended."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def join() -> None:
    """Join the processes that torchrun has started, if WORLD_SIZE says there are several.

    NCCL sends tensors on GPUs, gloo those on the host. After this call, an uncaught exception
    on one rank ends all ranks, and the others print the reason.

    Raises CaffeError if the other ranks cannot be reached.
    """
    global _rank, _count, _store
    if os.environ.get('WORLD_SIZE', '1') == '1' or _store:
        return
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, count = next(dist.rendezvous('env://'))
        # torchrun keeps the store over a restart, with the addresses of the processes before it.
        _store = dist.PrefixStore(f'start {os.environ.get("TORCHELASTIC_RESTART_COUNT")}', store)
        dist.init_process_group(
            'cpu:gloo,cuda:nccl' if nccl else 'cpu:gloo',
            rank=rank,
            store=dist.PrefixStore('group', _store),
            world_size=count,
        )
    except (RuntimeError, ValueError) as error:
        raise CaffeError(
            f'rank {os.environ.get("RANK")} of {os.environ["WORLD_SIZE"]}: the '
            f'others were not joined: {_first_sentence(error)}'
        ) from error
    _rank, _count = rank, count
    sys.excepthook = _uncaught
    atexit.register(leave)
    if rank:
        LOG.setLevel(logging.ERROR)


def leave() -> None:
    """Leave the group once all ranks have done their work; called at exit too.

    This ends the group's threads. A thread that still runs while Python shuts down could
    abort the process.
    """
    global _rank, _count, _store
    if _store:
        dist.destroy_process_group()
        _rank, _count, _store = 0, 1, None


def end(status: int, words: str) -> None:
    """End this process; the other ranks end too, and print `words` as the reason."""
    if not _store:
        sys.exit(status)
    with suppress(RuntimeError):  # raised if the rank that hosts the store has ended
        # Keep the first reason only: ranks that end later do so because of it.
        _store.compare_set(_LAST_WORDS, '', f'rank {_rank}: {words}')
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or on a full disk
            stream.flush()
    # A normal exit would wait for reductions that no rank will complete.
    os._exit(status)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    end(1, f'{kind.__name__}: {error}')


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of PyTorch's message, without file and line of its source."""
    found = re.match(r'(?:\[\S+] )?(.*?)(\. |\n|$)', str(error))
    return found[1] if found else str(error)


@contextmanager
def _others_there() -> Iterator[None]:
    """Turn PyTorch's error for a rank that has ended into one line with that rank's reason."""
    try:
        yield
    except RuntimeError as error:
        reason = _last_words() or _first_sentence(error)
        raise CaffeError(f'rank {_rank}: another rank ended: {reason}') from error


def _last_words() -> str | None:
    """Return the reason that the first rank to end has stored, if it could store one."""
    with suppress(RuntimeError):  # raised if the rank that hosts the store has ended
        if _store and _store.check([_LAST_WORDS]):
            return _store.get(_LAST_WORDS).decode()
    return None


def call_on_first(function: Callable[[], T]) -> T:
    """Call function() on rank 0 alone, and return its result on every rank; collective.

    The other ranks wait. Within the function rank 0 counts as a single process. The result
    must be picklable.
    """
    global _count
    if _count == 1:
        return function()
    result: list[T] = []
    if _rank == 0:
        count, _count = _count, 1
        try:
            result = [function()]
        finally:
            _count = count
    return gather(result)[0][0]


def gather(value: T) -> list[T]:
    """Return every rank's `value`, in order of ranks; collective. It must be picklable."""
    values = [value] * _count
    if _count > 1:
        with _others_there():
            dist.all_gather_object(values, value)
    return values


def take_largest(number: int) -> int:
    """Return the largest `number` of any rank; collective."""
    if _count == 1:
        return number
    largest = torch.tensor(number)
    with _others_there():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, all on one device, by their means over ranks; collective.

    It does not wait for a GPU: reductions are queued like kernels.
    """
    _in_buckets(tensors, lambda flat: dist.all_reduce(flat, async_op=True), _count)


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, all on one device, by those of rank 0; collective."""
    _in_buckets(tensors, lambda flat: dist.broadcast(flat, 0, async_op=True))


@torch.no_grad()
def _in_buckets(
    tensors: Sequence[Tensor], send: Callable[[Tensor], dist.Work], divisor: int = 1
) -> None:
    if _count == 1:
        return
    with _others_there():
        sent = [(bucket, flat, send(flat)) for bucket, flat in map(_flat, _buckets(tensors))]
        for bucket, flat, work in sent:
            work.wait()
            flat /= divisor
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket])):
                if part.data_ptr() != tensor.data_ptr():
                    tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield lists of consecutive tensors of at most _BUCKET bytes; a larger tensor is alone."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.nbytes > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _flat(bucket: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return a bucket and its values as one flat tensor: a view of a single tensor, or a copy."""
    if len(bucket) == 1 and bucket[0].is_contiguous():
        return bucket, bucket[0].view(-1)
    return bucket, torch.cat([tensor.reshape(-1) for tensor in bucket])
