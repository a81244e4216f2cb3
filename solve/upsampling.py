"""Learn all, some or none of the upsampling, or the last layer alone (CVPR 2015, section 4).

Starts from   vgg16-fcn.caffemodel, or the plain VGG16 classifier (--weights)
Command       python solve/upsampling.py [GPU]
Cost          five trainings of 100,000 iterations of one image
To expect     the table's last column, where the papers or the release have the row
"""

if __name__ == '__main__':
    import _checkout
import functools
from types import ModuleType
from typing import Any

from caffe_port.proto.caffe_pb2 import NetParameter
from nets import voc_fcn8s_atonce, voc_fcn32s
from solve import launch
from solve import voc_fcn32s as release
from solve.datasets import voc
from solve.run import variants
from solve.run.job import Job

# Name, net, lr_mult by layer ('*': all others), and the mean IU to compare with, if there is one.
ROWS: tuple[tuple[str, ModuleType, dict[str, float], str], ...] = (
    ('8s-fixed', voc_fcn8s_atonce, {}, '65.40 (FCN release, after 300,000 iterations)'),
    ('8s-last-fixed', voc_fcn8s_atonce, {'upscore2': 1, 'upscore_pool4': 1},
     '62.7 (CVPR 2015, table 2, trained in three stages)'),
    ('8s-learned', voc_fcn8s_atonce, {'upscore2': 1, 'upscore_pool4': 1, 'upscore8': 1}, '-'),
    ('32s', voc_fcn32s, {}, '63.63 (FCN release); 59.4 (CVPR 2015, table 2)'),
    ('32s-fixed', voc_fcn32s, {'*': 0, 'score_fr': 1}, '45.4 (CVPR 2015, table 2)'),
)  # fmt: skip


def fcn(split: str, module: ModuleType, rates: dict[str, float], **net: Any) -> NetParameter:
    """Return a net with the lr_mult of each named layer's params."""
    return variants.set_rates(module.fcn(split, **net), rates)


def solve(job: Job) -> None:
    print('\nmean IU %      ours    to compare')
    for name, module, rates, paper in ROWS:
        net = functools.partial(fcn, module=module, rates=rates)
        solver, _ = variants.train(job, name, net, release.SOLVER)
        scores = variants.score(solver.net, *solver.test_nets)
        print(f'{name:13} {100 * scores.mean_iu:5.2f}    {paper}', flush=True)


if __name__ == '__main__':
    launch.run(solve, __doc__, voc, 'data/ilsvrc-nets/vgg16-fcn.caffemodel')
