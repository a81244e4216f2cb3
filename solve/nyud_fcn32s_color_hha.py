"""FCN-32s on NYUDv2, a stream for color and one for HHA, whose scores are averaged.

Starts from   trained nyud-fcn32s-color and nyud-fcn32s-hha, or snapshots of their scripts
Command       python solve/nyud_fcn32s_color_hha.py [GPU]
Cost          100,000 iterations of one image; scored and saved every 2000
To expect     mean IU 33.3 on test (FCN paper, PAMI 2016); the release gives no figure
"""

if __name__ == '__main__':
    import _checkout
import surgery
from nets import nyud_fcn32s_color_hha
from solve import launch, nyud_fcn32s_color, nyud_fcn32s_hha, score
from solve.datasets import nyud
from solve.run.job import Job

SOLVER = dict(base_lr=1e-12, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=2000, test_interval=999999999,
              snapshot_prefix='snapshot/train', train_net='trainval.prototxt', test_iter=[654],
              test_net=['test.prototxt'], test_initialization=False)  # fmt: skip


def solve(job: Job) -> None:
    solver = job.make_solver(SOLVER, nyud_fcn32s_color_hha.fcn, train='trainval', test='test')
    if not job.restore(solver):  # --resume
        job.load_weights(solver.net, 'color', 'hha')
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    with job.watch(solver, rounds=50, step=2000, prune=job.prune) as rounds:
        for iterations in rounds:  # 50 of 2000; as in the release, max_iter does not count
            solver.step(iterations)
            scores = score.seg_tests(solver, False, job.images, layer='score')
            job.record(solver, scores, nyud.CLASSES)
            job.prune(solver)  # --keep
    job.save_and_report(solver, color=nyud.MEAN, hha=nyud.MEAN_HHA)


if __name__ == '__main__':
    launch.run(solve, __doc__, nyud, 'data/nyud-fcn32s-color.caffemodel',
               'data/nyud-fcn32s-hha.caffemodel',
               after=[nyud_fcn32s_color, nyud_fcn32s_hha])  # fmt: skip
