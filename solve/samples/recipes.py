"""The samples: drawn data, narrow nets, and all else that differs from the published runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from caffe_port.errors import make_folder
from nets.data import SEED
from solve.run import retention
from solve.run.job import LATEST, Job
from solve.samples import classifiers, trees

_draw_voc = functools.partial(trees.draw_dataset, 'voc', train=150, val=40)
_draw_nyud = functools.partial(trees.draw_dataset, 'nyud')
_draw_siftflow = functools.partial(trees.draw_dataset, 'siftflow', size=(160, 160))
_draw_pascalcontext = functools.partial(trees.draw_dataset, 'pascalcontext')


@dataclass(frozen=True)
class Recipe:
    """What an experiment's sample has in place of the published data, start and constants."""

    draw: Callable[..., dict[str, str]]  # draws into a folder, returns arguments of fcn()
    starts: tuple[str, ...]  # a classifier, or the experiments whose samples come before it
    constants: dict[str, Any]
    before: int = 0  # iterations where it only comes before another

    @property
    def classifier(self) -> str:
        """The classifier at the start of this sample's chain."""
        first = self.starts[0]
        return first if first in classifiers.CLASSIFIER_NETS else RECIPES[first].classifier


def _summed(base_lr: float, iterations: int, step: int) -> dict[str, Any]:
    """Return constants for a loss summed over some 30,000 pixels, hence with small rates.

    Gradients are clipped: the score layer starts at 0 and would overshoot.
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


# SIFT Flow and PASCAL-Context label every pixel and their pictures differ more, so gradients of
# single images are noisier: a third of the rate. Finer nets only add detail: less again.
RECIPES = {
    'voc_fcn32s': Recipe(_draw_voc, ('vgg16',), _summed(3e-7, 500, 100), before=200),
    'voc_fcn16s': Recipe(_draw_voc, ('voc_fcn32s',), _summed(1e-7, 200, 50), before=100),
    'voc_fcn8s': Recipe(_draw_voc, ('voc_fcn16s',), _summed(1e-7, 200, 50)),
    'voc_fcn8s_atonce': Recipe(_draw_voc, ('vgg16',), _summed(3e-7, 400, 100)),
    # The loss is normalised: the rate is not that small.
    'voc_fcn_alexnet': Recipe(
        _draw_voc,
        ('caffenet',),
        dict(base_lr=0.01, lr_policy='poly', power=1, iter_size=4, max_iter=150, snapshot=50),
    ),
    'voc_fcn_googlenet': Recipe(
        _draw_voc,
        ('googlenet',),
        dict(base_lr=0.01, lr_policy='poly', power=1, iter_size=4, max_iter=150, snapshot=50),
    ),
    'nyud_fcn32s_color': Recipe(_draw_nyud, ('vgg16',), _summed(3e-7, 300, 100), before=150),
    'nyud_fcn32s_color_d': Recipe(_draw_nyud, ('vgg16',), _summed(3e-7, 300, 100)),
    'nyud_fcn32s_hha': Recipe(_draw_nyud, ('vgg16',), _summed(3e-7, 300, 100), before=150),
    'nyud_fcn32s_color_hha': Recipe(
        _draw_nyud, ('nyud_fcn32s_color', 'nyud_fcn32s_hha'), _summed(5e-8, 100, 50)
    ),
    'siftflow_fcn32s': Recipe(_draw_siftflow, ('vgg16',), _summed(1e-7, 400, 200), before=200),
    'siftflow_fcn16s': Recipe(
        _draw_siftflow, ('siftflow_fcn32s',), _summed(5e-8, 200, 100), before=100
    ),
    'siftflow_fcn8s': Recipe(_draw_siftflow, ('siftflow_fcn16s',), _summed(5e-8, 200, 100)),
    # Fewer iterations: 60 classes make them slow.
    'pascalcontext_fcn32s': Recipe(
        _draw_pascalcontext, ('vgg16',), _summed(1e-7, 250, 125), before=100
    ),
    'pascalcontext_fcn16s': Recipe(
        _draw_pascalcontext, ('pascalcontext_fcn32s',), _summed(5e-8, 120, 60), before=50
    ),
    'pascalcontext_fcn8s': Recipe(
        _draw_pascalcontext, ('pascalcontext_fcn16s',), _summed(5e-8, 120, 60)
    ),
}
# The chain starts as its first stage does.
RECIPES['voc_chain'] = RECIPES['voc_fcn32s']


def _mean(base_lr: float, iterations: int) -> dict[str, Any]:
    """Return constants for a loss that is a mean over pixels, clipped as a summed one is."""
    return dict(
        base_lr=base_lr, max_iter=iterations, snapshot=iterations, iter_size=1, clip_gradients=4
    )


# The papers' other experiments, each several short trainings of a net of VOC's.
STUDIES = {
    'balancing': _mean(0.01, 150),
    'heavy': dict(_summed(3.5e-8, 200, 200), lr_policy='fixed', momentum=0.99),
    'masking': _summed(3e-7, 150, 150),
    # Of single images the loss jumps more than sampling changes it.
    'sampling': dict(_mean(0.01, 40), iter_size=4),
    'upsampling': _summed(3e-7, 250, 250),
}
for _name, _constants in STUDIES.items():
    RECIPES[_name] = replace(RECIPES['voc_fcn32s'], constants=_constants)


def folder_of(name: str, beside: Path = Path('output')) -> Path:
    """Return the default output folder of an experiment's sample."""
    return beside / f'{name}-sample'


