"""Recognise results of earlier calls: PNGs that name their net, settings and picture."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from caffe_port.errors import WriteError
from solve.run import workspace

# The text of a PNG: who wrote it; the net, weights and settings; the picture.
SOFTWARE, NET, PICTURE = 'Software', 'Net', 'Picture'
OURS = 'FCN infer'


def read_text(path: Path) -> Mapping[str, str]:
    """Return the text in a PNG; nothing for a file that is none."""
    try:
        with Image.open(path, formats=('PNG',)) as image:
            return {key: value for key, value in image.info.items() if isinstance(value, str)}
    except Exception:  # not a PNG, or a broken one: in either case not a result
        return {}


def is_ours(path: Path) -> bool:
    """Return whether infer.py has written a file."""
    return path.suffix == '.png' and read_text(path).get(SOFTWARE) == OURS


def holds(path: Path, text: Mapping[str, str]) -> bool:
    """Return whether a file is the result that has this text."""
    found = read_text(path)
    return all(found.get(key) == value for key, value in text.items())


def refuse_foreign(paths: Iterable[Path]) -> None:
    """Raise CaffeError if files that this command did not write would be replaced."""
    foreign = [str(path) for path in paths if path.exists() and not is_ours(path)]
    workspace.refuse_foreign(
        Path(), foreign, False, 'infer.py', '--force replaces it, --output names another folder'
    )


def check_writable(folder: Path) -> None:
    """Raise WriteError if no file can be made in a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WriteError(f'{folder}: no file can be written: {error.strerror or error}') from error


def name_results(
    folder: Path, picture: Path, tasks: Sequence[str], kinds: Sequence[str]
) -> dict[tuple[str, str], Path]:
    """Return the files of a picture's results by task and kind: dog_labels.png, dog_overlay.png.

    With several tasks, the name of the task comes before the kind: beach_sem_labels.png.
    """
    return {
        (task, kind): folder / f'{picture.stem}{_suffix(task, tasks)}_{kind}.png'
        for task in tasks
        for kind in kinds
    }


def _suffix(task: str, tasks: Sequence[str]) -> str:
    return '_' + task.removeprefix('score_') if len(tasks) > 1 else ''
