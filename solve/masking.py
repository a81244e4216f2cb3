"""FCN-32s trained and tested with foreground or background masked, or on shape alone (PAMI 2016).

Starts from   vgg16-fcn.caffemodel, or the plain VGG16 classifier (--weights)
Command       python solve/masking.py [GPU]
Cost          four trainings of 100,000 iterations of one image
To expect     the table's last column: PAMI 2016, table 8

The masks are the option 'mask' of the data layers of VOC and SBD. As in the paper, mean IU leaves
out the background.
"""

if __name__ == '__main__':
    import _checkout
import functools
from typing import Any

import caffe_port as caffe
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import voc_fcn32s
from solve import launch
from solve import voc_fcn32s as release
from solve.datasets import voc
from solve.run import variants
from solve.run.job import Job

# What is masked in training; for each name, what is masked in testing, and the paper's mean IU.
ROWS = {
    None: (
        ('Reference', None, 84.8),
        ('Reference-FG', 'background', 81.0),
        ('Reference-BG', 'foreground', 19.8),
    ),
    'background': (('FG-only', 'background', 76.1),),
    'foreground': (('BG-only', 'foreground', 37.8),),
    'shape': (('Shape', 'shape', 29.1),),
}


def fcn(split: str, mask: str | None, **net: Any) -> NetParameter:
    """Return FCN-32s with `mask` over its images."""
    return variants.set_data(voc_fcn32s.fcn(split, **net), mask=mask)


def solve(job: Job) -> None:
    print(
        '\n              masked in                    mean IU % without background'
        '\n              training    testing          ours    paper'
    )
    for mask, rows in ROWS.items():
        masked = functools.partial(fcn, mask=mask)
        solver, _ = variants.train(job, mask or 'none', masked, release.SOLVER)
        for name, tested, paper in rows:
            test = caffe.Net(fcn('seg11valid', tested, **job.net), caffe.TEST)
            ours = 100 * variants.mean_iu_without_background(variants.score(solver.net, test))
            row = f'{name:13} {mask or "-":11} {tested or "-":11} {ours:9.2f} {paper:8.1f}'
            print(row, flush=True)


if __name__ == '__main__':
    launch.run(solve, __doc__, voc, 'data/ilsvrc-nets/vgg16-fcn.caffemodel')
