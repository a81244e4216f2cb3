"""The experiments: their constants, their whole jobs in small, and what they start from."""

import importlib
import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from solve import launch, voc_chain
from solve.run import figures, job, loading, log
from solve.samples import recipes
from tests.solve.small import shrink_samples
from tests.vectors import FACTS

NAMES = [name for name in recipes.RECIPES if name not in ('voc_chain', *recipes.STUDIES)]
# FCN-GoogLeNet is the paper's, not the release's.
OFFICIAL = [name for name in NAMES if name != 'voc_fcn_googlenet']
PUBLISHED = json.loads((FACTS / 'official_nets.json').read_text())
ROUNDS = {
    'voc': (25, 4000),
    'voc_fcn8s_atonce': (75, 4000),
    'nyud': (50, 2000),
    'siftflow': (50, 2000),
    'pascalcontext': (50, 8000),
}
STARTS = {
    'voc_fcn16s': ['voc-fcn32s'],
    'voc_fcn8s': ['voc-fcn16s'],
    'voc_fcn_alexnet': ['ilsvrc-nets/caffenet-fcn'],
    'voc_fcn_googlenet': ['ilsvrc-nets/googlenet'],
    'nyud_fcn32s_color_d': ['ilsvrc-nets/vgg16'],
    'nyud_fcn32s_color_hha': ['nyud-fcn32s-color', 'nyud-fcn32s-hha'],
    'siftflow_fcn16s': ['siftflow-fcn32s'],
    'siftflow_fcn8s': ['siftflow-fcn16s'],
    'pascalcontext_fcn16s': ['pascalcontext-fcn32s'],
    'pascalcontext_fcn8s': ['pascalcontext-fcn16s'],
}


def script(name):
    return importlib.import_module(f'solve.{name}')


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Shrink the samples to few small images, hardly any channels and two iterations."""
    monkeypatch.chdir(tmp_path)
    shrink_samples(monkeypatch)
    monkeypatch.setattr(figures, 'draw_curve', lambda *_: None)  # tested with FCN-32s
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Draw no pictures at the end of a job: they take half of a small job's time."""
    monkeypatch.setattr(job.Job, 'save_and_report', lambda *_, **__: None)


def run(monkeypatch, name, *arguments):
    """Run a script as `python solve/NAME.py` does, in this process."""
    file = Path(script(name).__file__)
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.setattr('sys.argv', [str(file), *map(str, arguments)])
    runpy.run_path(str(file), run_name='__main__')


def weights(path):
    return loading.read_params(path).params


def rounds_of(name):
    """Return the rounds and the step that a script asks for."""
    source = Path(script(name).__file__).read_text()
    return tuple(map(int, re.search(r'rounds=(\d+), step=(\d+)', source).groups()))


def same(blobs, others):
    return all(np.array_equal(a.data, b.data) for a, b in zip(blobs, others, strict=True))


def test_there_is_a_script_and_a_sample_for_each_official_experiment():
    assert {name.replace('_', '-') for name in OFFICIAL} == set(PUBLISHED)


@pytest.mark.parametrize('name', OFFICIAL)
def test_solver_constants_are_the_published_ones(name):
    published = PUBLISHED[name.replace('_', '-')]['solver']
    if name.startswith('siftflow'):
        assert not {'snapshot', 'snapshot_prefix'} & set(published)
        published = dict(published, snapshot=2000, snapshot_prefix='snapshot/train')
    assert published == script(name).SOLVER
    assert rounds_of(name) == (ROUNDS.get(name) or ROUNDS[name.partition('_')[0]])


@pytest.mark.parametrize('name', NAMES)
def test_the_header_tells_all_and_the_start_is_the_published_one(name, monkeypatch, capsys):
    header = script(name).__doc__
    assert re.findall(r'^(Starts from|Command|Cost|To expect)  ', header, re.M) == [
        'Starts from',
        'Command',
        'Cost',
        'To expect',
    ]
    rounds, step = rounds_of(name)
    assert f'python solve/{name}.py [GPU]' in header
    assert f'{rounds * step:,} iterations' in header and f'every {step}' in header
    source = Path(script(name).__file__).read_text()
    assert len(source.splitlines()) <= 40
    starts = re.findall(r"'data/([\w/-]+)\.caffemodel'", source)
    assert starts == STARTS.get(name, ['ilsvrc-nets/vgg16-fcn'])


