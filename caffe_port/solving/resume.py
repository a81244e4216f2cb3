"""What a snapshot of Caffe forgets: data order, random streams, recent losses, notes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from caffe_port import mode, parallel, rng
from caffe_port.errors import CaffeError, replacing
from caffe_port.ops.python import Python

if TYPE_CHECKING:
    from caffe_port.solving.solver import SGDSolver

LOG = logging.getLogger('caffe_port')
_MAX_BYTES = 16 * 2**20


def beside(state: str | os.PathLike) -> Path:
    """Where the memory of a solver state lies: x.solverstate has x.memory.json."""
    name = Path(state).name.removesuffix('.h5').removesuffix('.solverstate')
    return Path(state).with_name(f'{name}.memory.json')


def _layers(solver: SGDSolver) -> Iterator[tuple[str, Any]]:
    """The layers that have a state of their own, by net and name."""
    for number, net in enumerate([solver.net, *solver.test_nets]):
        for node in net.module.nodes:
            layer = node.op.layer if isinstance(node.op, Python) else node.op
            if hasattr(layer, 'set_state'):
                yield f'{number}:{node.name}', layer


def collect(solver: SGDSolver) -> dict:
    """The memory of a solver as it stands between two iterations; collective.

    Random streams and layers are those of every rank, as one that skips an image leaves the
    others' order; all else is the same on all.
    """
    own = {name: layer.state() for name, layer in _layers(solver)}
    (streams, layers), *others = parallel.gather((rng.get_state(), own))
    return {
        'iter': solver.iter,
        'type': solver.param.type,
        'streams': streams,
        'streams_of_other_ranks': [streams for streams, _ in others],
        'layers': layers,
        'layers_of_other_ranks': [layers for _, layers in others],
        'losses': [float(loss) for loss in solver.losses],
        'notes': solver.notes,
    }


def save(path: Path, content: dict) -> None:
    """Write what `collect` has returned."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} does not go into JSON')


def load(path: Path, iteration: int) -> dict | None:
    """The memory of a snapshot at `iteration`; None where there is no file.

    Raises CaffeError if the file is broken or of another iteration.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CaffeError(f'{path}: larger than any memory file ({_MAX_BYTES} bytes)')
        content = json.loads(path.read_text())
        for streams in [content['streams'], *content.setdefault('streams_of_other_ranks', [])]:
            streams['key'] = np.array(streams['key'], np.uint32)
            streams['devices'] = {
                name: np.array(state, np.uint8) for name, state in streams['devices'].items()
            }
        found = content['iter']
        content['losses'], content['notes']
        # Earlier versions kept the layers of rank 0 alone.
        for layers in [content['layers'], *content.setdefault('layers_of_other_ranks', [])]:
            layers.keys()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        if isinstance(error, CaffeError):
            raise
        raise CaffeError(
            f'{path}: not the memory of a snapshot: {error!r}; without the file '
            "the run resumes as Caffe's does"
        ) from error
    if found != iteration:
        raise CaffeError(f'{path}: belongs to iteration {found}, the solver state to {iteration}')
    return content


def recall(content: dict, solver: SGDSolver) -> None:
    """Put layers, streams, losses and notes back to what `content` says.

    Another number of ranks goes on in rank 0's data order, each with the streams it has.
    Raises CaffeError if it is of other data; what came before that has changed then.
    """
    layers = [content['layers'], *content['layers_of_other_ranks']]
    own = layers[parallel.solver_rank() if len(layers) == parallel.solver_count() else 0]
    for name, layer in _layers(solver):
        if name in own:
            layer.set_state(own[name])
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
