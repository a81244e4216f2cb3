"""Learn all, some or none of the upsampling, or the last layer alone (CVPR 2015, section 4)."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
from pathlib import Path
from types import ModuleType

from caffe_port.errors import make_folder
from nets import voc_fcn8s_atonce, voc_fcn32s
from solve.run import options, variants
from solve.samples import recipes

DESCRIPTION = """examples:
  upsampling.py                     a drawn sample, some minutes on two cores
  upsampling.py --iterations 200

Train FCN-8s at once on a drawn sample with its upsampling fixed (the release), learned but for the
last (CVPR 2015) or all learned, each from bilinear interpolation; and FCN-32s with everything fixed
but its score layer (FCN-32s-fixed).
"""
# Name, net, lr_mult by layer ('*': all others), and the paper's mean IU where there is one.
ROWS: tuple[tuple[str, ModuleType, dict[str, float], str], ...] = (
    ('8s, all fixed', voc_fcn8s_atonce, {}, '65.4 (PAMI 2016, table 3)'),
    ('8s, last fixed', voc_fcn8s_atonce, {'upscore2': 1, 'upscore_pool4': 1}, '62.7 (CVPR 2015)'),
    ('8s, all learned', voc_fcn8s_atonce,
     {'upscore2': 1, 'upscore_pool4': 1, 'upscore8': 1}, '-'),
    ('32s', voc_fcn32s, {}, '59.4 (CVPR 2015, table 2)'),
    ('32s-fixed', voc_fcn32s, {'*': 0, 'score_fr': 1}, '45.4 (CVPR 2015, table 2)'),
)  # fmt: skip


def main() -> None:
    parser = options.make_parser('upsampling.py', DESCRIPTION, options.STATUS)
    add = parser.add_argument
    options.add_gpu(parser, positional=True)
    add('--iterations', type=int, default=60, metavar='N', help='of each run (default: 60)')
    add('--images', type=int, default=12, metavar='N', help='to score (default: 12)')
    add('--output', type=Path, default=Path('output/upsampling-sample'), metavar='DIR',
        help='default: %(default)s')  # fmt: skip
    args = parser.parse_args()
    with options.session():
        options.choose_device(args.gpu)
        sample = recipes.prepare_sample('voc_fcn32s', make_folder(args.output))
        print(f'Mean IU, %; ours: drawn sample, {args.iterations} iterations')
        for name, net, rates, paper in ROWS:
            trained = variants.train(
                variants.set_rates(net.fcn('train', **sample['net']), rates),
                sample['weights'][0], sample['constants'], args.iterations,
            )  # fmt: skip
            scores = variants.score(
                trained.net, net.fcn('seg11valid', **sample['net']), args.images
            )
            print(f'{name:16} {100 * scores.mean_iu:5.1f}   paper {paper}', flush=True)


if __name__ == '__main__':
    main()
