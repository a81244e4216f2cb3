"""The command `python -m caffe_port`: Caffe's own program and its tools."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from caffe_port.errors import CaffeError
from caffe_port.glog import GlogFormatter
from caffe_port.tools import brew, flags

USAGE = """command line brew
usage: python -m caffe_port <command> <args>

examples:
  python -m caffe_port train --solver=solver.prototxt --weights=vgg16.caffemodel
  python -m caffe_port test --model=val.prototxt --weights=trained.caffemodel --iterations=100

commands:
  train           train or finetune a model
  test            score a model
  device_query    show GPU diagnostic information
  time            benchmark model execution time

exit status: 0; 1 with one line of the log that says what is wrong

flags, with one dash or two, as --solver=x or --solver x:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, or 1 with a line in glog's form where it fails."""
    log = logging.getLogger('caffe_port')
    for handler in log.handlers:
        handler.setFormatter(GlogFormatter())
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        values, plain = flags.parse(arguments, dict(brew.FLAGS, help=False))
        if values['help'] or len(plain) != 1:
            print(
                USAGE
                + '\n'.join(
                    f'  --{name} (default: {value!r})' for name, value in brew.FLAGS.items()
                )
            )
            return 0 if values['help'] or not plain else 1
        if plain[0] not in brew.COMMANDS:
            raise CaffeError(f'Unknown action: {plain[0]}; there are {", ".join(brew.COMMANDS)}')
        brew.COMMANDS[plain[0]](values)
    except CaffeError as error:
        log.critical('%s', error)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