def starts_before(name):
    """List the experiments whose samples an experiment's sample needs, in order."""
    direct = [start for start in recipes.RECIPES[name].starts if start in NAMES]
    return [before for start in direct for before in (*starts_before(start), start)]


@pytest.mark.parametrize('name', NAMES)
def test_a_script_hands_over_all_scripts_that_come_before_it(name, monkeypatch):
    given = []
    monkeypatch.setattr(launch, 'run', lambda *_, after=(): given.extend(after))
    run(monkeypatch, name)
    assert [module.__name__ for module in given] == [f'solve.{n}' for n in starts_before(name)]


@pytest.mark.parametrize('family', ['voc', 'nyud', 'siftflow', 'pascalcontext'])
def test_every_sample_runs_its_whole_job(family, small, monkeypatch, capsys):
    for name in (name for name in NAMES if name.startswith(family)):
        run(monkeypatch, name)
        printed = capsys.readouterr().out
        tasks = 2 if family == 'siftflow' else 1
        assert printed.count('Begin seg tests') == 2 * tasks
        assert printed.count('Iteration 2 mean IU') == tasks
        for start in recipes.RECIPES[name].starts:
            if start in NAMES:
                assert f'Starting from output/{start}-sample/snapshot/train_iter_2' in printed
        folder = small / 'output' / f'{name}-sample'
        assert {'panel.png', 'caffe.log'} <= {path.name for path in folder.iterdir()}
        last = weights(folder / 'snapshot/train_iter_2.caffemodel')
        scores = [blobs for layer, blobs in last.items() if layer.startswith('score')]
        # Score layers start at zero (a fused net's do not); two iterations have moved them.
        assert scores and all(np.asarray(blobs[0].data).any() for blobs in scores)
        first = next(line for line in log.read(folder) if 'mean_iu' in line)
        assert first['iteration'] == 1 and ('geo_mean_iu' in first) == (tasks == 2)


@pytest.mark.usefixtures('undrawn')
def test_a_sample_with_nothing_before_it_trains_what_it_starts_from(small, monkeypatch, capsys):
    run(monkeypatch, 'voc_fcn8s', '--iterations', '1', '--output', 'here')
    printed = capsys.readouterr().out
    trained = [printed.index(f'Training {name} first') for name in ('voc_fcn32s', 'voc_fcn16s')]
    assert trained == sorted(trained) and printed.count('Begin seg tests') == 1
    before = small / 'here/before/voc_fcn16s/snapshot/train_iter_1.caffemodel'
    stamp = before.stat().st_mtime_ns
    # A run that was stopped takes what is there.
    (small / 'here/log.jsonl').unlink()
    shutil.rmtree(small / 'here/snapshot')
    run(monkeypatch, 'voc_fcn8s', '--iterations', '1', '--output', 'here')
    assert 'Training' not in capsys.readouterr().out and before.stat().st_mtime_ns == stamp


def untouched(monkeypatch, *names):
    """Let the samples of these experiments learn nothing, so that they end as they start."""
    for name in names:
        entry = recipes.RECIPES[name]
        monkeypatch.setitem(
            recipes.RECIPES,
            name,
            replace(entry, constants={**entry.constants, 'base_lr': 0, 'max_iter': 1}),
        )


