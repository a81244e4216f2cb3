"""FCN-8s on PASCAL-Context: 59 classes and background.

Starts from   a trained pascalcontext-fcn16s, or a snapshot of its script
Command       python solve/pascalcontext_fcn8s.py [GPU]
Cost          400,000 iterations of one image; scored every 8000, saved every 4000
To expect     the release gives no figure for this net

Without data and weights it runs a small sample of itself.
"""

if __name__ == '__main__':
    import _checkout

import surgery
from nets import pascalcontext_fcn8s
from solve import score
from solve.datasets import pascalcontext
from solve.run import experiment, options

SOLVER = dict(base_lr=1e-14, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=4000,
              snapshot_prefix='snapshot/train', train_net='train.prototxt',
              test_net=['val.prototxt'], test_iter=[5105], test_interval=999999999,
              test_initialization=False)  # fmt: skip
ROUNDS, STEP = 50, 8000


def solve(job: experiment.Job) -> None:
    solver = job.solver(
        SOLVER,
        train=pascalcontext_fcn8s.fcn('train', **job.net),
        test=pascalcontext_fcn8s.fcn('val', **job.net),
    )
    if not job.resumed(solver):
        experiment.load_weights(solver.net, *job.weights)
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    surgery.check_filled(solver.net)

    val = experiment.ids(solver.test_nets[0])
    for iterations in job.rounds(solver, ROUNDS, STEP):
        solver.step(iterations)
        job.scored(
            solver, score.seg_tests(solver, False, val, layer='score'), pascalcontext.CLASSES
        )
    job.finish(solver, data=pascalcontext.MEAN)


if __name__ == '__main__':
    options.run(solve, __doc__, pascalcontext, 'data/pascalcontext-fcn16s.caffemodel')
