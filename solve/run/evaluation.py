"""Score a net so that a stopped scoring can resume: its state on disk, and its results."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port import Net, mode, parallel, solver_rank
from caffe_port.errors import CaffeError, WriteError, make_folder, replacing
from solve.datasets.layer import SegDataLayer
from solve.run import experiments, pictures, precision
from solve.run.counting import Count, Task, count_images, predict
from solve.run.metrics import PRINTED, Scores, format_for_report, format_numbers, format_table
from solve.run.report import SHOWN, Extremes, ScoredPicture, write_report

STATE = 'state.json'
SAVE_EVERY = 5  # seconds
Shown = tuple[str, np.ndarray, np.ndarray, np.ndarray]  # name, image, label, prediction


@dataclass(frozen=True)
class EvaluationState:
    """The progress of a scoring: images done, their counts by task, and what is scored.

    `mean_iu` has, for each image done, its mean IU by task (None where all is void), and
    `files` a digest of the image's pictures and labels, as its files hold them.
    """

    of: dict[str, str]
    predictions: bool
    counts: list[Count]
    done: int = 0
    mean_iu: tuple[tuple[float | None, ...], ...] = ()
    files: tuple[str, ...] = ()

    def add(self, counts: Sequence[Count]) -> EvaluationState:
        """Return the state with another image counted."""
        return replace(
            self,
            done=self.done + 1,
            counts=[a + b for a, b in zip(self.counts, counts)],
            mean_iu=(
                *self.mean_iu,
                tuple(to_json_number(Scores(each.hist).mean_iu) for each in counts),
            ),
        )

    def write(self, path: Path) -> None:
        """Write the state as JSON."""
        tasks = [{'confusion': count.hist.tolist(), 'loss': count.loss} for count in self.counts]
        content = {
            'of': self.of,
            'predictions': self.predictions,
            'done': self.done,
            'tasks': tasks,
            'mean_iu': self.mean_iu,
            'files': self.files,
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content))

    @classmethod
    def read(cls, path: Path) -> EvaluationState:
        """Read what `write` has written."""
        try:
            held = json.loads(path.read_text())
            counts = [
                Count(np.array(task['confusion'], np.int64), float(task['loss']))
                for task in held['tasks']
            ]
            mean_iu = tuple(tuple(each) for each in held['mean_iu'])
            done, files = int(held['done']), tuple(held['files'])
            if not len(mean_iu) == len(files) == done:
                raise ValueError
            return cls(dict(held['of']), held['predictions'], counts, done, mean_iu, files)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CaffeError(f'{path}: not the state of a scoring; --force starts over') from error


@dataclass
class Evaluation:
    """A net, its tasks, and the folder for the results.

    `of` says what is scored: net, weights and images. A state of anything else is refused,
    and one of pictures or labels that have changed.
    """

    net: Net
    layer: SegDataLayer
    tasks: list[Task]
    folder: Path
    of: dict[str, str]
    weights: Path | None = None  # a classes.txt beside them names the classes
    precision: str = mode.FP32

    def suffix(self, task: Task) -> str:
        """Return the suffix of a task's files; empty if there is one task."""
        return f'_{task.gt}' if len(self.tasks) > 1 else ''

    def count(self, predictions: bool, force: bool) -> EvaluationState:
        """Score all images, or the rest if an earlier scoring into the same folder was stopped."""
        state = self._begin(predictions, force)
        images = len(self.layer.ids)
        if state.done == images:
            return state
        folders = [f'predictions{self.suffix(task)}' for task in self.tasks] if predictions else []
        save_dirs = [make_folder(self.folder / name) for name in folders]
        if predictions and not (self.folder / STATE).exists():
            self._save(state)  # the record that predictions are ours, also if this is killed
        if state.done:
            self.layer.set_state({**self.layer.state(), 'index': state.done})
        if mode.precision() != self.precision:
            self._change_precision()
        at = time.monotonic()
        saved = True
        try:
            for counts in count_images(
                self.net, self.tasks, self.layer.ids, save_dirs, start=state.done
            ):
                # One assignment, so that an interrupt finds an image counted or not.
                state = state.add(counts)
                if time.monotonic() - at > SAVE_EVERY:
                    state = self._save(state)
                    at = time.monotonic()
        except KeyboardInterrupt:
            saved = len(self._save(state).files) == state.done
            goes_on = 'the same command goes on from there' if saved else 'none of it is saved'
            raise KeyboardInterrupt(
                f'stopped after {state.done} of {images} images; {goes_on}'
            ) from None
        except CaffeError:
            self._save(state)
            raise
        return self._save(state)

    def _change_precision(self) -> None:
        """Compute in the evaluation's precision from now on; print what that changes."""
        start = self.layer.state()

        def run() -> dict[str, Tensor]:
            self.layer.set_state(start)
            self.net.forward_range(0, len(self.net.layers) - 1)
            return {task.layer: self.net.blobs[task.layer].tensor for task in self.tasks}

        print(precision.change(self.net, self.precision, run), file=sys.stderr, flush=True)
        self.layer.set_state(start)

    def list_files(self, predictions: bool, page: bool, errors: bool) -> list[str]:
        """Return the names of the results, beside the state, that these options write."""
        kinds = ['confusion{}.npy', 'scores{}.json', 'confusion{}.png', 'classes{}.png']
        kinds += ['report{}.html'] * page + ['errors{}.png'] * errors
        names = []
        for suffix in map(self.suffix, self.tasks):
            names += [kind.format(suffix) for kind in kinds]
            if predictions:
                names += [f'predictions{suffix}/{name}.png' for name in self.layer.ids]
        return names

    def has_record(self) -> bool:
        """Return whether a scoring has worked in the folder: its state is there, or scores."""
        names = [f'scores{self.suffix(task)}.json' for task in self.tasks]
        return os.path.lexists(self.folder / STATE) or any(
            _are_scores(self.folder / name) for name in names
        )

    def _save(self, state: EvaluationState) -> EvaluationState:
        """Write the state, with digests of the files of all images done; rank 0 writes.

        Where the disk refuses, a warning says so and the state is returned without them.
        """
        if solver_rank():
            return state
        left = self.layer.ids[len(state.files) : state.done]
        whole = replace(state, files=(*state.files, *map(self._digest, left)))
        try:
            whole.write(self.folder / STATE)
        except WriteError as error:
            print(f'\nWarning: {error}; the scoring goes on', file=sys.stderr, flush=True)
            return state
        return whole

    def _digest(self, name: str) -> str:
        """Return a digest of the files of an image."""
        digest = hashlib.sha256()
        for path in self.layer.files(name):
            try:
                content = path.read_bytes()
            except OSError as error:
                content = str(error.strerror).encode()
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()[:16]

    def _begin(self, predictions: bool, force: bool) -> EvaluationState:
        """Return the state to resume from: the one in the folder, or an empty one."""
        fresh = EvaluationState(
            self.of, predictions, [Count.zero(self.net, task) for task in self.tasks]
        )
        path, images = self.folder / STATE, len(self.layer.ids)
        if force or not path.exists():
            return fresh
        found = EvaluationState.read(path)
        differing = [
            what for what in {**self.of, **found.of} if found.of.get(what) != self.of.get(what)
        ]
        if differing:
            raise CaffeError(
                f'{path}: of another scoring, whose {" and ".join(differing)} differ; '
                '--force starts over, --output names another folder'
            )
        changed = parallel.call_on_first(
            lambda: [
                name
                for name, digest in zip(self.layer.ids, found.files)
                if self._digest(name) != digest
            ]
        )
        if changed:
            raise CaffeError(
                f'{path}: of other pictures or labels: {len(changed)} of {found.done} have '
                f'changed, first {changed[0]}; --force starts over, --output names another folder'
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

    def report(self, state: EvaluationState, page: bool = False, errors: bool = False) -> None:
        """Print the scores, then write them and the confusion matrices to the folder.

        With `page` also report.html, with the best and the worst pictures; with `errors`
        errors.png, which shows where the worst predictions are wrong.

        Raises WriteError where the disk refuses a file, when all is printed.
        """
        data = sys.modules[type(self.layer).__module__]
        found = []
        for number, (task, count) in enumerate(zip(self.tasks, state.counts)):
            names = experiments.name_classes(data, len(count.hist), self.weights)
            scores = Scores(count.hist, count.loss / len(self.layer.ids))
            found.append((number, task, scores, names))
            if self.suffix(task):
                print(f'\n{task.gt}:')
            print(format_numbers(scores))
            print(format_table(scores, names), flush=True)
            if task.loss and not math.isfinite(scores.loss):
                print(
                    f'Warning: {self.weights}: the loss is {scores.loss}: scores of some pictures '
                    'are NaN or infinite, and the classes found there mean nothing',
                    file=sys.stderr,
                )
        # Half a second that a start need not take, nor what is printed.
        from solve.run.figures import draw_class_scores, draw_confusion

        for number, task, scores, names in found:
            suffix = self.suffix(task)
            path = self.folder / f'confusion{suffix}.npy'
            with replacing(path) as temporary, open(temporary, 'wb') as file:
                np.save(file, scores.hist)
            with replacing(self.folder / f'scores{suffix}.json') as temporary:
                content = {'of': self.of, **to_json(scores, names)}
                temporary.write_text(json.dumps(content, indent=1))
            draw_confusion(scores.hist, names, self.folder / f'confusion{suffix}.png')
            draw_class_scores(scores, names, self.folder / f'classes{suffix}.png')
            if errors:
                self._draw_errors(state, number, task, names)
            if page:
                write_report(
                    self.folder / f'report{suffix}.html',
                    f'{self.folder.name}{suffix.replace("_", ", ")}',
                    {'images': str(state.done), **format_for_report(scores)},
                    names,
                    scores.hist,
                    self._find_extremes(state, number, task),
                )
                print(f'Report: {self.folder}/report{suffix}.html')

    def _draw_errors(
        self, state: EvaluationState, number: int, task: Task, names: Sequence[str]
    ) -> None:
        from solve.run.figures import draw_panel

        rows: list[list[np.ndarray | pictures.Labelled]] = []
        for _, image, label, best in self._run_again(task, _rank_images(state, number)[:SHOWN]):
            predicted = pictures.Labelled(best, names, label)
            rows.append([image, pictures.Labelled(label, names), predicted])
            rows[-1].append(replace(predicted, errors=True))
        path = self.folder / f'errors{self.suffix(task)}.png'
        draw_panel(['image', task.gt, 'prediction', 'errors'], rows, path)

    def _find_extremes(
        self, state: EvaluationState, number: int, task: Task
    ) -> list[ScoredPicture]:
        """Return the images of the best and the worst mean IU in a task."""
        order = _rank_images(state, number)
        kept = Extremes(SHOWN)
        for shown in self._run_again(task, dict.fromkeys([*order[:SHOWN], *order[-SHOWN:]])):
            kept.add(ScoredPicture.of(*shown))
        return kept.pictures

    def _run_again(self, task: Task, numbers: Iterable[int]) -> Iterator[Shown]:
        """Run the net on the images of these numbers; yield what `take_picture` returns."""
        for k in numbers:
            self.layer.set_state({**self.layer.state(), 'index': k})
            with torch.no_grad():
                self.net.forward_range(0, len(self.net.layers) - 1)
            yield take_picture(self.net, self.layer, task)


def _are_scores(path: Path) -> bool:
    """Return whether a file has what `to_json` returns."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {*PRINTED, 'classes'} <= {*found}


def _rank_images(state: EvaluationState, number: int) -> list[int]:
    """Return the numbers of the images that have a mean IU in a task, the worst first."""
    known_iu = [(each[number], k) for k, each in enumerate(state.mean_iu)]
    return [k for _, k in sorted((v, k) for v, k in known_iu if v is not None)]


def take_picture(net: Net, layer: SegDataLayer, task: Task) -> Shown:
    """Return the name of the image that is in a net, it, its label and prediction in a task."""
    data = sys.modules[type(layer).__module__]
    node = next(each for each in net.module.nodes if getattr(each.op, 'layer', None) is layer)
    blob = net.blobs[node.tops[0]].data[0]
    mean = getattr(data, 'MEAN_HHA' if layer.top_names[0] == 'hha' else 'MEAN', (0.0, 0.0, 0.0))
    image = pictures.to_picture(blob, mean if len(blob) == 3 else (0.0,))
    label = net.blobs[task.gt].data[0, 0].copy()
    return str(layer.current), image, label, predict(net, task.layer)


def to_json_number(value: float) -> float | None:
    """Return a number for JSON; None if it is not finite."""
    return float(value) if math.isfinite(value) else None


def to_json(scores: Scores, names: Sequence[str]) -> dict[str, Any]:
    """Return all scores for JSON, null for those without a value."""
    return {
        **{what: to_json_number(getattr(scores, what)) for what in (*PRINTED, 'mean_iu_labelled')},
        'absent_from_ground_truth': [
            name for name, labelled in zip(names, scores.labelled) if not labelled
        ],
        'classes': {
            name: {'accuracy': to_json_number(accuracy), 'iu': to_json_number(iu)}
            for name, accuracy, iu in zip(names, scores.accuracy, scores.iu)
        },
    }
