"""Samples and nets made small, so that whole commands run in a second."""

import functools
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from nets import caffenet, googlenet, vgg16
from solve.run import figures, job
from solve.samples import classifiers, recipes


def shrink_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the samples to few small images, hardly any channels and two iterations."""
    monkeypatch.setattr(
        classifiers,
        'CLASSIFIER_NETS',
        {
            'vgg16': (vgg16.classifier, 193, dict(width=2, fc=8), 1),
            'caffenet': (caffenet.classifier, 199, dict(width=6, fc=8), 1),
            'googlenet': (googlenet.classifier, 223, dict(width=4), 1),
        },
    )
    monkeypatch.setattr(classifiers, 'SCENES', 10)
    monkeypatch.setattr(job, 'PANEL_ROWS', 1)
    for name, entry in recipes.RECIPES.items():
        few = dict(train=2, val=1, size=(80, 80))
        constants = {**entry.constants, 'max_iter': 2, 'snapshot': 1, 'iter_size': 1}
        monkeypatch.setitem(
            recipes.RECIPES,
            name,
            replace(
                entry, draw=functools.partial(entry.draw, **few), constants=constants, before=1
            ),
        )


def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make figures as ever, but write an empty one: rendering takes half of a small run's time.

    tests/solve/run/test_pictures.py renders each kind, tests/solve/test_experiments.py those of
    each data set.
    """
    save = figures.save_figure
    empty = Figure(figsize=(1, 1))
    monkeypatch.setattr(figures, 'save_figure', lambda figure, path: save(empty, path))
