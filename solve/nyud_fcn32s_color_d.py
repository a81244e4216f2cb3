"""FCN-32s on NYUDv2, from color and depth in one input of four channels.

Starts from   the plain VGG16 classifier, or vgg16-fcn.caffemodel (--weights)
Command       python solve/nyud_fcn32s_color_d.py [GPU]
Cost          100,000 iterations of one image; scored and saved every 2000
To expect     mean IU 31.7 on test (FCN paper, PAMI 2016); the release gives no figure

Without data and weights it runs a small sample of itself.
"""

if __name__ == '__main__':
    import _checkout

import surgery
from nets import nyud_fcn32s_color_d
from solve import score
from solve.datasets import nyud
from solve.run import experiment, options

SOLVER = dict(base_lr=1e-10, lr_policy='fixed', momentum=0.99, weight_decay=0.0005, iter_size=1,
              max_iter=300000, average_loss=20, display=20, snapshot=2000,
              snapshot_prefix='snapshot/train', train_net='trainval.prototxt',
              test_net=['test.prototxt'], test_iter=[654], test_interval=999999999,
              test_initialization=False)  # fmt: skip
ROUNDS, STEP = 50, 2000


def solve(job: experiment.Job) -> None:
    solver = job.solver(
        SOLVER,
        train=nyud_fcn32s_color_d.fcn('trainval', **job.net),
        test=nyud_fcn32s_color_d.fcn('test', **job.net),
    )
    if not job.resumed(solver):
        experiment.load_weights(solver.net, *job.weights)
        color = experiment.stored_net(*job.weights)
        surgery.color_to_color_depth(solver.net, 'conv1_1_bgrd', color, 'conv1_1')
        surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    surgery.check_filled(solver.net)

    # Deviates: the release scores an undefined `val`.
    test = experiment.ids(solver.test_nets[0])
    for iterations in job.rounds(solver, ROUNDS, STEP):
        solver.step(iterations)
        job.scored(solver, score.seg_tests(solver, False, test, layer='score'), nyud.CLASSES)
    job.finish(solver, color=nyud.MEAN, depth=(nyud.MEAN_LOG_DEPTH,))


if __name__ == '__main__':
    options.run(solve, __doc__, nyud, 'data/ilsvrc-nets/vgg16.caffemodel')
