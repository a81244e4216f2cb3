"""upgrade_solver_proto_text: give a solver's prototxt `type` for the older `solver_type`."""

from __future__ import annotations

import sys

from caffe_port import prototxt
from caffe_port.files.upgrade import upgrade_solver
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.tools import glog_command
from caffe_port.tools.upgrading import upgrade_file

USAGE = 'upgrade_solver_proto_text old_solver_proto_file_in solver_proto_file_out'


def main(arguments: list[str]) -> int:
    """Upgrade a file; return the exit status (see upgrade_file)."""
    return upgrade_file(
        arguments,
        USAGE,
        lambda path: prototxt.read_unchanged(path, SolverParameter()),
        upgrade_solver,
        prototxt.write,
    )


if __name__ == '__main__':
    sys.exit(glog_command.run(main))
