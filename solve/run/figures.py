"""Draw learning curves, panels of pictures and scores as figures, by matplotlib.

Only what draws imports this file: matplotlib takes half a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter

from caffe_port.errors import CaffeError, replacing
from solve.datasets.images import VOID
from solve.datasets.voc import palette
from solve.run import log
from solve.run.metrics import Scores
from solve.run.pictures import Labelled

KINDS = ('.png', '.pdf', '.svg')
# In the metadata of what is drawn.
_DRAWN = 'FCN pictures'

# Learning curves.


def draw_curve(runs: Sequence[Path], path: Path) -> None:
    """Draw loss and mean IU over iterations, a colour per run, the legend beside them.

    A run is the folder of one, of a chain of runs, or a log file. The suffix of `path` says what
    is written: .png, .pdf or .svg.

    Raises CaffeError where there is no log, or for another suffix.
    """
    check_kind(path)
    logs = [(name, file) for run in runs for name, file in _find_logs(run)]
    figure = Figure(figsize=(9, 5.5), layout='constrained')
    above, below = figure.subplots(2, 1, sharex=True)
    for number, (name, file) in enumerate(logs):
        lines = log.read(file)
        for axis, unit, key, style, label in (
            (above, 1, 'loss', dict(ls='-', lw=0.6, alpha=0.3), None),
            (above, 1, 'smoothed_loss', dict(ls='-'), 'loss'),
            (above, 1, 'test_loss', dict(ls='none', marker='x'), 'loss, test'),
            (below, 100, 'mean_iu', dict(ls='--', marker='o'), 'mean IU'),
            (below, 100, 'geo_mean_iu', dict(ls=':', marker='s'), 'mean IU, geo'),
        ):
            points = [
                (line['iteration'], unit * line[key])
                for line in lines
                if log.is_finite(line.get(key))
            ]
            if points:
                axis.plot(
                    *zip(*points),
                    **{'color': f'C{number % 10}', 'lw': 1.3, 'markersize': 4, **style},
                    label=f'{name}: {label}' if label else None,
                )
    above.set(ylabel='loss', yscale='log')
    above.yaxis.set_major_formatter(LogFormatter())
    above.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    below.set(xlabel='iteration', ylabel='mean IU, %', ylim=(0, 100))
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc='upper left', bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    save_figure(figure, path)


def _find_logs(run: Path) -> list[tuple[str, Path]]:
    """Return the logs of a run by name: of a log file, a run's folder, or a chain's."""
    if not run.is_dir():
        return [(run.resolve().parent.name if run.name == log.NAME else run.stem, run)]
    found = log.find(run)
    if len(found) > 1 or (found and found[0].parent != run):
        return [(file.parent.name, file) for file in sorted(found, key=_first_time)]
    return [(run.resolve().name, run)]


def _first_time(file: Path) -> float:
    """Return when a log begins, so that the runs of a chain come in their order."""
    lines = log.read(file)
    return lines[0].get('time', 0) if lines else 0


def check_kind(path: Path) -> str:
    """Return the format that the suffix of a file names; raise CaffeError for an unknown one."""
    if path.suffix.lower() not in KINDS:
        raise CaffeError(f'{path}: the suffix must be one of {", ".join(KINDS)}')
    return path.suffix.lower().removeprefix('.')


# Panels.


def draw_panel(
    titles: Sequence[str], rows: Sequence[Sequence[np.ndarray | Labelled]], path: Path
) -> None:
    """Draw pictures, each row of them side by side under the titles.

    The names of the classes in a row of labels are beneath that row.
    """
    ratios = [float(np.divide(*_image_of(row[0]).shape[:2])) for row in rows]
    heights = [2.6 * min(max(ratio, 0.4), 1.3) + 0.75 for ratio in ratios]
    figure = Figure(figsize=(2.7 * len(titles), sum(heights)), layout='constrained')
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights).ravel()
    for number, (part, row) in enumerate(zip(parts, rows)):
        axes = part.subplots(1, len(titles), squeeze=False)[0]
        for axis, title, shown in zip(axes, titles, row):
            axis.imshow(_image_of(shown), cmap='gray', interpolation='nearest')
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color('0.8')
            if number == 0:
                axis.set_title(title, fontsize=10)
            if isinstance(shown, Labelled) and (caption := shown.caption()):
                axis.set_xlabel(caption, fontsize=8)
        if handles := _list_classes(row):
            part.legend(
                handles=handles,
                loc='outside lower center',
                ncols=min(len(handles), 2 * len(titles)),
                fontsize=8,
                frameon=False,
                handlelength=1,
                handleheight=1,
            )
    save_figure(figure, path)


def _image_of(shown: np.ndarray | Labelled) -> np.ndarray:
    return shown.picture() if isinstance(shown, Labelled) else shown


def _list_classes(row: Sequence[np.ndarray | Labelled]) -> list[Patch]:
    """Return a patch with the name of each class in a row of a panel, hatched for void."""
    colours, found = palette() / 255, {}
    for shown in row:
        if isinstance(shown, Labelled) and not shown.errors:
            for number in np.unique(shown.labels).astype(int):
                if number == VOID and len(shown.names) <= VOID:
                    found['void'] = Patch(facecolor='0.92', edgecolor='0.6', hatch='////', lw=0)
                elif number < len(shown.names):
                    name = shown.names[number]
                    found[name] = Patch(facecolor=colours[number], edgecolor='0.6', lw=0.5)
    for name, patch in found.items():
        patch.set_label(name)
    return list(found.values())


# Scores.


def draw_class_scores(scores: Scores, names: Sequence[str], path: Path) -> None:
    """Draw IU and accuracy of each class as bars, the best IU first, with the mean IU as a line.

    Classes without label and prediction have no IU: they come last, without a bar.
    """
    order = np.argsort(-np.nan_to_num(scores.iu, nan=-1), kind='stable')
    figure = Figure(figsize=(7.5, 1.5 + 0.25 * len(names)), layout='constrained')
    axes = figure.subplots()
    places = np.arange(len(names))
    iu, accuracy = (100 * np.nan_to_num(each[order]) for each in (scores.iu, scores.accuracy))
    axes.barh(places, accuracy, 0.8, color='0.87', label='accuracy')
    axes.barh(places, iu, 0.5, color='C0', label='IU')
    for place, number, value, end in zip(places, order, iu, np.maximum(iu, accuracy)):
        absent = math.isnan(scores.iu[number])
        axes.text(
            end + 0.8,
            float(place),
            'absent' if absent else f'{value:.1f}',
            va='center',
            fontsize=8,
            color='0.45' if absent else '0.15',
        )
    axes.set_yticks(places, [names[number] for number in order], fontsize=8)
    axes.set(xlim=(0, 106), ylim=(len(names) - 0.4, -0.6), xlabel='%')
    axes.spines[['top', 'right']].set_visible(False)
    if math.isfinite(scores.mean_iu):
        mean = 100 * scores.mean_iu
        axes.axvline(mean, color='C3', lw=1, ls='--', zorder=0, label=f'mean IU {mean:.1f} %')
    axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    save_figure(figure, path)


def draw_confusion(hist: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, every row as shares of the labelled class."""
    shares = 100 * hist / np.maximum(hist.sum(1, keepdims=True), 1)
    size = 3 + 0.2 * len(names)
    figure = Figure(figsize=(size + 1, size), layout='constrained')
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel='predicted', ylabel='labelled')
    figure.colorbar(shown, label='share of the labelled class, %')
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix of `path` says as what: .png, .pdf or .svg."""
    kind = check_kind(path)
    metadata = {'Software' if kind == 'png' else 'Creator': _DRAWN}
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=110, metadata=metadata)


def is_drawing(path: Path) -> bool:
    """Return whether a file is a curve, panel or chart that this module has written."""
    try:
        return _DRAWN.encode() in path.read_bytes()
    except OSError as error:
        raise CaffeError(f'{path}: cannot be read: {error.strerror or error}') from error
