"""FCN-AlexNet (CaffeNet) on PASCAL VOC, trained on SBD; normalised loss, 20 images a step.

Starts from   caffenet-fcn.caffemodel, or the plain CaffeNet classifier (--weights)
Command       python solve/voc_fcn_alexnet.py [GPU]
Cost          100,000 iterations of 20 images; scored and saved every 4000
To expect     mean IU 48.0 on seg11valid with the official weights (FCN release)
"""

if __name__ == '__main__':
    import _checkout
import surgery
from nets import voc_fcn_alexnet
from solve import launch, score
from solve.datasets import voc
from solve.run.job import Job

SOLVER = dict(base_lr=0.0001, lr_policy='fixed', momentum=0.9, weight_decay=0.0005, iter_size=20,
              max_iter=100000, average_loss=20, display=20, snapshot=4000, test_interval=999999999,
              snapshot_prefix='snapshot/train', train_net='train.prototxt', test_iter=[736],
              test_net=['val.prototxt'], test_initialization=False)  # fmt: skip


def solve(job: Job) -> None:
    solver = job.make_solver(SOLVER, voc_fcn_alexnet.fcn, train='train', test='seg11valid')
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
    launch.run(solve, __doc__, voc, 'data/ilsvrc-nets/caffenet-fcn.caffemodel')
