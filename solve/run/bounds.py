"""The best mean IU that labels of a coarser grid allow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt, zoom

from solve.datasets.images import VOID
from solve.run.figures import save_figure
from solve.run.metrics import Scores, fast_hist

FACTORS = (128, 64, 32, 16, 8, 4)
# arXiv 1411.4038, appendix A: mean IU on a subset of PASCAL VOC 2011's val, in percent.
PAPER = dict(zip(FACTORS, (50.9, 73.3, 86.1, 92.8, 96.4, 98.5)))


def fill_void(labels: np.ndarray) -> np.ndarray:
    """Give void pixels the label of the nearest other pixel: H x W, uint8."""
    void = labels == VOID
    if not void.any() or void.all():
        return labels
    nearest = distance_transform_edt(void, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]


def coarsen(labels: np.ndarray, factor: int) -> np.ndarray:
    """Keep the middle pixel of every factor x factor block; the last blocks may be cut.

    labels: H x W. Returns a pixel for every block.
    """
    rows, columns = (
        np.minimum(np.arange(0, side, factor) + factor // 2, side - 1) for side in labels.shape
    )
    return labels[np.ix_(rows, columns)]


def upsample_nearest(coarse: np.ndarray, factor: int, size: tuple[int, int]) -> np.ndarray:
    """Repeat every pixel over its block, and cut to `size`."""
    return coarse.repeat(factor, 0).repeat(factor, 1)[: size[0], : size[1]]


def upsample_bilinear(coarse: np.ndarray, factor: int, size: tuple[int, int]) -> np.ndarray:
    """Interpolate the indicator of each class, as an FCN does scores; take the largest."""
    classes = np.unique(coarse)
    best, found = np.zeros(size), np.full(size, classes[0])
    for number in classes:
        shares = zoom(
            (coarse == number).astype(float), factor, order=1, mode='nearest', grid_mode=True
        )[: size[0], : size[1]]
        found[shares > best] = number
        best = np.maximum(best, shares)
    return found


UPSAMPLINGS = {'nearest': upsample_nearest, 'bilinear': upsample_bilinear}


def measure_bounds(
    images: Iterable[np.ndarray], classes: int, factors: Sequence[int] = FACTORS
) -> dict[str, dict[int, Scores]]:
    """Return the scores of labels that were downsampled and upsampled, by way and factor.

    images: labels H x W, 255 for void, which does not count.
    """
    hists = {
        (way, factor): np.zeros((classes, classes), np.int64)
        for way in UPSAMPLINGS
        for factor in factors
    }
    for labels in images:
        whole = fill_void(labels)
        if (labels == VOID).all():
            continue
        for (way, factor), hist in hists.items():
            again = UPSAMPLINGS[way](coarsen(whole, factor), factor, labels.shape)
            hist += fast_hist(np.where(labels == VOID, -1, labels.astype(int)), again, classes)
    return {way: {factor: Scores(hists[way, factor]) for factor in factors} for way in UPSAMPLINGS}


def draw_bounds(bounds: Mapping[str, Mapping[int, Scores]], title: str, path: Path) -> None:
    """Draw mean IU over the factor, ours and the paper's."""
    figure = Figure(figsize=(6.5, 4), layout='constrained')
    axes = figure.subplots()
    for way, scores in bounds.items():
        axes.plot(
            [*scores],
            [100 * each.mean_iu for each in scores.values()],
            'o-',
            label=f'{title}, {way}',
        )
    axes.plot(
        [*PAPER],
        [*PAPER.values()],
        'k--s',
        markersize=4,
        label='VOC 2011 val (arXiv 1411.4038, appendix A)',
    )
    axes.set_xscale('log', base=2)
    axes.invert_xaxis()
    axes.set_xticks(FACTORS, list(map(str, FACTORS)))
    axes.set(xlabel='factor', ylabel='mean IU, %', ylim=(0, 102))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
