"""The snapshots of a run: finding the newest whole one, keeping no more than asked."""

from __future__ import annotations

import re
from pathlib import Path

from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel
from caffe_port.solving import resume


def states(prefix: Path) -> dict[int, Path]:
    """The solver states written under a prefix, by iteration, oldest first."""
    pattern = re.compile(re.escape(prefix.name) + r'_iter_(\d+)\.solverstate(\.h5)?')
    found = {
        int(match[1]): path
        for path in prefix.parent.glob('*')
        if (match := pattern.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def model_of(state: Path) -> Path:
    """The weights that belong to a solver state."""
    return state.with_name(state.name.replace('.solverstate', '.caffemodel'))


def latest(prefix: Path) -> Path:
    """The newest snapshot under a prefix that is whole.

    Raises CaffeError if there is none.
    """
    broken = []
    for iteration, state in reversed(states(prefix).items()):
        try:
            caffemodel.read(model_of(state))
            kept = resume.load(beside := resume.beside(state), caffemodel.read_state(state).iter)
            if kept is not None:
                resume.check_file(kept, beside, 'caffemodel', model_of(state))
                resume.check_file(kept, beside, 'solverstate', state)
            return state
        except CaffeError as error:
            broken.append(str(error))
    raise CaffeError(
        f'{prefix}_iter_*.solverstate: no whole snapshot'
        + ''.join(f'; {reason}' for reason in broken)
    )


def set_aside(prefix: Path, iteration: int) -> list[Path]:
    """Rename the snapshots beyond `iteration`, another run's, to *.old; returns the states'.

    A run that goes on there would else take them for its own newest ones.
    """
    renamed = []
    for number, state in states(prefix).items():
        if number > iteration:
            for path in (model_of(state), resume.beside(state)):
                if path.exists():
                    path.rename(path.with_name(f'{path.name}.old'))
            renamed.append(state.rename(state.with_name(f'{state.name}.old')))
    return renamed


def prune(prefix: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` snapshots and the one of iteration `best`."""
    found = states(prefix)
    for iteration in [*found][:-keep]:
        if iteration != best:
            state = found[iteration]
            # The state goes first: without it the rest does not count as a snapshot.
            for path in (state, model_of(state), resume.beside(state)):
                path.unlink(missing_ok=True)


def sweep(prefix: Path) -> None:
    """Delete what a killed run left half-written under a prefix."""
    for path in prefix.parent.glob(f'.{prefix.name}_iter_*.tmp'):
        path.unlink(missing_ok=True)
