"""The papers' other experiments: each on its sample, on VOC's files, and resumed."""

import functools
import re
from dataclasses import replace

import numpy as np
import pytest

from nets import vgg16, voc_fcn8s_atonce, voc_fcn32s, voc_fcn32s_sampled
from solve import balancing, heavy, launch, masking, sampling, upsampling
from solve.datasets import voc
from solve.run import figures, variants
from solve.samples import classifiers, recipes, trees
from tests.solve.scored import save_random
from tests.solve.small import blank_figures

STUDIES = {
    'balancing': (balancing, ['plain', 'weights', 'ratio-3']),
    'heavy': (heavy, [row[0] for row in heavy.ROWS]),
    'masking': (masking, [row[0] for rows in masking.ROWS.values() for row in rows]),
    'sampling': (sampling, ['1', '0.5', '0.25']),
    'upsampling': (upsampling, [row[0] for row in upsampling.ROWS]),
}
NARROW = dict(width=2, fc=8)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Shrink nets, data, classifier and iterations, of the samples and of the real runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, 'ROOT', tmp_path)
    blank_figures(monkeypatch)
    tiny = {'vgg16': (vgg16.classifier, 193, NARROW, 1)}
    monkeypatch.setattr(classifiers, 'CLASSIFIER_NETS', tiny)
    few = dict(train=2, val=1, size=(80, 80))
    for name in STUDIES:
        entry = recipes.RECIPES[name]
        constants = {**entry.constants, 'max_iter': 2, 'snapshot': 2, 'iter_size': 1}
        draw = functools.partial(entry.draw, **few)
        monkeypatch.setitem(recipes.RECIPES, name, replace(entry, draw=draw, constants=constants))
    for module in (voc_fcn32s, voc_fcn32s_sampled, voc_fcn8s_atonce):
        monkeypatch.setattr(module, 'fcn', functools.partial(module.fcn, **NARROW))
    for solver in (sampling.SOLVER, heavy.release.SOLVER):
        monkeypatch.setitem(solver, 'iter_size', 1)
    return tmp_path


@pytest.fixture
def real(small):
    """The options that name a drawn tree of VOC and SBD, and weights to start from."""
    places = trees.draw_dataset('voc', small / 'there', train=2, val=1, size=(80, 80))
    weights = save_random(voc_fcn32s.fcn('deploy'), small / 'vgg.caffemodel')
    return [
        *('--sbdd-dir', places['sbdd_dir'], '--voc-dir', places['voc_dir']),
        *('--weights', str(weights), '--iterations', '2'),
    ]


def run(monkeypatch, capsys, name, *arguments):
    """Run a command; return its status, the rows of its table by name, and all it printed."""
    module, rows = STUDIES[name]
    monkeypatch.setattr('sys.argv', [f'{name}.py', *map(str, arguments)])
    status = 0
    try:
        launch.run(module.solve, module.__doc__, voc, 'data/none.caffemodel', files=())
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    found = {row: re.findall(rf'^ *{re.escape(row)} +(.+)$', printed.out, re.M) for row in rows}
    return status, found, printed.out + printed.err


def test_without_data_a_study_runs_a_sample(small, monkeypatch, capsys):
    # As if an earlier call had trained it: training it takes longer than all else here.
    classifier = small / 'output/sampling-sample/vgg16-narrow.caffemodel'
    classifier.parent.mkdir(parents=True)
    save_random(voc_fcn32s.fcn('deploy'), classifier)
    status, rows, printed = run(monkeypatch, capsys, 'sampling')
    assert status == 0 and all(len(lines) == 1 for lines in rows.values()), printed
    assert [line[0].split()[0] for line in rows.values()] == ['1', '2', '4']  # images
    assert 'so this runs a small sample of sampling' in printed and 'nan' not in printed
    assert figures.is_drawing(small / 'output/sampling-sample/sampling.png')


@pytest.mark.parametrize('name', ['balancing', 'sampling', 'upsampling'])
def test_with_data_and_weights_a_study_trains_and_scores_its_rows(name, real, monkeypatch, capsys):
    status, rows, printed = run(monkeypatch, capsys, name, *real)
    assert status == 0 and all(len(lines) == 1 for lines in rows.values()), printed
    assert 'sample' not in printed.replace('sampling', '') and 'nan' not in printed


def test_a_stopped_study_goes_on_with_the_part_it_was_in(real, monkeypatch, capsys):
    with monkeypatch.context() as stopped:
        make_solver, made = variants.Job.make_solver, []

        def stop_at_the_second(job, *arguments, **settings):
            made.append(job.name)
            if len(made) == 2:
                raise KeyboardInterrupt
            return make_solver(job, *arguments, **settings)

        stopped.setattr(variants.Job, 'make_solver', stop_at_the_second)
        status, _, printed = run(monkeypatch, capsys, 'heavy', *real)
    assert status == 130 and 'to go on: ' in printed and '--resume latest' in printed
    status, rows, printed = run(monkeypatch, capsys, 'heavy', *real, '--resume', 'latest')
    assert status == 0 and all(len(lines) == 1 for lines in rows.values())
    state = 'output/heavy/snapshot/accumulated/train_iter_1.solverstate'
    assert re.findall('Resuming from (.*)', printed) == [state]
    check_rates([line.split() for (line,) in rows.values()], printed)
    given = [*real, '--resume', state, '--output', 'output/heavy']
    status, _, printed = run(monkeypatch, capsys, 'heavy', *given)
    assert status == 2 and 'a run of several parts resumes `latest` only' in printed


def check_rates(columns, printed):
    """Check that all rows of heavy.py have one effective rate, lr x pixels / (1 - momentum)."""
    assert len({column[3] for column in columns}) == 1
    pixels = int(re.search(r'about (\d+) pixels', printed)[1])
    rates = [float(column[2]) for column in columns]
    assert rates[0] / rates[2] == pytest.approx(10, rel=0.01) and rates[0] == rates[1]
    assert rates[3] / rates[2] == pytest.approx(pixels, rel=0.01)


def test_a_mask_hides_what_it_says(real, monkeypatch, capsys):
    seen = []
    train = variants.train

    def look(job, name, fcn, solver):
        made = train(job, name, fcn, solver)
        seen.append(
            (name, made[0].net.blobs['data'].data[0], made[0].net.blobs['label'].data[0, 0])
        )
        return made

    monkeypatch.setattr(variants, 'train', look)
    status, rows, printed = run(monkeypatch, capsys, 'masking', *real)
    assert status == 0 and all(len(lines) == 1 for lines in rows.values()), printed
    found = {name: (data, label != 0) for name, data, label in seen}
    assert list(found) == ['none', 'background', 'foreground', 'shape']
    for name, (data, foreground) in found.items():
        assert foreground.any() and not foreground.all()
        hidden = {'background': ~foreground, 'foreground': foreground}.get(name)
        if hidden is not None:
            assert not data[:, hidden].any() and data[:, ~hidden].any()
    assert set(np.unique(found['shape'][0])) == {-128, 128}
