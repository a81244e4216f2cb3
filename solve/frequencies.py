"""Count how often each class is labelled, and derive weights for the loss."""

from __future__ import annotations

if __name__ == '__main__':
    import _checkout
import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from caffe_port.errors import make_folder
from solve.run import options
from solve.run.ground_truth import add_data_options, open_ground_truth
from solve.samples import trees

DESCRIPTION = """examples:
  frequencies.py --train                       a drawn sample, without data
  frequencies.py voc_fcn32s --train --sbdd-dir SBD/dataset --voc-dir VOC2011

Count the labelled pixels of each class. A class's weight is the inverse of its share, scaled so
that a pixel's mean weight is 1: each class then has the same part of the loss, whose size stays.
The last line is for the param_str of surgery.losses.PixelLoss.
"""


def count_labels(images: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """Count the pixels of each class in labels, uint8 of any shape."""
    counts = np.zeros(256, np.int64)
    for labels in images:
        counts += np.bincount(labels.ravel(), minlength=256)
    return counts[:classes]


def weigh_classes(counts: np.ndarray) -> np.ndarray:
    """Return a weight for each class from its pixels: equal parts of the loss, mean weight 1.

    Classes without a pixel get 0.
    """
    present = counts > 0
    weights = np.zeros(len(counts))
    weights[present] = counts.sum() / (present.sum() * counts[present])
    return weights


def main() -> None:
    parser = options.make_parser('frequencies.py', DESCRIPTION, options.STATUS)
    add_data_options(parser)
    parser.add_argument('--output', type=Path, default=Path('output/frequencies'), metavar='DIR',
                        help='where a sample is drawn (default: %(default)s)')  # fmt: skip
    args = parser.parse_args()
    with options.session():
        draw = functools.partial(trees.draw_dataset, folder=make_folder(args.output) / 'data')
        truth = open_ground_truth(args, draw)
        counts = count_labels(truth, len(truth.classes))
        weights = weigh_classes(counts)
        print(f'{truth.name}\n\n{"class":14} {"pixels":>11}  share %   weight')
        for name, count, weight in zip(truth.classes, counts, weights):
            if count:
                print(f'{name:14} {count:11,}  {100 * count / counts.sum():7.2f} {weight:8.3f}')
        print(f"\n'weights': {[round(weight, 4) for weight in weights.tolist()]}")


if __name__ == '__main__':
    main()
