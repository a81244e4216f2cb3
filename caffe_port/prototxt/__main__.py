"""The command `python -m caffe_port.prototxt SRC [DST]`: upgrade a prototxt."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from caffe_port import command
from caffe_port.errors import CaffeError
from caffe_port.prototxt import read_net, read_solver, to_text, write

EXAMPLES = """\
examples:
  python -m caffe_port.prototxt old.prototxt new.prototxt
  python -m caffe_port.prototxt --solver solver.prototxt

Upgrade a prototxt of any of Caffe's formats to the current one.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Upgrade a prototxt; return the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m caffe_port.prototxt',
        description=EXAMPLES,
        epilog=command.STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('source', metavar='SRC', help='the prototxt to upgrade')
    parser.add_argument('target', metavar='DST', nargs='?', help='default: standard output')
    parser.add_argument('--solver', action='store_true', help='SRC is a solver, not a net')
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    options = parser.parse_args(arguments)
    return command.run(lambda: _upgrade(options))


def _upgrade(options: argparse.Namespace) -> None:
    if options.target and os.path.exists(options.target) and not options.force:
        raise CaffeError(f'{options.target}: exists; --force replaces it')
    message = (read_solver if options.solver else read_net)(options.source)
    if options.target:
        write(message, options.target)
    else:
        sys.stdout.write(to_text(message))


if __name__ == '__main__':
    sys.exit(main())
