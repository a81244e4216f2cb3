"""The samples: data drawn on the spot, narrow nets, and what else is not as published."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solve.run import experiment, snapshots
from solve.samples import classifiers, trees

SEED = 1337


_voc = functools.partial(trees.draw, 'voc', train=150, val=40)
_nyud = functools.partial(trees.draw, 'nyud')
_siftflow = functools.partial(trees.draw, 'siftflow', size=(160, 160))
_pascalcontext = functools.partial(trees.draw, 'pascalcontext')


@dataclass(frozen=True)
class Sample:
    """What an experiment's sample has in place of the published data, start and constants."""

    draw: Callable[[Path], dict[str, str]]  # draws into a folder, returns arguments of fcn()
    starts: tuple[str, ...]  # classifiers, or samples that come before it
    constants: dict[str, Any]
    before: int = 0  # iterations where it only comes before another

    @property
    def classifier(self) -> str:
        """The classifier that it, or the first sample before it, starts from."""
        first = self.starts[0]
        return first if first in classifiers.NETS else EXPERIMENTS[first].classifier


def _summed(base_lr: float, iterations: int, step: int) -> dict[str, Any]:
    """Constants for a loss that is a sum over some 30,000 pixels, hence the small rates.

    Gradients are clipped as the score layer, starting at 0, overshoots otherwise.
    """
    return dict(
        base_lr=base_lr,
        max_iter=iterations,
        snapshot=step,
        lr_policy='poly',
        power=1,
        momentum=0.9,
        clip_gradients=130000,
    )


# Where every pixel has a class of its own and pictures differ all over, gradients of single
# images lead astray more: a third of the rate. Finer nets only add detail: less again.
EXPERIMENTS = {
    'voc_fcn32s': Sample(_voc, ('vgg16',), _summed(3e-7, 500, 100), before=200),
    'voc_fcn16s': Sample(_voc, ('voc_fcn32s',), _summed(1e-7, 200, 50), before=100),
    'voc_fcn8s': Sample(_voc, ('voc_fcn16s',), _summed(1e-7, 200, 50)),
    'voc_fcn8s_atonce': Sample(_voc, ('vgg16',), _summed(3e-7, 400, 100)),
    # The loss is normalised, so the rate is not that small.
    'voc_fcn_alexnet': Sample(
        _voc,
        ('caffenet',),
        dict(base_lr=0.01, lr_policy='poly', power=1, iter_size=4, max_iter=150, snapshot=50),
    ),
    'nyud_fcn32s_color': Sample(_nyud, ('vgg16',), _summed(3e-7, 300, 100), before=150),
    'nyud_fcn32s_color_d': Sample(_nyud, ('vgg16',), _summed(3e-7, 300, 100)),
    'nyud_fcn32s_hha': Sample(_nyud, ('vgg16',), _summed(3e-7, 300, 100), before=150),
    'nyud_fcn32s_color_hha': Sample(
        _nyud, ('nyud_fcn32s_color', 'nyud_fcn32s_hha'), _summed(5e-8, 100, 50)
    ),
    'siftflow_fcn32s': Sample(_siftflow, ('vgg16',), _summed(1e-7, 400, 200), before=200),
    'siftflow_fcn16s': Sample(_siftflow, ('siftflow_fcn32s',), _summed(5e-8, 200, 100), before=100),
    'siftflow_fcn8s': Sample(_siftflow, ('siftflow_fcn16s',), _summed(5e-8, 200, 100)),
    # Fewer iterations: 60 classes make them slow.
    'pascalcontext_fcn32s': Sample(_pascalcontext, ('vgg16',), _summed(1e-7, 250, 125), before=100),
    'pascalcontext_fcn16s': Sample(
        _pascalcontext, ('pascalcontext_fcn32s',), _summed(5e-8, 120, 60), before=50
    ),
    'pascalcontext_fcn8s': Sample(
        _pascalcontext, ('pascalcontext_fcn16s',), _summed(5e-8, 120, 60)
    ),
}
# The chain begins as its first stage does.
EXPERIMENTS['voc_chain'] = EXPERIMENTS['voc_fcn32s']


def folder_of(name: str, beside: Path = Path('output')) -> Path:
    """Where the sample of an experiment goes unless told otherwise."""
    return beside / f'{name}-sample'


def is_in(folder: Path) -> bool:
    """Whether a run of a sample has left its data in `folder`."""
    return (folder / 'data').is_dir()


def settings(name: str, seed: int = SEED, iterations: int | None = None) -> dict[str, Any]:
    """What of an experiment's constants a sample's Job replaces; as many iterations as told."""
    constants = dict(EXPERIMENTS[name].constants, random_seed=seed)
    if iterations:
        constants.update(max_iter=iterations, snapshot=iterations)
    return dict(constants=constants, step=constants['snapshot'])


def prepare(name: str, folder: Path, seed: int = SEED, start: bool = True) -> dict[str, Any]:
    """Draw the data of an experiment's sample into `folder` and train what it starts from.

    Returns what a Job needs: weights (none without `start`), net, constants and step.
    """
    chosen = EXPERIMENTS[name]
    net = dict(chosen.draw(folder / 'data'), **classifiers.narrow(chosen.classifier))
    weights = [_weights(first, folder, net, seed) for first in chosen.starts] if start else []
    return dict(weights=weights, net=net, **settings(name, seed))


def _weights(name: str, folder: Path, net: dict[str, Any], seed: int) -> Path:
    """A classifier's or a sample's weights: there already, an earlier run's, or made here."""
    if name in classifiers.NETS:
        file = f'{name}-narrow.caffemodel'
        made, earlier = folder / file, sorted(folder.parent.glob(f'*-sample/{file}'))
    else:
        made = _last(folder / 'before' / name, EXPERIMENTS[name].before)
        earlier = [_last(folder_of(name, folder.parent), EXPERIMENTS[name].constants['max_iter'])]
    for path in (made, *earlier):
        if path.exists():
            print(f'Starting from {path}', flush=True)
            return path
    if name in classifiers.NETS:
        classifiers.train(name, made, seed)
    else:
        _train_before(name, folder, net, seed)
    return made


def _last(folder: Path, iterations: int) -> Path:
    return folder / 'snapshot' / f'train_iter_{iterations}.caffemodel'


def _train_before(name: str, folder: Path, net: dict[str, Any], seed: int) -> None:
    """Run the sample of another experiment, cut short, for what it leaves to start from."""
    chosen, own = EXPERIMENTS[name], folder / 'before' / name
    own.mkdir(parents=True, exist_ok=True)
    weights = [_weights(first, folder, net, seed) for first in chosen.starts]
    print(f'Training {name} first, for {chosen.before} iterations', flush=True)
    job = experiment.Job(name, own, weights, net=net, **settings(name, seed, chosen.before))
    if snapshots.states(job.prefix):  # stopped under way
        job.resume = experiment.LATEST
    with contextlib.redirect_stdout(None):
        importlib.import_module(f'solve.{name}').solve(job)
