"""The command `python -m caffe_port`: Caffe's own program and its tools."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from caffe_port.errors import CaffeError
from caffe_port.tools import (
    brew,
    compute_image_mean,
    convert_imageset,
    extract_features,
    flags,
    glog_command,
    parse_log,
    upgrade_net_proto_binary,
    upgrade_net_proto_text,
    upgrade_solver_proto_text,
)
from caffe_port.version import __version__

TOOLS: dict[str, Callable[[list[str]], int]] = {
    'convert_imageset': convert_imageset.main,
    'compute_image_mean': compute_image_mean.main,
    'extract_features': extract_features.main,
    'upgrade_net_proto_text': upgrade_net_proto_text.main,
    'upgrade_net_proto_binary': upgrade_net_proto_binary.main,
    'upgrade_solver_proto_text': upgrade_solver_proto_text.main,
    'parse_log': parse_log.main,
}
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

tools, each of which shows its arguments when it is called without any:
  convert_imageset           write images of a list to an LMDB or a LevelDB
  compute_image_mean         compute the mean image of a database
  extract_features           write blobs of a net to databases
  upgrade_net_proto_text     bring a net's prototxt to the current format
  upgrade_net_proto_binary   bring a .caffemodel to the current format
  upgrade_solver_proto_text  bring a solver's prototxt to the current format
  parse_log                  turn a training log into two tables

exit status: 0; 1 with one line of the log that says what is wrong
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return Caffe's exit status: 1 with a line in glog's form where it fails."""
    return glog_command.run(_main, arguments)


def _main(arguments: list[str]) -> int:
    if arguments and arguments[0] in TOOLS:
        return TOOLS[arguments[0]](arguments[1:])
    values, plain = flags.parse(arguments, dict(brew.FLAGS, help=False, version=False))
    if values['version']:
        print(f'caffe_port version {__version__}')
        return 0
    if values['help'] or len(plain) != 1:
        print(flags.usage(USAGE, brew.FLAGS))
        return int(values['help'])  # as gflags: usage that was asked for is status 1
    if plain[0] not in brew.COMMANDS:
        raise CaffeError(f'Unknown action: {plain[0]}; there are {", ".join(brew.COMMANDS)}')
    brew.COMMANDS[plain[0]](values)
    return 0


if __name__ == '__main__':
    sys.exit(main())
