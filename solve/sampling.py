"""Train on whole images and on samples of their patches (CVPR 2015, figure 5)."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from caffe_port.errors import make_folder
from nets import voc_fcn32s_sampled
from nets.data import SEED
from solve.run import options, variants
from solve.run.pictures import save_figure
from solve.samples import recipes

DESCRIPTION = """examples:
  sampling.py                       a drawn sample, some minutes on two cores
  sampling.py --iterations 100 --keep 1 0.5

Train FCN-32s on a drawn sample, each cell of the coarse score keeping its loss with probability p.
A step has 1 / p images, so that it has as many patches. Writes sampling.png: loss over iterations,
and over the images that were computed, which is the paper's measure of time.
"""
# The loss is a mean over pixels; Caffe divides the gradient by iter_size.
SOLVER = dict(base_lr=0.01, lr_policy='fixed', momentum=0.9, weight_decay=0.0005,
              average_loss=1, random_seed=SEED)  # fmt: skip


def draw_losses(curves: dict[float, list[float]], path: Path) -> None:
    """Draw running means over the last fifth of the steps so far, at most ten."""
    figure = Figure(figsize=(9, 4), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    for keep, losses in curves.items():
        smooth = [np.mean(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
        steps = np.arange(1, len(losses) + 1)
        label = 'full images' if keep == 1 else f'{100 * keep:.0f}% sampling'
        for axes, x in ((left, steps), (right, steps * round(1 / keep))):
            axes.plot(x, smooth, label=label)
    left.set(xlabel='iteration', ylabel='loss, mean of 10 steps')
    right.set(xlabel='images computed')
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = options.make_parser('sampling.py', DESCRIPTION, options.STATUS)
    add = parser.add_argument
    options.add_gpu(parser, positional=True)
    add('--iterations', type=int, default=20, metavar='N', help='of each run (default: 20)')
    add('--keep', type=float, nargs='+', default=[1, 0.5, 0.25], metavar='P',
        help='shares of cells (default: 1 0.5 0.25)')  # fmt: skip
    add('--output', type=Path, default=Path('output/sampling-sample'), metavar='DIR',
        help='default: %(default)s')  # fmt: skip
    args = parser.parse_args()
    with options.session():
        options.choose_device(args.gpu)
        folder = make_folder(args.output)
        sample = recipes.prepare_sample('voc_fcn32s', folder)
        curves = {}
        print('keep  images a step  loss: first step  last 10 steps  seconds')
        for keep in args.keep:
            net = voc_fcn32s_sampled.fcn('train', **sample['net'], keep=keep, seed=SEED)
            constants = dict(SOLVER, iter_size=round(1 / keep))
            run = variants.train(net, sample['weights'][0], constants, args.iterations)
            curves[keep] = losses = run.losses
            print(f'{keep:4}  {round(1 / keep):13}  {losses[0]:16.4f}  '
                  f'{np.mean(losses[-10:]):13.4f}  {run.seconds:7.1f}', flush=True)  # fmt: skip
        draw_losses(curves, folder / 'sampling.png')
        print(f'{folder}/sampling.png')


if __name__ == '__main__':
    main()
