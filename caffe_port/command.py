"""How a command ends: what it prints and its exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from caffe_port.errors import CaffeError, ignore_closed_pipe, printable

STATUS = 'exit status: 0; 2 with one line `error: ...`; 130 if stopped by Ctrl-C'


def run(act: Callable[[], None], stopped: str = 'stopped') -> int:
    """Call `act` and return the exit status that STATUS names.

    A CaffeError becomes one line; Ctrl-C prints `stopped`. A reader that closes the pipe, as
    head does, ends the command without an error.
    """
    try:
        with ignore_closed_pipe():
            act()
            sys.stdout.flush()
    except CaffeError as error:
        print(f'error: {printable(str(error))}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    return 0
