"""FCN-GoogLeNet on PASCAL VOC, trained on SBD; normalised loss, 20 images a step.

Starts from   bvlc_googlenet.caffemodel, Caffe's model zoo's
Command       python solve/voc_fcn_googlenet.py [GPU]
Cost          100,000 iterations of 20 images; scored and saved every 4000
To expect     mean IU 42.5 on VOC 2011's val (CVPR 2015, table 1); no weights were published
"""

if __name__ == '__main__':
    import _checkout
import surgery
from nets import voc_fcn_googlenet
from solve import launch, score
from solve.datasets import voc
from solve.run.job import Job

# The rate, batch, momentum and decay of CVPR 2015, section 4.3; the rest is FCN-AlexNet's.
SOLVER = dict(base_lr=5e-5, lr_policy='fixed', momentum=0.9, weight_decay=0.0005, iter_size=20,
              max_iter=100000, average_loss=20, display=20, snapshot=4000, test_interval=999999999,
              snapshot_prefix='snapshot/train', train_net='train.prototxt', test_iter=[736],
              test_net=['val.prototxt'], test_initialization=False)  # fmt: skip


def solve(job: Job) -> None:
    solver = job.make_solver(SOLVER, voc_fcn_googlenet.fcn, train='train', test='seg11valid')
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
    launch.run(solve, __doc__, voc, 'data/ilsvrc-nets/googlenet.caffemodel')