def is_in(folder: Path) -> bool:
    """Say whether a run of a sample has left its data in `folder`."""
    return (folder / 'data').is_dir()


def make_settings(name: str, seed: int = SEED, iterations: int | None = None) -> dict[str, Any]:
    """Return a sample's settings of a Job; `iterations` replaces the sample's own number."""
    constants = dict(RECIPES[name].constants, random_seed=seed)
    if iterations:
        constants.update(max_iter=iterations, snapshot=iterations)
    return dict(constants=constants, step=constants['snapshot'])


def prepare_sample(
    name: str, folder: Path, after: Sequence[ModuleType] = (), seed: int = SEED, start: bool = True
) -> dict[str, Any]:
    """Draw the data of an experiment's sample into `folder` and train what it starts from.

    `after` are the scripts of the experiments that come before it. Returns what a Job
    needs: weights (none without `start`), net, constants and step.
    """
    recipe = RECIPES[name]
    net = dict(recipe.draw(folder / 'data'), **classifiers.make_net_arguments(recipe.classifier))
    trainer = _Trainer(folder, net, seed, after)
    weights = [trainer.find_or_make(first) for first in recipe.starts] if start else []
    return dict(weights=weights, net=net, **make_settings(name, seed))


@dataclass
class _Trainer:
    """Finds or trains the weights that a sample starts from, for its net and seed."""

    folder: Path
    net: dict[str, Any]
    seed: int
    after: Sequence[ModuleType]

    def find_or_make(self, name: str) -> Path:
        """Return a classifier's or a sample's weights: an earlier run's, or made here."""
        is_classifier = name in classifiers.CLASSIFIER_NETS
        if is_classifier:
            file = f'{name}-narrow.caffemodel'
            made, earlier = self.folder / file, sorted(self.folder.parent.glob(f'*-sample/{file}'))
        else:
            recipe = RECIPES[name]
            made = _weights_after(self.folder / 'before' / name, recipe.before)
            sample = folder_of(name, self.folder.parent)
            earlier = [_weights_after(sample, recipe.constants['max_iter'])]
        for path in (made, *earlier):
            if path.exists():
                print(f'Starting from {path}', flush=True)
                return path
        if is_classifier:
            classifiers.train_classifier(name, made, self.seed)
        else:
            self._train_before(name)
        return made

    def _train_before(self, name: str) -> None:
        """Run the sample of another experiment, cut short, to start from its weights."""
        (script,) = (each for each in self.after if each.__name__.endswith(f'.{name}'))
        recipe, own = RECIPES[name], make_folder(self.folder / 'before' / name)
        weights = [self.find_or_make(first) for first in recipe.starts]
        print(f'Training {name} first, for {recipe.before} iterations', flush=True)
        settings = make_settings(name, self.seed, recipe.before)
        job = Job(name, own, weights, net=self.net, **settings)
        if retention.list_states(job.prefix):  # an earlier call was stopped
            job.resume = LATEST
        with contextlib.redirect_stdout(None):
            script.solve(job)


def _weights_after(folder: Path, iterations: int) -> Path:
    return folder / 'snapshot' / f'train_iter_{iterations}.caffemodel'
