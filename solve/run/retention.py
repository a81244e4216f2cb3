"""Find the newest whole snapshot of a run, and delete those that --keep does not keep."""

from __future__ import annotations

import re
from pathlib import Path

from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel
from caffe_port.solving import resume


def list_states(prefix: Path) -> dict[int, Path]:
    """Return the solver states written under a prefix, by iteration, oldest first."""
    pattern = re.compile(re.escape(prefix.name) + r'_iter_(\d+)\.solverstate(\.h5)?')
    found = {
        int(match[1]): path
        for path in prefix.parent.glob('*')
        if (match := pattern.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def name_weights(state: Path) -> Path:
    """Return the path of the weights that belong to a solver state."""
    return state.with_name(state.name.replace('.solverstate', '.caffemodel'))


def find_latest(prefix: Path) -> Path:
    """Return the newest snapshot under a prefix that is whole.

    Raises CaffeError if there is none.
    """
    broken = []
    for state in reversed(list_states(prefix).values()):
        try:
            caffemodel.read(name_weights(state))
            kept = resume.read(
                beside := resume.name_resume_file(state), caffemodel.read_state(state).iter
            )
            if kept is not None:
                resume.check_file(kept, beside, 'caffemodel', name_weights(state))
                resume.check_file(kept, beside, 'solverstate', state)
            return state
        except CaffeError as error:
            broken.append(str(error))
    raise CaffeError(
        f'{prefix}_iter_*.solverstate: no whole snapshot'
        + ''.join(f'; {reason}' for reason in broken)
    )


def set_aside(prefix: Path, iteration: int) -> list[Path]:
    """Rename the snapshots beyond `iteration` to *.old; return the new paths of the states.

    They belong to another run; a resumed run would mistake them for its newest.
    """
    renamed = []
    for number, state in list_states(prefix).items():
        if number > iteration:
            for path in (name_weights(state), resume.name_resume_file(state)):
                if path.exists():
                    path.rename(path.with_name(f'{path.name}.old'))
            renamed.append(state.rename(state.with_name(f'{state.name}.old')))
    return renamed


def prune(prefix: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` snapshots and the one of iteration `best`.

    Weights and resume files without a state go too: a full disk has refused the state.
    """
    found = list_states(prefix)
    kept = {best, *[*found][-keep:]}
    for iteration, state in found.items():
        if iteration not in kept:
            # The state first: without it the rest does not count as a snapshot.
            for path in (state, name_weights(state), resume.name_resume_file(state)):
                path.unlink(missing_ok=True)
    pattern = re.compile(re.escape(prefix.name) + r'_iter_(\d+)\.(caffemodel(\.h5)?|memory\.json)')
    for path in prefix.parent.glob('*'):
        match = pattern.fullmatch(path.name)
        if match and int(match[1]) not in {best, *found}:
            path.unlink(missing_ok=True)


def sweep(prefix: Path) -> None:
    """Delete the half-written files that a killed run left under a prefix."""
    for path in prefix.parent.glob(f'.{prefix.name}_iter_*.tmp'):
        path.unlink(missing_ok=True)
