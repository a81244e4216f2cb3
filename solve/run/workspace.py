"""Output folders: locked for one process at a time, removed if empty, foreign files kept."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from caffe_port.errors import CaffeError, WriteError, make_folder

LOCK = '.lock'
# Marks an output folder as that of a run.
MARK = '.fcn-run'
# Files that a start leaves behind, whatever comes of it.
_TRACES = {LOCK, MARK, 'caffe.log'}

_held: dict[Path, int] = {}  # descriptors, by lock file
_made: list[Path] = []  # folders, from the outermost


def take(folder: Path) -> Path:
    """Make a folder, unless it is there, and hold its lock; return it. See `hold` and `make`."""
    make(folder)
    hold(folder / LOCK)
    return folder


def make(folder: Path) -> Path:
    """Make a folder, unless it is there; `release` removes it again if it stays empty."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    make_folder(folder)
    _made.extend(each.absolute() for each in reversed(missing))
    return folder


def is_new(folder: Path) -> bool:
    """Return whether this process has made `folder`."""
    return folder.absolute() in _made


def refuse_foreign(folder: Path, names: Iterable[str], ours: bool, whose: str, remedy: str) -> None:
    """Raise CaffeError if files of these names, which `whose` will write, are in a folder.

    A folder that is `ours`, as it holds a record of an earlier call, is let through. To be
    called before `take`, which leaves a lock.
    """
    foreign = [] if ours else [name for name in names if os.path.lexists(folder / name)]
    if foreign:
        others = f' (and {len(foreign) - 1} more)' if len(foreign) > 1 else ''
        raise CaffeError(
            f'{folder / foreign[0]}{others}: exists and is not a result of {whose}; {remedy}'
        )


def hold(path: Path, other: str = 'folder with --output') -> None:
    """Lock the file `path`, in an output folder, until `release` or the end of the process.

    `other` says what the user may name instead, by which option. The kernel
    releases the lock when the process dies. On a file system without locks this does nothing.

    Raises CaffeError, naming the process, if another one holds it, and WriteError if the file
    cannot be made.
    """
    path = path.resolve()
    if path in _held:
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise WriteError(f'{path.parent}: not written to: {error.strerror}') from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(descriptor, 300).decode(errors='replace').strip()
        os.close(descriptor)
        raise CaffeError(
            f'{path.parent}: process {owner or "of another command"} works in it; wait for its '
            f'end, or name another {other}'
        ) from error
    except OSError:
        pass
    _held[path] = descriptor
    with suppress(OSError):  # on a full disk the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f'{os.getpid()} on {socket.gethostname()}\n'.encode(), 0)


def is_held(folder: Path) -> bool:
    """Return whether this process holds the lock of `folder` or of one above it."""
    folder = folder.resolve()
    return any(each / LOCK in _held for each in (folder, *folder.parents))


def release() -> None:
    """Release all locks, and remove the folders that were made here and have no results."""
    while _made:
        folder = _made.pop()
        with suppress(OSError):
            if {path.name for path in folder.iterdir()} <= _TRACES:
                for name in _TRACES:
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()
    while _held:
        os.close(_held.popitem()[1])
