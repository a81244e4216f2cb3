"""FCN-32s trained on whole images and on samples of their patches (CVPR 2015, figure 5).

Starts from   vgg16-fcn.caffemodel, or the plain VGG16 classifier (--weights)
Command       python solve/sampling.py [GPU]
Cost          1500 iterations of 20, of 40 and of 80 images
To expect     sampling.png; in the paper loss is alike over iterations, and far apart over images

Each cell of the coarse score keeps its loss with probability p. An update has 1 / p times as many
images, so that it has as many patches.
"""

if __name__ == '__main__':
    import _checkout
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nets import voc_fcn32s_sampled
from nets.data import SEED
from solve import launch
from solve.datasets import voc
from solve.run import variants
from solve.run.figures import save_figure
from solve.run.job import Job

KEEP = (1, 0.5, 0.25)
# CVPR 2015, section 4.3, for FCN-VGG16; the loss is a mean over pixels.
SOLVER = dict(base_lr=1e-4, lr_policy='fixed', momentum=0.9, weight_decay=0.0005, iter_size=20,
              max_iter=1500, average_loss=20, display=1, snapshot=500)  # fmt: skip


def draw_losses(losses: Mapping[float, Sequence[float]], images: int, path: Path) -> None:
    """Draw the mean loss of the last tenth of all iterations, over iterations and over images.

    losses: by share of cells that are kept. images: of an iteration that keeps all.
    """
    figure = Figure(figsize=(9, 4), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    for keep, values in losses.items():
        window = max(len(values) // 10, 1)
        smooth = np.convolve(values, np.ones(window) / window, 'valid')
        iterations = np.arange(window, len(values) + 1)
        label = 'full images' if keep == 1 else f'{100 * keep:.0f} % sampling'
        left.plot(iterations, smooth, label=label)
        right.plot(iterations * round(images / keep), smooth, label=label)
    left.set(xlabel='iteration', ylabel=f'loss, mean of the last {window}')
    right.set(xlabel='relative time (images processed)')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    save_figure(figure, path)


def solve(job: Job) -> None:
    images, losses = {**SOLVER, **job.constants}['iter_size'], {}
    print('\n  keep  images an iteration  loss: first tenth  last tenth  seconds')
    for keep in KEEP:
        net = functools.partial(voc_fcn32s_sampled.fcn, keep=keep, seed=SEED)
        size = round(images / keep)
        _, folder = variants.train(job, f'keep-{keep}', net, SOLVER, iter_size=size)
        lines = variants.read_displays(folder)
        losses[keep] = values = [line['loss'] for line in lines]
        seconds = sum(size / line['images_per_second'] for line in lines)
        tenth = max(len(values) // 10, 1)
        first, last = np.mean(values[:tenth]), np.mean(values[-tenth:])
        print(f'{keep:6} {size:20} {first:18.4f} {last:11.4f} {seconds:8.0f}', flush=True)
    draw_losses(losses, images, job.folder / 'sampling.png')
    print(f'\n{job.folder}/sampling.png')


if __name__ == '__main__':
    launch.run(
        solve, __doc__, voc, 'data/ilsvrc-nets/vgg16-fcn.caffemodel', files=('sampling.png',)
    )