@pytest.mark.usefixtures('undrawn')
def test_color_depth_starts_from_the_color_filters_and_their_mean(small, monkeypatch):
    untouched(monkeypatch, 'nyud_fcn32s_color_d')
    run(monkeypatch, 'nyud_fcn32s_color_d')
    folder = small / 'output/nyud_fcn32s_color_d-sample'
    color, ours = map(
        weights, (folder / 'vgg16-narrow.caffemodel', folder / 'snapshot/train_iter_1.caffemodel')
    )
    filters, bias = (blob.data for blob in color['conv1_1'])
    np.testing.assert_array_equal(ours['conv1_1_bgrd'][0].data[:, :3], filters)
    np.testing.assert_allclose(ours['conv1_1_bgrd'][0].data[:, 3], filters.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(ours['conv1_1_bgrd'][1].data, bias)
    assert all(same(ours[name], color[name]) for name in ('conv1_2', 'conv5_3'))
    assert ours['fc6'][0].data.ravel().tolist() == color['fc6'][0].data.ravel().tolist()


@pytest.mark.usefixtures('undrawn')
def test_color_hha_starts_from_both_trained_nets(small, monkeypatch):
    untouched(monkeypatch, 'nyud_fcn32s_color_hha')
    run(monkeypatch, 'nyud_fcn32s_color_hha')
    folder = small / 'output/nyud_fcn32s_color_hha-sample'
    fused = weights(folder / 'snapshot/train_iter_1.caffemodel')
    streams = {
        kind: weights(folder / f'before/nyud_fcn32s_{kind}/snapshot/train_iter_1.caffemodel')
        for kind in ('color', 'hha')
    }
    assert not same(streams['color']['score_fr'], streams['hha']['score_fr'])
    for kind, stream in streams.items():
        for layer in ('conv1_1', 'fc6', 'score_fr'):
            assert stream[layer][0].data.any() and same(fused[layer + kind], stream[layer])


def chained(name):
    return weights(
        f'output/voc_chain-sample/snapshot/{name}/train_iter_'
        f'{recipes.RECIPES[name].constants["max_iter"]}.caffemodel'
    )


@pytest.mark.usefixtures('undrawn')
def test_the_chain_hands_over_its_snapshots_and_prints_three_scores(small, monkeypatch, capsys):
    untouched(monkeypatch, 'voc_fcn16s', 'voc_fcn8s')
    run(monkeypatch, 'voc_chain')
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split() == list(voc_chain.STAGES)
    picture = small / printed[-4].removeprefix('The three on the same images: ')
    assert figures.is_drawing(picture) and picture.name == 'comparison.png'
    mean_iu = re.findall(r'Iteration \d mean IU (\S+)', '\n'.join(printed))
    assert printed[-1].split()[3:] == [f'{100 * float(value):.2f}' for value in mean_iu[1:]]
    classifier = weights('output/voc_chain-sample/vgg16-narrow.caffemodel')
    coarse, middle, fine = map(chained, voc_chain.STAGES)
    for layer in ('conv1_1', 'score_fr'):
        assert same(coarse[layer], middle[layer]) and same(middle[layer], fine[layer])
    assert not same(coarse['conv1_1'], classifier['conv1_1'])


@pytest.mark.usefixtures('undrawn')
def test_a_stopped_chain_goes_on_where_it_was(small, monkeypatch, capsys):
    def interrupted(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(voc_chain.voc_fcn16s, 'solve', interrupted)
        with pytest.raises(SystemExit, match='130'):
            run(monkeypatch, 'voc_chain')
    capsys.readouterr()
    run(monkeypatch, 'voc_chain', '--resume', 'latest')
    printed = capsys.readouterr().out
    assert 'voc_fcn32s, from its latest snapshot' in printed
    assert 'voc_fcn16s, from output/voc_chain-sample/snapshot/voc_fcn32s/train_iter_2' in printed
    assert printed.count('Begin seg tests') == 2 + 2
    assert len(printed.splitlines()[-1].split()) == 3 + 3


@pytest.mark.usefixtures('undrawn')
def test_a_chain_that_was_stopped_before_its_first_snapshot_starts_again(
    small, monkeypatch, capsys
):
    begun = []

    def interrupted(job):
        begun.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(voc_chain.voc_fcn32s, 'solve', interrupted)
    for arguments in ((), ('--resume', 'latest')):
        with pytest.raises(SystemExit, match='130'):
            run(monkeypatch, 'voc_chain', *arguments)
    first, again = begun
    assert first.resume is again.resume is None
    assert [path.name for path in again.weights] == ['vgg16-narrow.caffemodel']
    assert again.weights == first.weights and again.weights[0].is_file()
    assert capsys.readouterr().out.count('voc_fcn32s, from output/voc_chain-sample/vgg16') == 2


@pytest.mark.usefixtures('undrawn')
def test_a_chain_resumes_nothing_but_the_latest(small, monkeypatch, capsys):
    recipes.RECIPES['voc_chain'].draw(small / 'output/voc_chain-sample/data')
    (small / 'x.solverstate').touch()
    arguments = ('--resume', 'x.solverstate', '--output', 'output/voc_chain-sample')
    with pytest.raises(SystemExit, match='2'):
        run(monkeypatch, 'voc_chain', *arguments)
    assert 'resumes `latest` only' in capsys.readouterr().err
