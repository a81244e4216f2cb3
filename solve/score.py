"""Score a segmentation net as the official release does: any net, weights and split.

Stopped, it can go on. As a module it has what the release's score.py has.
"""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from caffe_port import TEST, Net, parallel, prototxt, solver_rank
from caffe_port.errors import CaffeError, make_folder, replacing
from caffe_port.files import weights
from caffe_port.proto.caffe_pb2 import LayerParameter, NetParameter
from solve.datasets import voc
from solve.datasets.layer import Params, SegDataLayer
from solve.run import counting, trained
from solve.run.counting import Count, Scores, Task, compute_hist, do_seg_tests, fast_hist, seg_tests
from solve.run.options import ROOT, option

__all__ = ['compute_hist', 'do_seg_tests', 'fast_hist', 'seg_tests']

# The split that the release scores each experiment on.
SPLITS = {'voc': 'seg11valid', 'nyud': 'test', 'siftflow': 'test', 'pascalcontext': 'val'}
PLACES = tuple(dict.fromkeys(place for data in trained.DATA.values() for place in data.PLACES))
# What is printed first, by the names of Scores.
NUMBERS = ('loss', 'overall_accuracy', 'mean_accuracy', 'mean_iu', 'fwavacc')
STATE = 'state.json'
SAVE_EVERY = 5  # seconds
EXAMPLES = """
examples:
  score.py voc_fcn8s fcn8s-heavy-pascal.caffemodel
  score.py siftflow_fcn16s siftflow.pth --siftflow-dir SiftFlow --predictions
  score.py val.prototxt snapshot/train_iter_4000.caffemodel --split train

Stopped, the same command goes on where it was. The output folder then holds scores.json,
confusion.npy (rows are labels, columns predictions), confusion.png and, if asked for,
predictions/; of SIFT Flow one of each for both tasks, their names ending in _sem and _geo.

exit status: 0, or 2 with one line `error: ...`, or 130 if stopped
"""


@dataclass(frozen=True)
class State:
    """How far a scoring has come: images done, their counts by task, and what it is of."""

    of: dict[str, str]
    predictions: bool
    counts: list[Count]
    done: int = 0

    def write(self, path: Path) -> None:
        if solver_rank():
            return
        tasks = [{'confusion': count.hist.tolist(), 'loss': count.loss} for count in self.counts]
        with replacing(path) as temporary:
            temporary.write_text(
                json.dumps(
                    {
                        'of': self.of,
                        'predictions': self.predictions,
                        'done': self.done,
                        'tasks': tasks,
                    }
                )
            )

    def found_at(self, path: Path, images: int) -> State:
        """The state at `path`, which must be one of the scoring that `self` begins."""
        try:
            held = json.loads(path.read_text())
            found = State(
                held['of'],
                held['predictions'],
                [
                    Count(np.array(task['confusion'], np.int64), float(task['loss']))
                    for task in held['tasks']
                ],
                held['done'],
            )
            differing = [what for what in self.of if found.of.get(what) != self.of[what]]
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise CaffeError(f'{path}: not the state of a scoring; --force begins anew') from error
        if differing:
            raise CaffeError(
                f'{path}: of another scoring, whose {" and ".join(differing)} differ; '
                '--force begins anew, --output names another folder'
            )
        if (
            type(found.done) is not int
            or not 0 <= found.done <= images
            or [c.hist.shape for c in found.counts] != [c.hist.shape for c in self.counts]
        ):
            raise CaffeError(
                f'{path}: not a state of this net and {images} images; --force begins anew'
            )
        return found


