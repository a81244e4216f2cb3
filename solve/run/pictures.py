"""Learning curves and pictures of predictions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import torch

from caffe_port import Net
from caffe_port.errors import CaffeError, replacing
from solve.datasets.voc import palette
from solve.run.counting import predict, tasks


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log.jsonl, without those that a full disk has torn.

    Raises CaffeError if there is none, or no line is whole.
    """
    path = folder / 'log.jsonl'
    try:
        lines = [_line(text) for text in path.read_text(errors='replace').splitlines()]
    except FileNotFoundError as error:
        raise CaffeError(f'{path}: no such file; is {folder} the folder of a run?') from error
    if lines and not any(lines):
        raise CaffeError(f"{path}: not a run's log: no line of JSON with an iteration")
    return [line for line in lines if line]


def _line(text: str) -> dict:
    """What one line of a log says; nothing if it is torn."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) and 'iteration' in line else {}


def curve(folders: Sequence[Path], out: Path) -> None:
    """Draw smoothed loss and mean IU over iterations, a colour per run, to a PNG."""
    figure, left = plt.subplots(figsize=(8, 4.5), layout='constrained')
    right = left.twinx()
    for number, folder in enumerate(folders):
        color, lines = f'C{number}', read_log(Path(folder))
        for axis, key, style in (
            (left, 'smoothed_loss', '-'),
            (right, 'mean_iu', 'o--'),
            (right, 'geo_mean_iu', 's:'),
        ):
            points = [(line['iteration'], line[key]) for line in lines if key in line]
            if points:
                axis.plot(
                    *zip(*points),
                    style,
                    color=color,
                    linewidth=1.2,
                    markersize=4,
                    label=f'{Path(folder).name}: {key.replace("_", " ")}',
                )
    left.set(xlabel='iteration', ylabel='loss', yscale='log')
    right.set(ylabel='mean IU', ylim=(0, 1))
    handles = [h for axis in (left, right) for h in axis.get_legend_handles_labels()[0]]
    left.legend(handles=handles, loc='upper center', fontsize=8, framealpha=0.9)
    left.grid(alpha=0.3)
    _save(figure, out)


def panel(net: Net, means: Mapping[str, Sequence[float]], out: Path, rows: int = 5) -> None:
    """Draw the next images of a test net to a PNG, each with its labels and predictions in a row.

    `means` are the blobs with the pictures, by name, and what was subtracted from them.
    Labels and predictions are those that the net's losses compare.
    """
    compared = tasks(net)
    titles = [*means] + [title for task in compared for title in (task.gt, f'{task.gt}, predicted')]
    figure, axes = plt.subplots(
        rows,
        len(titles),
        figsize=(2.5 * len(titles), 2.1 * rows),
        layout='constrained',
        squeeze=False,
    )
    for row in axes:
        with torch.no_grad():
            net.forward()
        pictures = [picture(net.blobs[name].data[0], mean) for name, mean in means.items()]
        for task in compared:
            pictures += [
                in_colours(net.blobs[task.gt].data[0, 0]),
                in_colours(predict(net, task.layer)),
            ]
        for axis, image in zip(row, pictures):
            axis.imshow(image, cmap='gray')
            axis.axis('off')
    for axis, title in zip(axes[0], titles):
        axis.set_title(title)
    _save(figure, out)


def picture(blob: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """What a net sees, mean added: H x W x 3 uint8, RGB, of 3 channels BGR; else H x W."""
    if len(blob) == 1:
        return blob[0] + mean[0]
    bgr = blob.transpose(1, 2, 0) + np.asarray(mean)
    return bgr[..., ::-1].clip(0, 255).astype(np.uint8)


def in_colours(labels: np.ndarray) -> np.ndarray:
    """Class indices (H x W) as VOC's colours: H x W x 3 uint8, RGB."""
    return palette()[labels.astype(np.uint8)]


def _save(figure, out: Path) -> None:
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
    plt.close(figure)
