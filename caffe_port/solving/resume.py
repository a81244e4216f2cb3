"""The resume file beside a solver state, for what Caffe's snapshots do not hold.

These are data order, random streams, recent losses and a script's notes. It also holds the
digests of the snapshot's other two files, which ties the three together.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from caffe_port import mode, parallel, rng
from caffe_port.errors import CaffeError, replacing
from caffe_port.files.checksum import digest_file
from caffe_port.net import Net

LOG = logging.getLogger('caffe_port')
_MAX_BYTES = 16 * 2**20
_DIGESTS = 'sha256'


class Resumable(Protocol):
    """What a resume file knows of a solver."""

    iter: int
    net: Net
    test_nets: list[Net]
    losses: deque[Tensor]
    notes: dict

    @property
    def type(self) -> str: ...


class Stateful(Protocol):
    """A layer that has a place in its data, and can go on from there."""

    def state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


def name_resume_file(state: str | os.PathLike) -> Path:
    """Return the path of a solver state's resume file: x.solverstate has x.memory.json."""
    name = Path(state).name.removesuffix('.h5').removesuffix('.solverstate')
    return Path(state).with_name(f'{name}.memory.json')


def _layers(solver: Resumable) -> Iterator[tuple[str, Stateful]]:
    """Yield the layers that have a state of their own, by number of the net and name."""
    for number, net in enumerate([solver.net, *solver.test_nets]):
        for node in net.module.nodes:
            for layer in (node.op, node.python_layer):
                if hasattr(layer, 'set_state'):
                    yield f'{number}:{node.name}', layer


def collect(solver: Resumable) -> dict:
    """Return the content of a resume file for a solver between two iterations; collective.

    Random streams and layers are those of every rank, since a rank that skips an image
    leaves the others' order; the rest is the same on all.
    """
    own = {name: layer.state() for name, layer in _layers(solver)}
    (streams, layers), *others = parallel.gather((rng.get_state(), own))
    return {
        'iter': solver.iter,
        'type': solver.type,
        'streams': streams,
        'streams_of_other_ranks': [streams for streams, _ in others],
        'layers': layers,
        'layers_of_other_ranks': [layers for _, layers in others],
        'losses': [float(loss) for loss in solver.losses],
        'notes': solver.notes,
    }


def write(path: Path, content: dict, digests: dict[str, str] | None = None) -> None:
    """Write what `collect` has returned.

    `digests` are the snapshot's files, as `digest_file` returns them; without them those in
    the file at `path`, which is written anew, stay.
    """
    if digests is None:
        digests = _stored_digests(path)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**content, _DIGESTS: digests}, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} cannot be written as JSON')


def _stored_digests(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())[_DIGESTS]
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def read(path: Path, iteration: int) -> dict | None:
    """Read the resume file of a snapshot at `iteration`; None where there is no file.

    Raises CaffeError if the file is broken or of another iteration. All of it is checked
    but the states of layers, which only the layers know.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CaffeError(f'{path}: larger than any resume file ({_MAX_BYTES} bytes)')
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CaffeError):
            raise
        raise CaffeError(f'{path}: not a resume file: {error}') from error
    try:
        _check(content)
    except CaffeError as error:
        raise CaffeError(
            f"{path}: not a resume file: {error}; without the file the run resumes as Caffe's does"
        ) from error
    if content['iter'] != iteration:
        raise CaffeError(
            f'{path}: belongs to iteration {content["iter"]}, the solver state to {iteration}'
        )
    return content


def _check(content: Any) -> None:
    """Raise CaffeError unless `content` has the keys of `collect`, each of its kind."""
    if not isinstance(content, dict):
        raise CaffeError(f'expected an object, found {_short(content)}')
    # Earlier versions did without these.
    content.setdefault('streams_of_other_ranks', [])
    content.setdefault('layers_of_other_ranks', [])
    content.setdefault('type', None)
    content.setdefault(_DIGESTS, {})
    for key, kinds in {
        'iter': (int,),
        'type': (str, type(None)),
        'streams': (dict,),
        'streams_of_other_ranks': (list,),
        'layers': (dict,),
        'layers_of_other_ranks': (list,),
        'losses': (list,),
        'notes': (dict,),
        _DIGESTS: (dict,),
    }.items():
        if key not in content:
            raise CaffeError(f'{key} is missing')
        if type(content[key]) not in kinds:
            expected = ' or '.join(kind.__name__ for kind in kinds)
            raise CaffeError(f'{key}: expected {expected}, found {_short(content[key])}')
    for layers in content['layers_of_other_ranks']:
        if not isinstance(layers, dict):
            raise CaffeError(f'layers_of_other_ranks: expected dict, found {_short(layers)}')
    for loss in content['losses']:
        if type(loss) not in (int, float) or not math.isfinite(loss):
            raise CaffeError(f'losses: expected finite numbers, found {_short(loss)}')
    for kind, value in content[_DIGESTS].items():
        if not isinstance(value, str):
            raise CaffeError(f'{_DIGESTS}: {kind}: expected a string, found {_short(value)}')
    rng.check_state(content['streams'])
    for rank, streams in enumerate(content['streams_of_other_ranks'], 1):
        try:
            rng.check_state(streams)
        except CaffeError as error:
            raise CaffeError(f'streams_of_other_ranks: rank {rank}: {error}') from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f'{text[:37]}...'


def check_file(content: dict, where: Path, kind: str, path: Path) -> None:
    """Raise CaffeError unless `path` is the file of this kind that the snapshot was written with.

    `content` is that of the resume file `where`; `kind` is caffemodel or solverstate. Without
    a digest, as earlier versions wrote it, every file passes.
    """
    expected = content[_DIGESTS].get(kind)
    if expected is not None and digest_file(path) != expected:
        raise CaffeError(
            f'{path}: not the .{kind} of this snapshot: its SHA-256 is not the one in {where}'
        )


def apply(content: dict, solver: Resumable, where: str | os.PathLike) -> None:
    """Set layers, streams, losses and notes to what `load` or `collect` has returned.

    With another number of ranks than before all take rank 0's data order, and each keeps
    the random streams it has.
    Raises CaffeError, naming file `where` and layer, and changes nothing, if a layer's
    state is not one of its data.
    """
    layers = [content['layers'], *content['layers_of_other_ranks']]
    own = layers[parallel.solver_rank() if len(layers) == parallel.solver_count() else 0]
    before: list[tuple[Stateful, Any]] = []
    for name, layer in _layers(solver):
        if name not in own:
            continue
        before.append((layer, layer.state()))
        try:
            layer.set_state(own[name])
        except Exception as error:
            for changed, state in before:
                changed.set_state(state)
            raise CaffeError(
                f'{where}: layer {name.partition(":")[2]}: {str(error) or type(error).__name__}'
            ) from error
    streams = [content['streams'], *content['streams_of_other_ranks']]
    if len(streams) == parallel.solver_count():
        rng.set_state(streams[parallel.solver_rank()])
    else:
        LOG.warning(
            'Snapshot of %d processes, now there are %d: the data order goes on, random '
            'streams start anew',
            len(streams),
            parallel.solver_count(),
        )
    solver.losses.clear()
    solver.losses.extend(torch.tensor(loss, device=mode.device()) for loss in content['losses'])
    solver.notes = content['notes']
