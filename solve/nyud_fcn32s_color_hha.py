"""FCN-32s on NYUDv2, a stream for color and one for HHA, whose scores are averaged.

Starts from   trained nyud-fcn32s-color and nyud-fcn32s-hha, or snapshots of their scripts
Command       python solve/nyud_fcn32s_color_hha.py [GPU]
Cost          100,000 iterations of one image; scored and saved every 2000
To expect     mean IU 33.3 on test (FCN paper, PAMI 2016); the release gives no figure

Without data and weights it runs a small sample of itself.
"""

if __name__ == '__main__':
    import _checkout

import surgery
from nets import nyud_fcn32s_color_hha
from solve import score
from solve.datasets import nyud
from solve.run import experiment, options

SOLVER = dict(base_lr=1e-12, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=2000,
              snapshot_prefix='snapshot/train', train_net='trainval.prototxt',
              test_net=['test.prototxt'], test_iter=[654], test_interval=999999999,
              test_initialization=False)  # fmt: skip
ROUNDS, STEP = 50, 2000


def solve(job: experiment.Job) -> None:
    solver = job.solver(
        SOLVER,
        train=nyud_fcn32s_color_hha.fcn('trainval', **job.net),
        test=nyud_fcn32s_color_hha.fcn('test', **job.net),
    )
    if not job.resumed(solver):
        color, hha = job.weights
        experiment.load_weights(solver.net, color, suffix='color')
        experiment.load_weights(solver.net, hha, suffix='hha')
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    surgery.check_filled(solver.net)

    # Deviates: the release scores an undefined `val`.
    test = experiment.ids(solver.test_nets[0])
    for iterations in job.rounds(solver, ROUNDS, STEP):
        solver.step(iterations)
        job.scored(solver, score.seg_tests(solver, False, test, layer='score'), nyud.CLASSES)
    job.finish(solver, color=nyud.MEAN, hha=nyud.MEAN_HHA)


if __name__ == '__main__':
    options.run(
        solve, __doc__, nyud, 'data/nyud-fcn32s-color.caffemodel', 'data/nyud-fcn32s-hha.caffemodel'
    )
