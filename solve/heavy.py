"""Compare gradient accumulation, online and heavy learning (PAMI 2016, section 4, table 2)."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
from pathlib import Path

import numpy as np

from caffe_port.errors import make_folder
from nets import voc_fcn32s
from solve.run import options, variants
from solve.samples import recipes

DESCRIPTION = """examples:
  heavy.py                          a drawn sample, some minutes on two cores
  heavy.py --images 400

Train FCN-32s on a drawn sample with the paper's batch sizes and momenta, all with the same
effective rate, lr x pixels of the loss / (1 - momentum), and on as many images. Batch k with
momentum m forgets an image as batch 1 with momentum m ** (1 / k) does: 0.9 ** (1 / 20) = 0.995.
"""
# Name, batch, momentum, whether the loss is a mean over pixels, and the paper's mean IU.
ROWS = (
    ('accumulated', 20, 0.9, False, 51.9),
    ('online', 1, 0.9, False, 60.7),
    ('heavy', 1, 0.99, False, 63.6),
    ('heavy, normalised', 1, 0.99, True, None),
)
EFFECTIVE = 0.1  # of the sample; the release's heavy learning: see below
VOC_PIXELS = 500 * 375


def main() -> None:
    parser = options.make_parser('heavy.py', DESCRIPTION, options.STATUS)
    add = parser.add_argument
    options.add_gpu(parser, positional=True)
    add('--images', type=int, default=60, metavar='N', help='to train each row on (default: 60)')
    add('--output', type=Path, default=Path('output/heavy-sample'), metavar='DIR',
        help='default: %(default)s')  # fmt: skip
    args = parser.parse_args()
    with options.session():
        options.choose_device(args.gpu)
        sample = recipes.prepare_sample('voc_fcn32s', make_folder(args.output))
        pixels = 150 * 190  # of a drawn image, about
        print(
            f'Release (voc_fcn32s): 1e-10 x {VOC_PIXELS} / (1 - 0.99) = '
            f'{1e-10 * VOC_PIXELS / 0.01:.3g}; here {EFFECTIVE:g}. Ours: drawn sample, '
            f'{args.images} images a row; paper: VOC 2011 val, PAMI 2016, table 2'
        )
        print('                   batch  momentum        lr  lr x pixels / (1 - m)  steps  '
              'loss a pixel  mean IU %  paper')  # fmt: skip
        for name, batch, momentum, normalised, paper in ROWS:
            summed = 1 if normalised else pixels
            rate = EFFECTIVE * (1 - momentum) / summed
            constants = dict(sample['constants'], base_lr=rate, momentum=momentum, iter_size=batch,
                             lr_policy='fixed')  # fmt: skip
            if normalised:
                constants['clip_gradients'] /= pixels
            net = voc_fcn32s.fcn('train', **sample['net'])
            net.layer[-1].loss_param.normalize = normalised
            steps = max(args.images // batch, 1)
            run = variants.train(net, sample['weights'][0], constants, steps)
            scores = variants.score(run.net, voc_fcn32s.fcn('seg11valid', **sample['net']), 12)
            last = np.mean(run.losses[-max(10 // batch, 1) :]) / summed
            print(f'{name:18} {batch:5}  {momentum:8}  {rate:8.2g}  {EFFECTIVE:21.3g}  {steps:5}  '
                  f'{last:12.4f}  {100 * scores.mean_iu:9.1f}  '
                  f'{paper or "-"}', flush=True)  # fmt: skip


if __name__ == '__main__':
    main()
