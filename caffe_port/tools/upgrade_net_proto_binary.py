"""upgrade_net_proto_binary: bring a .caffemodel of any of Caffe's formats to the current one.

Blobs keep their shapes of 4 axes, as in Caffe.
"""

from __future__ import annotations

import sys
from pathlib import Path

from google.protobuf.message import DecodeError

from caffe_port.errors import CaffeError, replacing
from caffe_port.files import caffemodel
from caffe_port.files.upgrade import upgrade_net
from caffe_port.proto.caffe_pb2 import NetParameter
from caffe_port.tools import glog_command
from caffe_port.tools.upgrading import upgrade_file

USAGE = 'upgrade_net_proto_binary v0_net_proto_file_in net_proto_file_out'


def main(arguments: list[str]) -> int:
    """Upgrade a file; return the exit status (see upgrade_file)."""
    return upgrade_file(arguments, USAGE, _read, upgrade_net, _write)


def _read(path: str) -> NetParameter:
    caffemodel.read(path)  # says what is wrong with a file, without its values in memory
    try:
        with open(path, 'rb') as file:
            return NetParameter.FromString(file.read())
    except (DecodeError, UnicodeDecodeError) as error:
        raise CaffeError(f'{path}: not read as a NetParameter: {error}') from error


def _write(net: NetParameter, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(net.SerializeToString())


if __name__ == '__main__':
    sys.exit(glog_command.run(main))
