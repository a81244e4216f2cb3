"""The progress line: lively on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(*args: Any, **kwargs: Any) -> tqdm:
    """tqdm on standard error, at most two updates a second, or one in 20 s if not a terminal."""
    lively = sys.stderr.isatty()
    return tqdm(
        *args,
        mininterval=0.5 if lively else 20,
        maxinterval=0.5 if lively else 20,
        dynamic_ncols=lively,
        **kwargs,
    )
