"""FCN-32s by gradient accumulation, online and by heavy learning (PAMI 2016).

Starts from   vgg16-fcn.caffemodel, or the plain VGG16 classifier (--weights)
Command       python solve/heavy.py [GPU]
Cost          100,000 images for each of four rows; --iterations is the number of images
To expect     mean IU 63.63 on seg11valid for `heavy`, which is the release's way

In each row an update has the same effective rate, lr x pixels of the loss / (1 - momentum). Batch k
and momentum m forget an image as fast as batch 1 and m ** (1 / k): 0.9 ** (1 / 20) = 0.995.
"""

if __name__ == '__main__':
    import _checkout
import functools
from typing import Any

import numpy as np

from caffe_port.proto.caffe_pb2 import NetParameter
from nets import voc_fcn32s
from solve import launch
from solve import voc_fcn32s as release
from solve.datasets import voc
from solve.datasets.images import VOID
from solve.run import variants
from solve.run.job import Job

# Name, batch, momentum, and whether the loss is a mean over pixels, not their sum.
ROWS = (
    ('accumulated', 20, 0.9, False),
    ('online', 1, 0.9, False),
    ('heavy', 1, 0.99, False),
    ('heavy-mean', 1, 0.99, True),
)
HEAD = """
                                          lr x pixels                  loss
              batch  momentum         lr    / (1 - m)    updates    a pixel  mean IU %"""


def fcn(split: str, normalised: bool, **net: Any) -> NetParameter:
    """Return FCN-32s; if `normalised`, with a loss that is a mean over pixels."""
    param = voc_fcn32s.fcn(split, **net)
    param.layer[-1].loss_param.normalize = normalised
    return param


def measure_pixels(net: dict[str, Any]) -> float:
    """Return the mean number of labelled pixels of the first ten images to learn from."""
    layer = variants.open_training(net)
    return float(np.mean([(layer.load(name)[1] != VOID).sum() for name in layer.ids[:10]]))


def solve(job: Job) -> None:
    heavy = {**release.SOLVER, **job.constants}
    pixels, images = measure_pixels(job.net), job.iterations or heavy['max_iter']
    print(f'An image has about {pixels:.0f} pixels; each row sees {images} images.{HEAD}')
    for name, batch, momentum, normalised in ROWS:
        summed = 1 if normalised else pixels
        rate = heavy['base_lr'] * pixels * (1 - momentum) / (1 - heavy['momentum']) / summed
        changes = dict(base_lr=rate, momentum=momentum, iter_size=batch)
        if 'clip_gradients' in heavy:  # the sample's
            changes['clip_gradients'] = heavy['clip_gradients'] * summed / pixels
        updates = max(images // batch, 1)
        solver, folder = variants.train(
            job, name, functools.partial(fcn, normalised=normalised), release.SOLVER, updates,
            display=max(updates // 100, 1), **changes,
        )  # fmt: skip
        losses = [line['loss'] for line in variants.read_displays(folder)]
        scores = variants.score(solver.net, *solver.test_nets)
        effective = rate * summed / (1 - momentum)
        print(
            f'{name:12} {batch:5}  {momentum:8}  {rate:9.3g}  {effective:11.3g}  {updates:9}  '
            f'{np.mean(losses[-10:]) / summed:9.4f}  {100 * scores.mean_iu:9.2f}',
            flush=True,
        )


if __name__ == '__main__':
    launch.run(solve, __doc__, voc, 'data/ilsvrc-nets/vgg16-fcn.caffemodel')
