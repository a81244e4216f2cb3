"""upgrade_net_proto_text: bring a net's prototxt of any of Caffe's formats to the current one."""

from __future__ import annotations

import sys

from caffe_port import prototxt
from caffe_port.files.upgrade import upgrade_net
from caffe_port.proto.caffe_pb2 import NetParameter
from caffe_port.tools import glog_command
from caffe_port.tools.upgrading import upgrade_file

USAGE = 'upgrade_net_proto_text v0_net_proto_file_in net_proto_file_out'


def main(arguments: list[str]) -> int:
    """Upgrade a file; return the exit status (see upgrade_file)."""
    return upgrade_file(
        arguments,
        USAGE,
        lambda path: prototxt.read_unchanged(path, NetParameter()),
        upgrade_net,
        prototxt.write,
    )


if __name__ == '__main__':
    sys.exit(glog_command.run(main))
