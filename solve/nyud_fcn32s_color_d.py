"""FCN-32s on NYUDv2, from color and depth in one input of four channels.

Starts from   the plain VGG16 classifier, or vgg16-fcn.caffemodel (--weights)
Command       python solve/nyud_fcn32s_color_d.py [GPU]
Cost          100,000 iterations of one image; scored and saved every 2000
To expect     mean IU 31.7 on test (FCN paper, PAMI 2016); the release gives no figure
"""

if __name__ == '__main__':
    import _checkout
import surgery
from nets import nyud_fcn32s_color_d
from solve import launch, score
from solve.datasets import nyud
from solve.run.job import Job

SOLVER = dict(base_lr=1e-10, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=2000, test_interval=999999999,
              snapshot_prefix='snapshot/train', train_net='trainval.prototxt', test_iter=[654],
              test_net=['test.prototxt'], test_initialization=False)  # fmt: skip


def solve(job: Job) -> None:
    solver = job.make_solver(SOLVER, nyud_fcn32s_color_d.fcn, train='trainval', test='test')
    if not job.restore(solver):  # --resume
        job.load_weights(solver.net)
        surgery.color_to_color_depth(solver.net, 'conv1_1_bgrd', job.read_weights(), 'conv1_1')
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    with job.watch(solver, rounds=50, step=2000, prune=job.prune) as rounds:
        for iterations in rounds:  # 50 of 2000; as in the release, max_iter does not count
            solver.step(iterations)
            scores = score.seg_tests(solver, False, job.images, layer='score')
            job.record(solver, scores, nyud.CLASSES)
            job.prune(solver)  # --keep
    job.save_and_report(solver, color=nyud.MEAN, depth=(nyud.MEAN_LOG_DEPTH,))


if __name__ == '__main__':
    launch.run(solve, __doc__, nyud, 'data/ilsvrc-nets/vgg16.caffemodel')
