"""Show a progress line: refreshed often on a terminal, seldom in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def show_progress(*args: Any, **kwargs: Any) -> tqdm:
    """Show tqdm's line on standard error, every half second, or every 20 s if not a terminal."""
    interactive = sys.stderr.isatty()
    interval = 0.5 if interactive else 20
    kwargs |= dict(mininterval=interval, maxinterval=interval, dynamic_ncols=interactive)
    return tqdm(*args, **kwargs)
