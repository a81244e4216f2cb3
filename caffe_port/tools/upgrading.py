"""What the three tools that upgrade a file have in common.

Source of exit statuses and lines: Caffe's tools/upgrade_*.cpp.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from caffe_port.errors import CaffeError

LOG = logging.getLogger('caffe_port')
M = TypeVar('M', bound=Message)


def upgrade_file(
    arguments: list[str],
    usage: str,
    read: Callable[[str], M],
    upgrade: Callable[[M, str, list[str]], M],
    write: Callable[[M, Path], None],
) -> int:
    """Read the first file that `arguments` name, upgrade it and write it as the second.

    Returns 0; 1 for another number of arguments, or where `upgrade` lists what it has dropped,
    which is no reason not to write; 2 for a file that `read` refuses. A file that is current
    already is written too, as in Caffe.
    """
    if len(arguments) != 2:
        LOG.error('Usage: %s', usage)
        return 1
    source, target = arguments
    if not os.path.exists(source):
        raise CaffeError(f'File not found: {source}')
    try:
        message = read(source)
    except CaffeError as error:
        LOG.error('Failed to parse input file: %s', error)
        return 2
    dropped: list[str] = []
    upgraded = upgrade(message, source, dropped)
    if upgraded == message:
        LOG.error('File already in latest proto format: %s', source)
    if dropped:
        LOG.error('Encountered error(s) while upgrading %s; see details above.', source)
    write(upgraded, Path(target))
    LOG.info('Wrote upgraded %s to %s', message.DESCRIPTOR.name, target)
    return int(bool(dropped))
