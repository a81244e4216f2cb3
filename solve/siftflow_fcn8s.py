"""FCN-8s on SIFT Flow: semantic and geometric classes from one net.

Starts from   a trained siftflow-fcn16s, or a snapshot of its script
Command       python solve/siftflow_fcn8s.py [GPU]
Cost          100,000 iterations of one image; scored and saved every 2000
To expect     mean IU 41.2, geometric 94.6 (PAMI 2016, without absent classes); none in the release
"""

if __name__ == '__main__':
    import _checkout
import surgery
from nets import siftflow_fcn8s
from solve import launch, score, siftflow_fcn16s, siftflow_fcn32s
from solve.datasets import siftflow
from solve.run.job import Job

SOLVER = dict(base_lr=1e-12, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=2000, test_interval=999999999,
              snapshot_prefix='snapshot/train', train_net='trainval.prototxt', test_iter=[200],
              test_net=['test.prototxt'], test_initialization=False)  # fmt: skip


def solve(job: Job) -> None:
    solver = job.make_solver(SOLVER, siftflow_fcn8s.fcn, train='trainval', test='test')
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
    launch.run(solve, __doc__, siftflow, 'data/siftflow-fcn16s.caffemodel',
               after=[siftflow_fcn32s, siftflow_fcn16s])  # fmt: skip
