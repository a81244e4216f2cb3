"""FCN-32s, FCN-16s and FCN-8s on PASCAL VOC, each from the last snapshot of the one before.

Starts from   vgg16-fcn.caffemodel, or the plain VGG16 classifier (--weights)
Command       python solve/voc_chain.py [GPU]
Cost          three times 100,000 iterations of one image; --iterations is for each
To expect     mean IU 63.63, 65.01, 65.51 on seg11valid with the official weights (FCN release)

`--resume latest --output FOLDER` resumes a chain where it was stopped.
"""

if __name__ == '__main__':
    import _checkout
from dataclasses import replace
from pathlib import Path

import caffe_port as caffe
from caffe_port import parallel
from caffe_port.proto.caffe_pb2 import NetParameter
from solve import launch, voc_fcn8s, voc_fcn16s, voc_fcn32s
from solve.datasets import voc
from solve.run import log, retention
from solve.run.comparison import draw_comparison
from solve.run.job import FILES, LATEST, PANEL_ROWS, Job
from solve.samples import recipes

STAGES = {'voc_fcn32s': voc_fcn32s, 'voc_fcn16s': voc_fcn16s, 'voc_fcn8s': voc_fcn8s}
# Files that it writes into its folder.
FILES_OF_CHAIN = ('comparison.png', *(f'{stage}/{file}' for stage in STAGES for file in FILES))


def solve(job: Job) -> None:
    weights, mean_iu, nets = job.weights, [], {}
    for name, script in STAGES.items():
        stage = make_stage(job, name, weights)
        print(f'\n{name}, from {"its latest snapshot" if stage.resume else weights[0]}', flush=True)
        script.solve(stage)
        weights = [retention.name_weights(retention.find_latest(stage.prefix))]
        scored = [line for line in log.read(stage.folder) if 'mean_iu' in line]
        mean_iu.append(scored[-1]['mean_iu'])
        nets[name] = getattr(script, name).fcn('seg11valid', **stage.net), weights[0]
    path = job.folder / 'comparison.png'
    parallel.call_on_first(lambda: compare(nets, path))
    print(f'The three on the same images: {path}')
    print('\n           ', *(f'{name:>10}' for name in STAGES))
    print('mean IU %  ', *(f'{100 * value:10.2f}' for value in mean_iu))


def compare(nets: dict[str, tuple[NetParameter, Path]], path: Path) -> None:
    """Draw what nets with these weights make of the same images."""
    made = {name: caffe.Net(param, str(file), caffe.TEST) for name, (param, file) in nets.items()}
    draw_comparison(made, voc.MEAN, voc.CLASSES, path, PANEL_ROWS)


def make_stage(job: Job, name: str, weights: list[Path]) -> Job:
    """Make the job of one net of the chain, in a folder of its own."""
    stage = job.make_part(name, weights=weights)
    if not weights:
        stage.resume = LATEST
    return replace(stage, **recipes.make_settings(name)) if job.constants else stage


if __name__ == '__main__':
    launch.run(solve, __doc__, voc, 'data/ilsvrc-nets/vgg16-fcn.caffemodel', files=FILES_OF_CHAIN)
