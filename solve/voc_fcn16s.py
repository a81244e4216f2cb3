"""FCN-16s on PASCAL VOC, trained on SBD: FCN-32s refined with pool4.

Starts from   a trained FCN-32s: voc-fcn32s.caffemodel, or a snapshot of solve/voc_fcn32s.py
Command       python solve/voc_fcn16s.py [GPU]
Cost          100,000 iterations of one image; scored and saved every 4000
To expect     mean IU 65.01 on seg11valid with the official weights (FCN release)
"""

if __name__ == '__main__':
    import _checkout
import surgery
from nets import voc_fcn16s
from solve import launch, score, voc_fcn32s
from solve.datasets import voc
from solve.run.job import Job

SOLVER = dict(base_lr=1e-12, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=100000, average_loss=20, display=20, snapshot=4000, test_interval=999999999,
              snapshot_prefix='snapshot/train', train_net='train.prototxt', test_iter=[736],
              test_net=['val.prototxt'], test_initialization=False)  # fmt: skip


def solve(job: Job) -> None:
    solver = job.make_solver(SOLVER, voc_fcn16s.fcn, train='train', test='seg11valid')
    if not job.restore(solver):  # --resume
        job.load_weights(solver.net)
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    with job.watch(solver, rounds=25, step=4000, prune=job.prune) as rounds:
        for iterations in rounds:  # 25 of 4000, up to max_iter
            solver.step(iterations)
            scores = score.seg_tests(solver, False, job.images, layer='score')
            job.record(solver, scores, voc.CLASSES)
            job.prune(solver)  # --keep
    job.save_and_report(solver, data=voc.MEAN)


if __name__ == '__main__':
    launch.run(solve, __doc__, voc, 'data/voc-fcn32s.caffemodel', after=[voc_fcn32s])
