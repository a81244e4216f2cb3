"""Many devices, as Caffe has them: one process each, started by torchrun, one net in all.

Each process is a rank. It takes its share of the data, gradients are averaged over ranks,
and rank 0 alone speaks and writes. What is called collective here must be called by every
rank, in the same order. In a single process nothing here does or costs anything.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from caffe_port.errors import CaffeError

LOG = logging.getLogger('caffe_port')
T = TypeVar('T')
# Tensors travel together up to so many bytes: a message for each bias would only wait.
_BUCKET = 2**26
_LAST_WORDS = 'last words'

_rank, _count = 0, 1
_store: dist.Store | None = None


def solver_rank() -> int:
    """The number of this process, from 0; 0 is the root solver."""
    return _rank


def solver_count() -> int:
    """How many processes train together."""
    return _count


def local_rank() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get('LOCAL_RANK', 0))


def run_id() -> str | None:
    """What tells this call of torchrun from all others, the same after its restarts."""
    name = os.environ.get('TORCHELASTIC_RUN_ID')
    return f'{name} {os.getppid()}' if name else None


def restarted() -> bool:
    """Whether torchrun has started this anew after a rank ended."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def join() -> None:
    """Join the processes that torchrun has started, where WORLD_SIZE says there are many.

    NCCL carries what lies on GPUs, gloo what lies on the host. From here on an exception
    that nobody catches ends the other ranks too, and they say why.

    Raises CaffeError if they do not come together.
    """
    global _rank, _count, _store
    if os.environ.get('WORLD_SIZE', '1') == '1' or _store:
        return
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, count = next(dist.rendezvous('env://'))
        # torchrun keeps the store over a restart, with the addresses of those who were before.
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
            f'others were not joined: {_gist(error)}'
        ) from error
    _rank, _count = rank, count
    sys.excepthook = _uncaught
    if rank:
        LOG.setLevel(logging.ERROR)


def leave() -> None:
    """Leave the others at a good end."""
    global _rank, _count, _store
    if _store:
        dist.destroy_process_group()
        _rank, _count, _store = 0, 1, None


def end(status: int, words: str) -> None:
    """End this process; the others, who end too, give `words` as the reason."""
    if not _store:
        sys.exit(status)
    try:
        # Whoever comes first knows why; what the others say follows from it.
        _store.compare_set(_LAST_WORDS, '', f'rank {_rank}: {words}')
    except RuntimeError:
        pass  # the store has ended with the rank that kept it
    sys.stdout.flush()
    sys.stderr.flush()
    # An orderly end would wait for sums under way, which no longer come to an end.
    os._exit(status)


def _uncaught(kind: type[BaseException], error: BaseException, trace) -> None:
    sys.__excepthook__(kind, error, trace)
    end(1, f'{kind.__name__}: {error}')


def _gist(error: Exception) -> str:
    """The first sentence of what PyTorch says, without the place in its source."""
    return re.match(r'(?:\[\S+] )?(.*?)(\. |\n|$)', str(error))[1]


@contextmanager
def _others_there() -> Iterator[None]:
    """What PyTorch raises when a rank has gone becomes one line, with that rank's reason."""
    try:
        yield
    except RuntimeError as error:
        try:
            said = _store.check([_LAST_WORDS]) and _store.get(_LAST_WORDS).decode()
        except RuntimeError:  # the store has ended with the rank that kept it
            said = None
        said = said or _gist(error)
        raise CaffeError(f'rank {_rank}: another rank ended: {said}') from error


def first(function: Callable[[], T]) -> T:
    """What function() returns on rank 0, which is alone in it, on every rank; collective.

    The others wait. What it returns must be picklable.
    """
    global _count
    if _count == 1:
        return function()
    result = []
    if _rank == 0:
        count, _count = _count, 1
        try:
            result = [function()]
        finally:
            _count = count
    return gather(result)[0][0]


def gather(value: T) -> list[T]:
    """`value` of every rank, by rank; collective. It must be picklable."""
    values = [value] * _count
    if _count > 1:
        with _others_there():
            dist.all_gather_object(values, value)
    return values


def agree(number: int) -> int:
    """The largest `number` of any rank; collective."""
    if _count == 1:
        return number
    largest = torch.tensor(number)
    with _others_there():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, all on one device, by their means over ranks; collective.

    Waits for no device: on a GPU the sums are queued as kernels are.
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
    """Neighbours that come to _BUCKET bytes or less together; larger ones by themselves."""
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
    """A bucket and its values in one row: a lone tensor's own memory, or a copy."""
    if len(bucket) == 1 and bucket[0].is_contiguous():
        return bucket, bucket[0].view(-1)
    return bucket, torch.cat([tensor.reshape(-1) for tensor in bucket])
