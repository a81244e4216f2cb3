"""A scoring that can be stopped and goes on: its state on disk and what it writes."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port import Net, solver_rank
from caffe_port.errors import CaffeError, make_folder, replacing
from solve.datasets.layer import SegDataLayer
from solve.run import experiments, pictures
from solve.run.counting import Count, Task, count_images
from solve.run.metrics import PRINTED, Scores, format_table

STATE = 'state.json'
SAVE_EVERY = 5  # seconds


@dataclass(frozen=True)
class State:
    """How far a scoring has come: images done, their counts by task, and what it scores."""

    of: dict[str, str]
    predictions: bool
    counts: list[Count]
    done: int = 0

    def write(self, path: Path) -> None:
        """Write the state as JSON; rank 0 writes."""
        if solver_rank():
            return
        tasks = [{'confusion': count.hist.tolist(), 'loss': count.loss} for count in self.counts]
        content = {
            'of': self.of,
            'predictions': self.predictions,
            'done': self.done,
            'tasks': tasks,
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content))

    @classmethod
    def read(cls, path: Path) -> State:
        """Read what `write` has written."""
        try:
            held = json.loads(path.read_text())
            counts = [
                Count(np.array(task['confusion'], np.int64), float(task['loss']))
                for task in held['tasks']
            ]
            return cls(dict(held['of']), held['predictions'], counts, int(held['done']))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CaffeError(f'{path}: not the state of a scoring; --force starts over') from error


@dataclass
class Scoring:
    """A net, its tasks, and the folder for the results.

    `of` says what is scored: net, weights and images. A state of anything else is refused.
    """

    net: Net
    layer: SegDataLayer
    tasks: list[Task]
    folder: Path
    of: dict[str, str]
    weights: Path | None = None  # a classes.txt beside them names the classes

    def suffix(self, task: Task) -> str:
        """Return what tells the files of one task from those of another."""
        return f'_{task.gt}' if len(self.tasks) > 1 else ''

    def count(self, predictions: bool, force: bool) -> State:
        """Score all images, or those that an earlier scoring into the same folder has left."""
        state = self._begin(predictions, force)
        images, path = len(self.layer.ids), self.folder / STATE
        if state.done == images:
            return state
        folders = [f'predictions{self.suffix(task)}' for task in self.tasks] if predictions else []
        save_dirs = [make_folder(self.folder / name) for name in folders]
        if state.done:
            self.layer.set_state({**self.layer.state(), 'index': state.done})
        saved = time.monotonic()
        try:
            for counts in count_images(
                self.net, self.tasks, self.layer.ids, save_dirs, start=state.done
            ):
                # One assignment, so that an interrupt finds an image counted or not.
                state = replace(
                    state, done=state.done + 1, counts=[a + b for a, b in zip(state.counts, counts)]
                )
                if time.monotonic() - saved > SAVE_EVERY:
                    state.write(path)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f'stopped after {state.done} of {images} images; the same '
                'command goes on from there'
            ) from None
        finally:
            state.write(path)
        return state

    def _begin(self, predictions: bool, force: bool) -> State:
        """Return the state to go on from: that in the folder, or one of no image."""
        fresh = State(self.of, predictions, [Count.zero(self.net, task) for task in self.tasks])
        path, images = self.folder / STATE, len(self.layer.ids)
        if force or not path.exists():
            return fresh
        found = State.read(path)
        differing = [what for what in self.of if found.of.get(what) != self.of[what]]
        if differing:
            raise CaffeError(
                f'{path}: of another scoring, whose {" and ".join(differing)} differ; '
                '--force starts over, --output names another folder'
            )
        if predictions and not (found.predictions and self._has_predictions(found.done)):
            print(f'{path}: scored without all predictions, so this starts over')
            return fresh
        print(
            f'{path}: all {images} images are scored already; --force scores again'
            if found.done == images
            else f'{path}: goes on after {found.done} of {images} images'
        )
        # A scoring that goes on without predictions no longer has all of them.
        return replace(found, predictions=predictions)

    def _has_predictions(self, count: int) -> bool:
        return all(
            (self.folder / f'predictions{self.suffix(task)}' / f'{name}.png').is_file()
            for task in self.tasks
            for name in self.layer.ids[:count]
        )

    def report(self, state: State) -> None:
        """Print the scores and write them, with the confusion matrices, to the folder."""
        data = sys.modules[type(self.layer).__module__]
        for task, count in zip(self.tasks, state.counts):
            names = experiments.name_classes(data, len(count.hist), self.weights)
            suffix = self.suffix(task)
            scores = Scores(count.hist, count.loss / len(self.layer.ids))
            path = self.folder / f'confusion{suffix}.npy'
            with replacing(path) as temporary, open(temporary, 'wb') as file:
                np.save(file, count.hist)
            pictures.draw_confusion(count.hist, names, self.folder / f'confusion{suffix}.png')
            with replacing(self.folder / f'scores{suffix}.json') as temporary:
                content = {'of': self.of, **to_json(scores, names)}
                temporary.write_text(json.dumps(content, indent=1))
            if suffix:
                print(f'\n{task.gt}:')
            for what, value in scores.printed().items():
                print(f'{what:16} {value:.6g}')
            print(format_table(scores, names))


def to_json(scores: Scores, names: Sequence[str]) -> dict[str, Any]:
    """Return all scores as what JSON can hold, null for those without a value."""

    def known(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return {
        **{what: known(getattr(scores, what)) for what in (*PRINTED, 'mean_iu_labelled')},
        'absent_from_ground_truth': [
            name for name, labelled in zip(names, scores.labelled) if not labelled
        ],
        'classes': {
            name: {'accuracy': known(accuracy), 'iu': known(iu)}
            for name, accuracy, iu in zip(names, scores.accuracy, scores.iu)
        },
    }
