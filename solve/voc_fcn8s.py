"""FCN-8s on PASCAL VOC, trained on SBD: FCN-16s refined with pool3.

Starts from   a trained FCN-16s: voc-fcn16s.caffemodel, or a snapshot of solve/voc_fcn16s.py
Command       python solve/voc_fcn8s.py [GPU]
Cost          100,000 iterations of one image; scored and saved every 4000
To expect     mean IU 65.51 on seg11valid with the official weights (FCN release)

Without data and weights it runs a small sample of itself.
"""

if __name__ == '__main__':
    import _checkout

import surgery
from nets import voc_fcn8s
from solve import score
from solve.datasets import voc
from solve.run import experiment, options

SOLVER = dict(base_lr=1e-14, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=100000, average_loss=20, display=20, snapshot=4000,
              snapshot_prefix='snapshot/train', train_net='train.prototxt',
              test_net=['val.prototxt'], test_iter=[736], test_interval=999999999,
              test_initialization=False)  # fmt: skip
ROUNDS, STEP = 25, 4000


def solve(job: experiment.Job) -> None:
    solver = job.solver(
        SOLVER, train=voc_fcn8s.fcn('train', **job.net), test=voc_fcn8s.fcn('seg11valid', **job.net)
    )
    if not job.resumed(solver):
        experiment.load_weights(solver.net, *job.weights)
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    surgery.check_filled(solver.net)

    # Deviates: the release reads data/segvalid11.txt, which is not the list's name or place.
    val = experiment.ids(solver.test_nets[0])
    for iterations in job.rounds(solver, ROUNDS, STEP):
        solver.step(iterations)
        job.scored(solver, score.seg_tests(solver, False, val, layer='score'), voc.CLASSES)
    job.finish(solver, data=voc.MEAN)


if __name__ == '__main__':
    options.run(solve, __doc__, voc, 'data/voc-fcn16s.caffemodel')
