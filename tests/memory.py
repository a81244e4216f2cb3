"""A bound on the resident memory that a block of a test takes, by a peak that begins with it.

tests/costs.py is for files of strangers, which may ask for more than a test's process can have.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

STATUS, CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


def _kilobytes(name: str) -> int:
    return int(re.search(rf'{name}:\s+(\d+)', STATUS.read_text())[1])


@contextmanager
def at_most(megabytes: float) -> Iterator[None]:
    """Fail if resident memory ever comes to more than `megabytes` above what it is now."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)  # else what earlier tests have freed would be taken without growth
    try:
        CLEAR.write_text('5')  # the peak starts again from here
    except OSError:
        pytest.skip('needs Linux, which counts the peak of resident memory anew on request')
    before = _kilobytes('VmRSS')
    yield
    grown = (_kilobytes('VmHWM') - before) / 1024
    assert grown <= megabytes, f'{grown:.0f} MB, at most {megabytes}'
