"""FCN-8s on PASCAL VOC, trained on SBD all at once.

Starts from   vgg16-fcn.caffemodel, or the plain VGG16 classifier (--weights)
Command       python solve/voc_fcn8s_atonce.py [GPU]
Cost          300,000 iterations of one image; scored and saved every 4000
To expect     mean IU 65.40 on seg11valid with the official weights (FCN release)
"""

if __name__ == '__main__':
    import _checkout
import surgery
from nets import voc_fcn8s_atonce
from solve import launch, score
from solve.datasets import voc
from solve.run.job import Job

SOLVER = dict(base_lr=1e-10, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=4000, test_interval=999999999,
              snapshot_prefix='snapshot/train', train_net='train.prototxt', test_iter=[736],
              test_net=['val.prototxt'], test_initialization=False)  # fmt: skip


def solve(job: Job) -> None:
    solver = job.make_solver(SOLVER, voc_fcn8s_atonce.fcn, train='train', test='seg11valid')
    if not job.restore(solver):  # --resume
        job.load_weights(solver.net)
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    with job.watch(solver, rounds=75, step=4000, prune=job.prune) as rounds:
        for iterations in rounds:  # 75 of 4000, up to max_iter
            solver.step(iterations)
            scores = score.seg_tests(solver, False, job.images, layer='score')
            job.record(solver, scores, voc.CLASSES)
            job.prune(solver)  # --keep
    job.save_and_report(solver, data=voc.MEAN)


if __name__ == '__main__':
    launch.run(solve, __doc__, voc, 'data/ilsvrc-nets/vgg16-fcn.caffemodel')
