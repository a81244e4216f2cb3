"""How a command of Caffe's runs: log lines in glog's form, and the exit status of an error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

from caffe_port.errors import CaffeError
from caffe_port.glog import GlogFormatter

LOG = logging.getLogger('caffe_port')


def run(command: Callable[[list[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Call command(arguments), those of this process by default, and return its exit status.

    A CaffeError becomes one line in glog's form and status 1.
    """
    for handler in LOG.handlers:
        handler.setFormatter(GlogFormatter())
    try:
        return command(sys.argv[1:] if arguments is None else list(arguments))
    except CaffeError as error:
        LOG.critical('%s', error)
        return 1
