"""What each rank runs in tests/solve/test_parallel.py; few imports, as torchrun starts four."""

import os
import signal
import sys
from pathlib import Path

import caffe_port as caffe
from caffe_port import parallel
from solve import launch, voc_fcn32s
from solve.datasets import voc
from solve.run.job import Job

SEED = 5


def places(data: Path) -> dict[str, str]:
    return dict(
        sbdd_dir=str(data / 'sample/sbdd/dataset'), voc_dir=str(data / 'sample/pascal/VOC2011')
    )


def job_in(folder: Path, data: Path, drop: float = 0.5, passes: int = 1, **changes) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(
        'ranks',
        folder,
        [data / 'vgg.caffemodel'],
        iterations=4,
        step=4,
        net=dict(places(data), width=2, fc=8, drop=drop),
        constants=dict(snapshot=2, random_seed=SEED, display=1, iter_size=passes),
        **changes,
    )


def run_command(data: str, folder: str) -> None:
    """Run the script with a narrow net; rank 1 is killed in iteration 3 unless it was restarted."""
    update = caffe.SGDSolver.apply_update

    def apply_update(solver):
        if solver.iter == 3 and (os.environ['RANK'], parallel.is_restarted()) == ('1', False):
            os.kill(os.getpid(), signal.SIGKILL)
        update(solver)

    caffe.SGDSolver.apply_update = apply_update
    Job._draw = lambda *_: None  # takes longer than all else here

    def solve(job):
        shown = job_in(job.folder, Path(data))
        job.net.update(width=2, fc=8, drop=0.5)
        job.constants, job.step = shown.constants, 4
        voc_fcn32s.solve(job)

    trees = [f'--{name.replace("_", "-")}={path}' for name, path in places(Path(data)).items()]
    sys.argv = [
        'voc_fcn32s.py',
        *trees,
        f'--weights={data}/vgg.caffemodel',
        '--iterations=4',
        f'--output={folder}',
    ]
    launch.run(solve, '', voc, 'none.caffemodel')
