"""What reading a file costs, each in a process of its own with a limit on memory."""

from __future__ import annotations

import functools
import json
import pathlib
import resource
import subprocess
import sys
from typing import NamedTuple

CHILD = """
import json, os, sys, time
from caffe_port import get_solver, prototxt
from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel, weights

def read_weights(path):
    return [blob.array() for layer in weights.read(path) for blob in layer.blobs]

def peak():
    # Of addresses, not of pages touched: a large array of zeros counts.
    status = open('/proc/self/status').read()
    return int(status.partition('VmPeak:')[2].split()[0]) / 1024

def measure(path):
    read = {'.prototxt': prototxt.read_net, '.solver': get_solver,
            '.solverstate': caffemodel.read_state}.get(os.path.splitext(path)[1], read_weights)
    before, start, words = peak(), time.process_time(), ''
    try:
        read(path)
    except CaffeError as error:
        words = str(error)
    return peak() - before, time.process_time() - start, words

for line in sys.stdin:
    # A fork of its own, whose peak begins anew.
    if os.fork() == 0:
        print(json.dumps(measure(line.rstrip('\\n'))), flush=True)
        os._exit(0)
    if os.wait()[1]:
        print(json.dumps([-1, -1, 'the process died']), flush=True)
"""
# Of the whole process, so that a failing test does not take the machine's memory.
LIMIT = 6 << 30


class Cost(NamedTuple):
    megabytes: float
    seconds: float
    words: str  # the CaffeError, '' for success


@functools.cache
def _child() -> subprocess.Popen:
    """A process that has imported the package; it ends with this one, which feeds it."""
    return subprocess.Popen(
        [sys.executable, '-c', CHILD],
        cwd=pathlib.Path(__file__).parents[1],
        preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_AS, (LIMIT, LIMIT)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def costs(*paths: pathlib.Path) -> list[Cost]:
    """Read each file and say what it took; a kind of file is known by its suffix."""
    found = []
    for path in paths:
        _child().stdin.write(f'{path}\n')
        found.append(Cost(*json.loads(_child().stdout.readline())))
    return found
