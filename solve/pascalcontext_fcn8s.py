"""FCN-8s on PASCAL-Context: 59 classes and background.

Starts from   a trained pascalcontext-fcn16s, or a snapshot of its script
Command       python solve/pascalcontext_fcn8s.py [GPU]
Cost          400,000 iterations of one image; scored every 8000, saved every 4000
To expect     the release gives no figure for this net
"""

if __name__ == '__main__':
    import _checkout
import surgery
from nets import pascalcontext_fcn8s
from solve import launch, pascalcontext_fcn16s, pascalcontext_fcn32s, score
from solve.datasets import pascalcontext
from solve.run.job import Job

SOLVER = dict(base_lr=1e-14, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=4000, test_interval=999999999,
              snapshot_prefix='snapshot/train', train_net='train.prototxt', test_iter=[5105],
              test_net=['val.prototxt'], test_initialization=False)  # fmt: skip


def solve(job: Job) -> None:
    solver = job.make_solver(SOLVER, pascalcontext_fcn8s.fcn, train='train', test='val')
    if not job.restore(solver):  # --resume
        job.load_weights(solver.net)
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    with job.watch(solver, rounds=50, step=8000, prune=job.prune) as rounds:
        for iterations in rounds:  # 50 of 8000; as in the release, max_iter does not count
            solver.step(iterations)
            scores = score.seg_tests(solver, False, job.images, layer='score')
            job.record(solver, scores, pascalcontext.CLASSES)
            job.prune(solver)  # --keep
    job.save_and_report(solver, data=pascalcontext.MEAN)


if __name__ == '__main__':
    launch.run(solve, __doc__, pascalcontext, 'data/pascalcontext-fcn16s.caffemodel',
               after=[pascalcontext_fcn32s, pascalcontext_fcn16s])  # fmt: skip
