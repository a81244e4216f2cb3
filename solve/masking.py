"""Train and test with foreground or background masked, or on shape alone (PAMI 2016, table 8)."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
from pathlib import Path

from caffe_port.errors import make_folder
from nets import voc_fcn32s
from solve.run import options, variants
from solve.samples import recipes

DESCRIPTION = """examples:
  masking.py                        a drawn sample, some minutes on two cores
  masking.py --iterations 200

Train FCN-32s on a drawn sample with each mask and score it with its own or another one. The mask
is the option 'mask' of the data layers of VOC and SBD. Mean IU leaves out the background, as in
the paper.
"""
# Name, what is masked in training and in testing, and the paper's mean IU (PAMI 2016, table 8).
ROWS = (
    ('Reference', None, None, 84.8),
    ('Reference-FG', None, 'background', 81.0),
    ('Reference-BG', None, 'foreground', 19.8),
    ('FG-only', 'background', 'background', 76.1),
    ('BG-only', 'foreground', 'foreground', 37.8),
    ('Shape', 'shape', 'shape', 29.1),
)


def main() -> None:
    parser = options.make_parser('masking.py', DESCRIPTION, options.STATUS)
    add = parser.add_argument
    options.add_gpu(parser, positional=True)
    add('--iterations', type=int, default=60, metavar='N', help='of each run (default: 60)')
    add('--images', type=int, default=12, metavar='N', help='to score (default: 12)')
    add('--output', type=Path, default=Path('output/masking-sample'), metavar='DIR',
        help='default: %(default)s')  # fmt: skip
    args = parser.parse_args()
    with options.session():
        options.choose_device(args.gpu)
        sample = recipes.prepare_sample('voc_fcn32s', make_folder(args.output))
        train, test = (voc_fcn32s.fcn(split, **sample['net']) for split in ('train', 'seg11valid'))
        trained = {}
        print(f'Mean IU, %, without background; ours: drawn sample, {args.iterations} iterations')
        print(f'{"":13} masked in training, in testing   ours  paper')
        for name, mask, tested, paper in ROWS:
            if mask not in trained:
                trained[mask] = variants.train(
                    variants.set_data(train, mask=mask), sample['weights'][0], sample['constants'],
                    args.iterations,
                )  # fmt: skip
            scores = variants.score(
                trained[mask].net, variants.set_data(test, mask=tested), args.images
            )
            ours = 100 * variants.mean_iu_without_background(scores)
            print(f'{name:13} {mask or "-":18} {tested or "-":11} {ours:6.1f} {paper:6.1f}',
                  flush=True)  # fmt: skip


if __name__ == '__main__':
    main()