@dataclass
class Scoring:
    """A net, what of it is scored, and where the results go."""

    net: Net
    layer: SegDataLayer
    tasks: list[Task]
    folder: Path
    of: dict[str, str]

    def suffix(self, task: Task) -> str:
        """What tells the files of one task from those of another."""
        return f'_{task.gt}' if len(self.tasks) > 1 else ''

    def count(self, predictions: bool, force: bool) -> State:
        """Score all images, or those that an earlier scoring into the same folder has left."""
        state = self._begun(predictions, force)
        images, path = len(self.layer.ids), self.folder / STATE
        if state.done == images:
            return state
        save_dirs = (
            [make_folder(self.folder / f'predictions{self.suffix(task)}') for task in self.tasks]
            if predictions
            else []
        )
        if state.done:
            self.layer.set_state({**self.layer.state(), 'index': state.done})
        saved = time.monotonic()
        try:
            for counts in counting.count_images(
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

    def _begun(self, predictions: bool, force: bool) -> State:
        fresh = State(self.of, predictions, [Count.none(self.net, task) for task in self.tasks])
        path, images = self.folder / STATE, len(self.layer.ids)
        if force or not path.exists():
            return fresh
        found = fresh.found_at(path, images)
        if predictions and not (found.predictions and self._has_predictions(found.done)):
            print(f'{path}: scored without all predictions, so this begins anew')
            return fresh
        print(
            f'{path}: all {images} images are scored already; --force scores anew'
            if found.done == images
            else f'{path}: goes on after {found.done} of {images} images'
        )
        # Without them from here on, they are not whole and must not count as made.
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
            names, suffix = trained.class_names(data, len(count.hist)), self.suffix(task)
            scores = counting.measures(count.hist, count.loss / len(self.layer.ids))
            with replacing(self.folder / f'confusion{suffix}.npy') as temporary:
                with open(temporary, 'wb') as file:
                    np.save(file, count.hist)
            draw_confusion(count.hist, names, self.folder / f'confusion{suffix}.png')
            with replacing(self.folder / f'scores{suffix}.json') as temporary:
                temporary.write_text(
                    json.dumps({'of': self.of, **as_json(scores, names)}, indent=1)
                )
            if suffix:
                print(f'\n{task.gt}:')
            for what in NUMBERS:
                print(f'{what:16} {getattr(scores, what):.6g}')
            print(counting.table(scores, names))


def as_json(scores: Scores, names: Sequence[str]) -> dict[str, Any]:
    """All scores as what JSON can hold, null for those without a value."""

    def known(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return {
        **{what: known(getattr(scores, what)) for what in (*NUMBERS, 'mean_iu_labelled')},
        'absent_from_ground_truth': [
            name for name, labelled in zip(names, scores.labelled) if not labelled
        ],
        'classes': {
            name: {'accuracy': known(accuracy), 'iu': known(iu)}
            for name, accuracy, iu in zip(names, scores.accuracy, scores.iu)
        },
    }


def draw_confusion(hist: np.ndarray, names: Sequence[str], out: Path) -> None:
    """Draw a confusion matrix to a PNG, every row as shares of the class that is labelled."""
    shares = hist / np.maximum(hist.sum(1, keepdims=True), 1)
    size = 3 + 0.2 * len(names)
    figure = Figure(figsize=(size + 1, size), layout='constrained')
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel='predicted', ylabel='labelled')
    figure.colorbar(shown, label='share of the labelled class')
    with replacing(out) as temporary:
        figure.savefig(temporary, format='png', dpi=110)


# From the command line to a Scoring.


def _data_layers(param: NetParameter) -> Iterator[tuple[LayerParameter, Params]]:
    """The data layers of a net that solve/datasets has, and what their param_str says."""
    for layer in param.layer:
        if hasattr(sys.modules.get(layer.python_param.module), 'PLACES'):
            yield layer, Params.parse(layer.name, layer.python_param.param_str)


def _configure(param: NetParameter, split: str | None, places: dict[str, Path]) -> None:
    """Have the data layers go through `split` in order, with the data in `places`."""
    for layer, params in _data_layers(param):
        own = sys.modules[layer.python_param.module].PLACES
        for place in places:
            if place not in own:
                raise CaffeError(
                    f"{option(place)}: this net's data lies in " + ' and '.join(map(option, own))
                )
        changes = {
            'randomize': False,
            **{place: str(path) for place, path in places.items()},
            **({'split': split} if split else {}),
        }
        layer.python_param.param_str = repr({**params.values, **changes})


def _build(param: NetParameter, places: dict[str, Path]) -> Net:
    try:
        return Net(param, TEST)
    except CaffeError as error:
        for place, folder in places.items():
            if str(folder) in str(error) and not folder.is_dir():
                raise CaffeError(
                    f'{folder}: no such folder; {option(place)} says where it is'
                ) from error
        raise


def _layer_of(net: Net, name: str) -> SegDataLayer:
    for node in net.module.nodes:
        layer = getattr(node.op, 'layer', None)
        if isinstance(layer, SegDataLayer):
            return layer
    raise CaffeError(
        f'{name}: no data layer of solve/datasets in it, so there is nothing to score it on'
    )


def _identity(param: NetParameter, layer: SegDataLayer, path: Path) -> dict[str, str]:
    """What a scoring is of: net, weights and images, wherever these lie."""
    plain = NetParameter()
    plain.CopyFrom(param)
    for data, params in _data_layers(plain):
        kept = {key: params.values[key] for key in sorted({*params.values} - {'split', *PLACES})}
        data.python_param.param_str = repr(kept)
    checksum = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            checksum.update(chunk)
    return {
        'net': _sha256(prototxt.to_text(plain)),
        'weights': f'{path.stat().st_size} bytes, sha256 {checksum.hexdigest()}',
        'images': f'{len(layer.ids)} of {layer.split}, {_sha256(repr(layer.ids))}',
    }


def _sha256(text: str) -> str:
    return f'sha256 {hashlib.sha256(text.encode()).hexdigest()}'


def prepared(args: argparse.Namespace) -> Scoring:
    """The net that a command line names, with its weights, and the folder for its scores."""
    layers = weights.read(args.weights)
    data = trained.data_of(args.net)
    split = args.split or (SPLITS[args.net.split('_')[0]] if data else None)
    param = trained.described(args.net, split, layers)
    places = {place: ROOT / folder for place, folder in data.PLACES.items()} if data else {}
    places |= {place: getattr(args, place) for place in PLACES if getattr(args, place)}
    _configure(param, split, places)
    net = _build(param, places)
    trained.load(net, args.weights, layers)
    layer, tasks = _layer_of(net, args.net), counting.tasks(net)
    if not tasks:
        raise CaffeError(f'{args.net}: no SoftmaxWithLoss in it, which would tell what to score')
    if layer.split == 'seg11valid' and len(layer.ids) != voc.SEG11VALID_IMAGES:
        print(
            f'Note: the official seg11valid has {voc.SEG11VALID_IMAGES} images: scores will not '
            'compare with published ones',
            file=sys.stderr,
        )
    named = (
        Path(args.net).stem,
        args.weights.name.removesuffix(weights.kind_of(args.weights)),
        layer.split,
    )
    folder = make_folder(args.output or Path('output', 'score', '-'.join(named)))
    print(
        f'{args.net} with {args.weights} on {layer.split}, {len(layer.ids)} images; '
        f'output folder: {folder}',
        flush=True,
    )
    return Scoring(net, layer, tasks, folder, _identity(param, layer, args.weights))


def _score(args: argparse.Namespace) -> None:
    scoring = prepared(args)
    state = scoring.count(args.predictions, args.force)
    parallel.first(lambda: scoring.report(state))


def main() -> None:
    parser = trained.parser('score.py', 'Score a net as the official release does.', EXAMPLES)
    add = parser.add_argument
    add('--split', help='default: the one that is published, or what the prototxt has')
    for place in PLACES:
        add(
            option(place),
            type=Path,
            metavar='DIR',
            help="default: as in the experiment's script, or what the prototxt has",
        )
    add('--output', type=Path, metavar='DIR', help='default: output/score/NET-WEIGHTS-SPLIT')
    add('--predictions', action='store_true', help='write predictions as palette PNGs')
    add('--force', action='store_true', help='begin anew where an earlier scoring could go on')
    trained.run(parser, _score)


if __name__ == '__main__':
    main()
