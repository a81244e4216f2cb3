"""Amounts of memory: how much is free, and as text."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import torch

_CGROUP = 'memory.max', 'memory.current'


def format_memory(count: float) -> str:
    """Return a number of bytes in the unit that suits it: 1.5 GiB."""
    for unit in ('bytes', 'KiB', 'MiB'):
        if count < 1024:
            return f'{count:.3g} {unit}'
        count /= 1024
    return f'{count:.3g} GiB'


def parse_bytes(text: str) -> int:
    """Return how many bytes a text such as 2G, 1.5GiB, 800M or 4096 means.

    Raises ValueError for any other text.
    """
    found = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?', text.strip().lower())
    if not found or not float(found[1]):
        raise ValueError(f'{text!r} is not an amount of memory such as 2G')
    return int(float(found[1]) * 1024 ** ' kmgt'.index(found[2] or ' '))


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory is free on a device; None where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    free = []
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path('/proc/meminfo').read_text().splitlines()
        known = next(line for line in lines if line.startswith('MemAvailable'))
        free.append(1024 * int(known.split()[1]))
    with suppress(OSError, ValueError):  # a container's own limit
        limit, used = (Path('/sys/fs/cgroup', name).read_text() for name in _CGROUP)
        free.append(int(limit) - int(used))
    return max(min(free), 0) if free else None
