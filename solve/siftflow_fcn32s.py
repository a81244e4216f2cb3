"""FCN-32s on SIFT Flow: semantic and geometric classes from one net.

Starts from   vgg16-fcn.caffemodel, or the plain VGG16 classifier (--weights)
Command       python solve/siftflow_fcn32s.py [GPU]
Cost          100,000 iterations of one image; scored and saved every 2000
To expect     the release gives no figure for this net
"""

if __name__ == '__main__':
    import _checkout
import surgery
from nets import siftflow_fcn32s
from solve import launch, score
from solve.datasets import siftflow
from solve.run.job import Job

SOLVER = dict(base_lr=1e-10, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=2000, test_interval=999999999,
              snapshot_prefix='snapshot/train', train_net='trainval.prototxt', test_iter=[200],
              test_net=['test.prototxt'], test_initialization=False)  # fmt: skip


def solve(job: Job) -> None:
    solver = job.make_solver(SOLVER, siftflow_fcn32s.fcn, train='trainval', test='test')
    if not job.restore(solver):  # --resume
        job.load_weights(solver.net)
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    with job.watch(solver, rounds=50, step=2000, prune=job.prune) as rounds:
        for iterations in rounds:  # 50 of 2000; as in the release, max_iter does not count
            solver.step(iterations)
            sem = score.seg_tests(solver, False, job.images, layer='score_sem', gt='sem')
            geo = score.seg_tests(solver, False, job.images, layer='score_geo', gt='geo')
            job.record(solver, sem, siftflow.SEMANTIC, geo=(geo, siftflow.GEOMETRIC))
            job.prune(solver)  # --keep
    job.save_and_report(solver, data=siftflow.MEAN)  # Deviates: the release saves nothing


if __name__ == '__main__':
    launch.run(solve, __doc__, siftflow, 'data/ilsvrc-nets/vgg16-fcn.caffemodel')
