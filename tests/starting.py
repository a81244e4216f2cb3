"""Start code in processes of its own that have imported the packages: 0.1 s of CPU each, not 2.

A server imports them once; each process is a fork of it, and ends as `python -c CODE` ends.
Tests of what an import does, or of a script found by its path, start Python themselves.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO

ROOT = pathlib.Path(__file__).parents[1]
# A script's folder comes first on the path, as where Python runs it itself.
SCRIPT = """
import runpy, sys
del sys.argv[0]
if sys.argv[0] == '-m':
    runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)
else:
    sys.path.insert(0, sys.argv[0].rpartition('/')[0])
    runpy.run_path(sys.argv[0], run_name='__main__')
"""
SERVER = """
import gc, json, os, signal, socket, sys
import caffe_port, nets, surgery
from nets import voc_fcn32s
from solve import launch, score
from solve.run import figures

gc.freeze()  # what is never collected stays one copy

def fork_as_asked(requests):
    # Return in each new process, with its code; a keeper waits for it and tells its end.
    while True:
        message, fds, *_ = socket.recv_fds(requests, 1 << 20, 8)
        if not message:
            os._exit(0)
        if os.fork():
            for fd in fds:
                os.close(fd)
            os.wait()
            continue
        asked, pipe = json.loads(message), fds.pop()
        if os.fork():
            os._exit(0)  # so that the server need not wait for the keeper
        requests.close()
        pid = os.fork()
        if not pid:
            os.close(pipe)
            for number, fd in enumerate(fds, 1):
                os.dup2(fd, number)
                os.close(fd)
            return asked
        for fd in (0, 1, 2, *fds):
            os.close(fd)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.write(pipe, f'{pid}\\n'.encode())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(pipe, f'{status}\\n'.encode())
        os._exit(0)

asked = fork_as_asked(socket.socket(fileno=int(sys.argv[1])))
os.chdir(asked['cwd'])
os.environ.clear()
os.environ.update(asked['env'])
sys.argv = ['-c', *asked['arguments']]
code = asked['code']
del asked, fork_as_asked
exec(compile(code, '<string>', 'exec'))
"""


@functools.cache
def _server() -> socket.socket:
    """Return the end of a socket at which a server takes requests; it ends with this process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen(
        [sys.executable, '-c', SERVER, str(its.fileno())],
        stdin=subprocess.DEVNULL,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
        pass_fds=[its.fileno()],
    )
    its.close()
    return ours


class Started:
    """A process of the server's, with the methods of subprocess.Popen that tests use."""

    def __init__(self, pid: int, pipe: int, stdout: int | None, stderr: int | None):
        self.pid, self.returncode = pid, None
        self._pipe = os.fdopen(pipe)
        self.stdout, self.stderr = (
            None if end is None else os.fdopen(end, encoding='utf-8') for end in (stdout, stderr)
        )

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._pipe], [], [], 0)[0]:
            self.returncode = int(self._pipe.readline())
            self._pipe.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._pipe], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
        return self.poll()

    def communicate(self, timeout: float = 600) -> tuple[str | None, str | None]:
        """Read both outputs to their ends, wait, and return what was read."""
        end, streams = time.monotonic() + timeout, (self.stdout, self.stderr)
        found: list[str | None] = [None, None]

        def read(i: int, stream) -> None:
            found[i] = stream.read()
            stream.close()

        readers = [
            threading.Thread(target=read, args=(i, stream), daemon=True)
            for i, stream in enumerate(streams)
            if stream and not stream.closed
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(max(end - time.monotonic(), 0))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(f'process {self.pid}', timeout)
        self.wait(max(end - time.monotonic(), 0))
        return found[0], found[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    code: str,
    *arguments,
    stdout: int | IO = subprocess.PIPE,
    stderr: int | IO = subprocess.PIPE,
    cwd: str | os.PathLike = '.',
    env: Mapping[str, str] | None = None,
) -> Started:
    """Run code as `python -c CODE ARGUMENTS`, with the checkout on its path.

    Each output goes to a pipe, or where subprocess.Popen would send it.
    """
    asked = dict(
        code=code,
        arguments=list(map(str, arguments)),
        cwd=os.path.abspath(cwd),
        env=dict(os.environ if env is None else env),
    )
    reads, writes = [], []
    for target in (stdout, stderr):
        if target == subprocess.PIPE:
            read, write = os.pipe()
        elif target == subprocess.DEVNULL:
            read, write = None, os.open(os.devnull, os.O_WRONLY)
        else:
            read, write = None, os.dup(target.fileno())
        reads.append(read)
        writes.append(write)
    pipe, its = os.pipe()
    socket.send_fds(_server(), [json.dumps(asked).encode()], [*writes, its])
    for fd in (*writes, its):
        os.close(fd)
    pid = b''
    while not pid.endswith(b'\n'):
        byte = os.read(pipe, 1)
        if not byte:
            raise RuntimeError('the server of tests/starting.py has died; see standard error')
        pid += byte
    return Started(int(pid), pipe, *reads)


def start_script(*words, **settings) -> Started:
    """Run `python WORDS`: a script of the checkout, or -m and a module, and its arguments."""
    first = words[0] if words[0] == '-m' else ROOT / words[0]
    return start(SCRIPT, first, *words[1:], **settings)


def read_first_line(*words) -> tuple[str, str]:
    """Run `python WORDS`, and close its output after one line, as head -1 does.

    Returns this line, and what the process writes to standard error.
    """
    run = start_script(*words)
    first = run.stdout.readline()
    run.stdout.close()
    return first, run.communicate()[1]
