"""FCN-8s on SIFT Flow: semantic and geometric classes from one net.

Starts from   a trained siftflow-fcn16s, or a snapshot of its script
Command       python solve/siftflow_fcn8s.py [GPU]
Cost          100,000 iterations of one image; scored and saved every 2000
To expect     mean IU 41.2, geometric accuracy 94.6 on test (FCN paper, PAMI 2016, where absent
              classes do not count); the release gives no figure

Without data and weights it runs a small sample of itself.
"""

if __name__ == '__main__':
    import _checkout

import surgery
from nets import siftflow_fcn8s
from solve import score
from solve.datasets import siftflow
from solve.run import experiment, options

# Deviates: the release snapshots nothing.
SOLVER = dict(base_lr=1e-12, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=2000,
              snapshot_prefix='snapshot/train', train_net='trainval.prototxt',
              test_net=['test.prototxt'], test_iter=[200], test_interval=999999999,
              test_initialization=False)  # fmt: skip
ROUNDS, STEP = 50, 2000


def solve(job: experiment.Job) -> None:
    solver = job.solver(
        SOLVER,
        train=siftflow_fcn8s.fcn('trainval', **job.net),
        test=siftflow_fcn8s.fcn('test', **job.net),
    )
    if not job.resumed(solver):
        experiment.load_weights(solver.net, *job.weights)
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    surgery.check_filled(solver.net)

    test = experiment.ids(solver.test_nets[0])
    for iterations in job.rounds(solver, ROUNDS, STEP):
        solver.step(iterations)
        sem = score.seg_tests(solver, False, test, layer='score_sem', gt='sem')
        geo = score.seg_tests(solver, False, test, layer='score_geo', gt='geo')
        job.scored(solver, sem, siftflow.SEMANTIC, geo=(geo, siftflow.GEOMETRIC))
    job.finish(solver, data=siftflow.MEAN)


if __name__ == '__main__':
    options.run(solve, __doc__, siftflow, 'data/siftflow-fcn16s.caffemodel')
