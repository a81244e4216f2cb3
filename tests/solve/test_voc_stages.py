"""The finer VOC experiments: their constants, and their jobs in small, one after the other."""

import importlib
import json

import pytest

import caffe_port as caffe
from nets import vgg16
from solve import experiment
from solve.datasets import sample, voc
from tests.vectors import FACTS

ROUNDS = {'voc_fcn16s': 25, 'voc_fcn8s': 25, 'voc_fcn8s_atonce': 75}


@pytest.mark.parametrize('name', ROUNDS)
def test_solver_constants_are_the_published_ones(name):
    script = importlib.import_module(f'solve.{name}')
    facts = json.loads((FACTS / 'official_nets.json').read_text())
    assert script.SOLVER == facts[name.replace('_', '-')]['solver']
    assert (script.ROUNDS, script.STEP) == (ROUNDS[name], 4000)


def test_each_stage_starts_from_the_snapshot_of_the_one_before(tmp_path, capsys):
    data = sample.draw(tmp_path / 'data', train=2, val=1)
    listed = voc.seg11valid(data.voc_dir, data.sbdd_dir, expected=None)
    voc.segmentation_list(data.voc_dir, 'seg11valid').write_text('\n'.join(listed))
    weights = tmp_path / 'vgg.caffemodel'
    caffe.set_random_seed(3)
    caffe.Net(vgg16.classifier(21, 2, 8, 193, weight_filler=dict(type='msra')),
              caffe.TEST).save(weights)
    for name in ('voc_fcn32s', 'voc_fcn16s', 'voc_fcn8s', 'voc_fcn8s_atonce'):
        folder = tmp_path / name
        folder.mkdir()
        job = experiment.Job(name, folder, [weights], iterations=1, step=1,
                             net=dict(sbdd_dir=str(data.sbdd_dir), voc_dir=str(data.voc_dir),
                                      width=2, fc=8),
                             constants=dict(snapshot=1, random_seed=5))
        importlib.import_module(f'solve.{name}').solve(job)
        assert 'Iteration 1 mean IU' in capsys.readouterr().out
        weights = folder / 'snapshot/train_iter_1.caffemodel'
        assert weights.is_file() and (folder / 'panel.png').is_file()
