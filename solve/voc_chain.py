"""FCN-32s, FCN-16s and FCN-8s on PASCAL VOC, each from the last snapshot of the one before.

Starts from   vgg16-fcn.caffemodel, or the plain VGG16 classifier (--weights)
Command       python solve/voc_chain.py [GPU]
Cost          three times 100,000 iterations of one image; --iterations is for each
To expect     mean IU 63.63, 65.01, 65.51 on seg11valid with the official weights (FCN release)

`--resume latest --output FOLDER` goes on where a chain was stopped. Without data and
weights it runs the three small samples.
"""

if __name__ == '__main__':
    import _checkout

from dataclasses import replace
from pathlib import Path

from caffe_port.errors import CaffeError
from solve import voc_fcn8s, voc_fcn16s, voc_fcn32s
from solve.datasets import voc
from solve.run import experiment, options, pictures, snapshots
from solve.samples import recipes

STAGES = {'voc_fcn32s': voc_fcn32s, 'voc_fcn16s': voc_fcn16s, 'voc_fcn8s': voc_fcn8s}


def solve(job: experiment.Job) -> None:
    if job.resume not in (None, experiment.LATEST):
        raise CaffeError(f'--resume {job.resume}: a chain of three nets resumes `latest` only')
    weights, mean_iu = job.weights, []
    for name, script in STAGES.items():
        stage = stage_of(job, name, weights)
        print(f'\n{name}, from {"its latest snapshot" if stage.resume else weights[0]}', flush=True)
        script.solve(stage)
        weights = [snapshots.model_of(snapshots.latest(stage.prefix))]
        mean_iu.append(
            [line['mean_iu'] for line in pictures.read_log(stage.folder) if 'mean_iu' in line][-1]
        )
    print('\n         ', *(f'{name:>10}' for name in STAGES))
    print('mean IU  ', *(f'{100 * value:10.2f}' for value in mean_iu))


def stage_of(job: experiment.Job, name: str, weights: list[Path]) -> experiment.Job:
    """The part of the chain's job that is one net's: in a folder of its own."""
    folder, prefix = job.folder / name, job.prefix.parent / name / job.prefix.name
    folder.mkdir(exist_ok=True)
    resume = job.resume if snapshots.states(prefix) or not weights else None
    stage = replace(job, name=name, folder=folder, prefix=prefix, weights=weights, resume=resume)
    return replace(stage, **recipes.settings(name)) if job.constants else stage


if __name__ == '__main__':
    options.run(solve, __doc__, voc, 'data/ilsvrc-nets/vgg16-fcn.caffemodel')
