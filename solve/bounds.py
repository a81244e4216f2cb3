"""Measure the upper bounds on mean IU of predictions on a coarser grid (arXiv 1411.4038)."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
import functools
from pathlib import Path

from caffe_port.errors import make_folder
from solve.run import bounds, options
from solve.run.ground_truth import add_data_options, open_ground_truth
from solve.samples import trees

DESCRIPTION = """examples:
  bounds.py                                    a drawn sample, without data
  bounds.py voc_fcn32s --sbdd-dir SBD/dataset --voc-dir VOC2011

Downsample the ground truth by 128 to 4, upsample it again and score it: about the best that a net
of that stride can reach. Writes bounds.png. The paper (arXiv 1411.4038, appendix A) measured a
subset of VOC 2011's val and does not say how it upsampled: two ways are measured.
"""


def main() -> None:
    parser = options.make_parser('bounds.py', DESCRIPTION, options.STATUS)
    add_data_options(parser)
    parser.add_argument('--output', type=Path, default=Path('output/bounds'), metavar='DIR',
                        help='for the picture (default: %(default)s)')  # fmt: skip
    args = parser.parse_args()
    with options.session():
        folder = make_folder(args.output)
        draw = functools.partial(trees.draw_dataset, folder=folder / 'data')
        truth = open_ground_truth(args, draw)
        found = bounds.measure_bounds(truth, len(truth.classes))
        print(f'Mean IU in percent, {truth.name}; paper: of VOC 2011 val\n')
        print(f'factor  {"  ".join(f"{way:>8}" for way in found)}     paper')
        for factor in bounds.FACTORS:
            ours = '  '.join(f'{100 * scores[factor].mean_iu:8.1f}' for scores in found.values())
            print(f'{factor:6}  {ours}  {bounds.PAPER[factor]:8.1f}')
        bounds.draw_bounds(found, truth.name, folder / 'bounds.png')
        print(f'\n{folder}/bounds.png')


if __name__ == '__main__':
    main()
