"""Pictures of labels, predictions, confusion and learning: arrays and logs in, PNGs out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from caffe_port.errors import replacing
from solve.datasets.voc import palette
from solve.run import log


def to_picture(blob: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """Add the mean to what a net sees: C x H x W, BGR, becomes H x W x 3 uint8, RGB.

    One channel becomes H x W.
    """
    if len(blob) == 1:
        return blob[0] + mean[0]
    bgr = blob.transpose(1, 2, 0) + np.asarray(mean)
    return bgr[..., ::-1].clip(0, 255).astype(np.uint8)


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """Give class indices (H x W) VOC's colours: H x W x 3 uint8, RGB."""
    return palette()[labels.astype(np.uint8)]


def save_labels(labels: np.ndarray, path: Path) -> None:
    """Write class indices (H x W) as a palette PNG in VOC's colours."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette().tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format='PNG')


def save_overlay(rgb: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Write a picture (H x W x 3 uint8) with the classes' colours over it, half and half."""
    mixed = (rgb.astype(np.uint16) + colour_labels(labels)) // 2
    with replacing(path) as temporary:
        Image.fromarray(mixed.astype(np.uint8)).save(temporary, format='PNG')


def draw_curve(folders: Sequence[Path], path: Path) -> None:
    """Draw smoothed loss and mean IU over iterations, a colour per run, to a PNG.

    Raises CaffeError where a folder has no log.
    """
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    left = figure.subplots()
    right = left.twinx()
    for number, folder in enumerate(folders):
        lines = log.read(folder)
        for axis, key, style in (
            (left, 'smoothed_loss', '-'),
            (right, 'mean_iu', 'o--'),
            (right, 'geo_mean_iu', 's:'),
        ):
            points = [(line['iteration'], line[key]) for line in lines if key in line]
            if points:
                label = f'{folder.name}: {key.replace("_", " ")}'
                axis.plot(
                    *zip(*points), style, color=f'C{number}', lw=1.2, markersize=4, label=label
                )
    left.set(xlabel='iteration', ylabel='loss', yscale='log')
    right.set(ylabel='mean IU', ylim=(0, 1))
    handles = [h for axis in (left, right) for h in axis.get_legend_handles_labels()[0]]
    left.legend(handles=handles, loc='upper center', fontsize=8, framealpha=0.9)
    left.grid(alpha=0.3)
    _save(figure, path)


def draw_panel(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    """Draw pictures to a PNG, each row of them side by side under the titles."""
    size = 2.5 * len(titles), 2.1 * len(rows)
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title)
    for row, pictures in zip(axes, rows):
        for axis, picture in zip(row, pictures):
            axis.imshow(picture, cmap='gray')
            axis.axis('off')
    _save(figure, path)


def draw_confusion(hist: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix to a PNG, every row as shares of the labelled class."""
    shares = hist / np.maximum(hist.sum(1, keepdims=True), 1)
    size = 3 + 0.2 * len(names)
    figure = Figure(figsize=(size + 1, size), layout='constrained')
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel='predicted', ylabel='labelled')
    figure.colorbar(shown, label='share of the labelled class')
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format='png', dpi=110)
