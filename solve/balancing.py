"""FCN-32s with balanced classes: weights of the loss, or 3 pixels of background for each other one.

Starts from   vgg16-fcn.caffemodel, or the plain VGG16 classifier (--weights)
Command       python solve/balancing.py [GPU]
Cost          three trainings of 1500 iterations of 20 images
To expect     no gain: CVPR 2015, section 4.3, finds balancing unnecessary on VOC

The weights are those that python solve/frequencies.py --train prints.
"""

if __name__ == '__main__':
    import _checkout
import functools
from typing import Any

import numpy as np

from nets import voc_fcn32s_sampled
from nets.data import SEED
from solve import frequencies, launch, sampling
from solve.datasets import voc
from solve.run import variants
from solve.run.job import Job


def weigh_classes(job: Job) -> list[float]:
    """Return the weights that give each class the same part of the loss."""
    layer = variants.open_training(job.net)
    labels = (layer.load(name)[1].astype(np.uint8) for name in layer.ids)
    return frequencies.weigh_classes(frequencies.count_labels(labels, len(voc.CLASSES))).tolist()


def solve(job: Job) -> None:
    rows: dict[str, dict[str, Any]] = {
        'plain': {},
        'weights': dict(weights=weigh_classes(job)),
        'ratio-3': dict(ratio=3, seed=SEED),
    }
    print('\n         mean accuracy %  mean IU %  overall accuracy %')
    for name, options in rows.items():
        net = functools.partial(voc_fcn32s_sampled.fcn, **options)
        solver, _ = variants.train(job, name, net, sampling.SOLVER)
        scores = variants.score(solver.net, *solver.test_nets)
        print(f'{name:8} {100 * scores.mean_accuracy:15.2f}  {100 * scores.mean_iu:9.2f}  '
              f'{100 * scores.overall_accuracy:18.2f}', flush=True)  # fmt: skip


if __name__ == '__main__':
    launch.run(solve, __doc__, voc, 'data/ilsvrc-nets/vgg16-fcn.caffemodel')
