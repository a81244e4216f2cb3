"""The FCN-32s script: its whole job in small, stops and resumes, and refusals."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import caffe_port as caffe
import surgery
from caffe_port import rng
from caffe_port.files import caffemodel
from caffe_port.plan import switch
from caffe_port.solving import resume, update
from nets import voc_fcn32s as net_file
from solve import launch, voc_fcn32s
from solve.datasets import voc
from solve.run import log, retention
from solve.run.job import LATEST, Job
from solve.samples import trees
from tests.caffe_logs import parse_log
from tests.solve.feeding import random_classifier
from tests.solve.small import blank_figures
from tests.starting import start

WIDTH, FC = 2, 8


@pytest.fixture(autouse=True)
def blank(request, monkeypatch):
    """Render no figures where a test does not look at them."""
    if 'rendered' not in request.fixturenames:
        blank_figures(monkeypatch)


@pytest.fixture
def rendered():
    """Render figures at the end of a run."""


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """Draw six images to disk, and make a narrow classifier of random weights."""
    folder = tmp_path_factory.mktemp('places')
    return (
        trees.draw_dataset('voc', folder / 'data', train=4, val=2, size=(80, 80)),
        random_classifier(folder / 'vgg.caffemodel', WIDTH, FC),
    )


def job_in(folder, places, **changes) -> Job:
    data, weights = places
    folder.mkdir(exist_ok=True)
    constants = dict(snapshot=2, display=1, random_seed=5)
    return Job(
        'test',
        folder,
        [weights],
        net=dict(data, width=WIDTH, fc=FC),
        constants=constants,
        iterations=4,
        step=2,
        **changes,
    )


def test_the_whole_job_leaves_snapshots_scores_and_pictures(places, rendered, tmp_path, capsys):
    job = job_in(tmp_path, places)
    voc_fcn32s.solve(job)
    printed = capsys.readouterr().out
    assert printed.count('Begin seg tests') == 2
    for what in ('loss', 'overall accuracy', 'mean accuracy', 'mean IU', 'fwavacc'):
        assert f'Iteration 4 {what} ' in printed
    assert 'coercing fc6 0 from' in printed and 'dropping fc8' in printed
    written = {path.name for path in tmp_path.rglob('*') if path.is_file()}
    assert written == {
        '.lock',
        'caffe.log',
        'log.jsonl',
        'curve.png',
        'panel.png',
        'report.html',
        *(
            f'train_iter_{i}.{kind}'
            for i in (2, 4)
            for kind in ('caffemodel', 'solverstate', 'memory.json')
        ),
    }
    page = (tmp_path / 'report.html').read_text()
    assert 'Learning curve' in page and page.count('<figure') == 2
    train, _ = parse_log(tmp_path / 'caffe.log')
    written = [line['loss'] for line in log.read(tmp_path) if 'loss' in line]
    assert [row[0] for row in train] == [0, 1, 2, 3]
    assert [row[4] for row in train] == pytest.approx(written, rel=1e-5)
    logged = (tmp_path / 'caffe.log').read_text().splitlines()
    assert logged[0].startswith('Log file created at: ')
    glog = re.compile(r'[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \w+\.py:\d+\] ')
    assert len(logged) > 20 and all(glog.match(line) for line in logged[3:])
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    first = next(line for line in lines if 'loss' in line)
    label = next(iter(_first_labels(places)))
    # The score layer starts at zero: every pixel costs ln 21.
    assert first['loss'] == pytest.approx(np.log(21) * (label != 255).sum(), rel=1e-4)
    assert sum('mean_iu' in line for line in lines) == 2


def test_event_files_hold_the_log(places, tmp_path):
    accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    voc_fcn32s.solve(job_in(tmp_path, places, tensorboard=True))
    found = accumulator.EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    lines = log.read(tmp_path)
    for name in 'smoothed_loss', 'mean_iu':
        expected = [(line['iteration'], line[name]) for line in lines if name in line]
        events = [(event.step, event.value) for event in found.Scalars(name)]
        assert len(events) > 1 and np.allclose(events, expected)


def test_without_tensorboard_its_option_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    assert run(monkeypatch, '--tensorboard') == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        'error: --tensorboard: needs tensorboard, which is not installed: pip install '
        "tensorboard, or this package with its extra 'tensorboard'"
    )
    assert not list(tmp_path.iterdir())


def _first_labels(places):
    layer = (
        caffe.Net(net_file.fcn('train', **places[0], width=WIDTH, fc=FC), caffe.TRAIN)
        .module.nodes[0]
        .op.layer
    )
    yield layer.load(layer.ids[layer._order.index])[1]


def test_stopped_by_a_signal_and_resumed_the_run_ends_as_if_it_had_not(places, tmp_path):
    straight = job_in(tmp_path / 'straight', places)
    voc_fcn32s.solve(straight)

    job = job_in(tmp_path / 'stopped', places)
    solver = solver_in(job)
    solver.add_callback(lambda: None, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match='iteration 1'), job.watch(solver, 2, 2) as rounds:
        solver.step(rounds[0])

    state = tmp_path / 'stopped/snapshot/train_iter_1.solverstate'
    assert caffemodel.read_state(state).iter == 1
    caffe.set_random_seed(99)
    voc_fcn32s.solve(job_in(tmp_path / 'resumed', places, resume=state))
    ends = [
        (tmp_path / run / 'snapshot/train_iter_4.caffemodel').read_bytes()
        for run in ('straight', 'resumed')
    ]
    assert ends[0] == ends[1]


def test_a_run_that_recomputes_moves_params_early_and_ends_as_without(
    places, tmp_path, monkeypatch
):
    voc_fcn32s.solve(job_in(tmp_path / 'plain', places))
    early = set()
    plain = update.Update.apply_early

    def apply_early(*args):
        moved = plain(*args)
        early.update(moved)
        return moved

    monkeypatch.setattr(update.Update, 'apply_early', apply_early)
    monkeypatch.setattr(switch, '_recompute', True)
    voc_fcn32s.solve(job_in(tmp_path / 'recomputed', places))
    assert len(early) == 32  # weights and biases of 16 layers
    one, other = (tmp_path / run / 'snapshot/train_iter_4' for run in ('plain', 'recomputed'))
    weights = [path.with_suffix('.caffemodel').read_bytes() for path in (one, other)]
    assert weights[0] == weights[1]
    states = [caffemodel.read_state(path.with_suffix('.solverstate')) for path in (one, other)]
    histories = [[blob.array() for blob in state.history] for state in states]
    assert all(map(np.array_equal, *histories))


def solver_in(job):
    solver = job.make_solver(voc_fcn32s.SOLVER, net_file.fcn, 'train', 'seg11valid')
    job.load_weights(solver.net)
    surgery.interp(solver.net, ['upscore'])
    return solver


def test_what_is_scored_is_saved_before_also_between_intervals(places, tmp_path):
    job = job_in(tmp_path / 'run', places)
    job.iterations, job.step, job.constants['snapshot'] = 3, 2, 1000
    solver = solver_in(job)
    with job.watch(solver, 2, 2) as rounds:
        assert rounds == [2, 1]
        for iterations in rounds:
            solver.step(iterations)
            assert solver.iter in retention.list_states(job.prefix)
    assert retention.find_latest(job.prefix).name == 'train_iter_3.solverstate'


def test_a_stop_signal_while_scoring_stops_at_once(places, tmp_path):
    job = job_in(tmp_path / 'run', places)
    solver = solver_in(job)
    with (
        pytest.raises(KeyboardInterrupt, match='iteration 2, which is saved'),
        job.watch(solver, 2, 2) as rounds,
    ):
        solver.step(rounds[0])
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
        pytest.fail('scoring went on')


def test_a_log_that_the_disk_refuses_does_not_end_the_run(places, tmp_path):
    job = job_in(tmp_path / 'run', places)
    solver = solver_in(job)
    (tmp_path / 'run/log.jsonl').mkdir()
    with job.watch(solver, 1, 4):
        solver.step(4)
    assert solver.iter == 4
    assert 'log.jsonl: not written' in (tmp_path / 'run/caffe.log').read_text()


def test_a_restore_that_fails_leaves_streams_and_order_as_they_were(places, tmp_path):
    job = job_in(tmp_path / 'run', places)
    solver = solver_in(job)
    solver.step(1)
    state = solver.snapshot()
    solver.step(1)
    before = resume.collect(solver)
    caffemodel.write(
        retention.name_weights(state),
        solver.net.module.param,
        {'fc7': [np.zeros((1, 2), np.float32), np.zeros(3, np.float32)]},
    )
    with pytest.raises(caffe.CaffeError, match='not the .caffemodel of this snapshot'):
        solver.restore(state)
    kept = resume.read(resume.name_resume_file(state), 1)
    resume.write(resume.name_resume_file(state), kept, digests={})  # as earlier versions wrote it
    with pytest.raises(caffe.CaffeError, match='conv1_1: expected 2 blobs, found 0'):
        solver.restore(state)
    after = resume.collect(solver)
    assert solver.iter == 2 and after['layers'] == before['layers']
    assert np.array_equal(after['streams']['key'], before['streams']['key'])
    assert after['streams']['position'] == before['streams']['position']
    assert after['losses'] == before['losses']


def test_memory_of_a_gpu_that_is_not_here_and_of_broken_streams(places, tmp_path):
    state = rng.get_state()
    rng.set_state({**state, 'devices': {'cuda:99': np.zeros(16, np.uint8)}})
    with pytest.raises(caffe.CaffeError, match='not a state of the random streams'):
        rng.set_state({**state, 'key': np.zeros(3, np.uint32)})
    assert np.array_equal(rng.get_state()['key'], state['key'])


def test_a_list_of_another_length_is_remarked_on(places):
    (remark,) = voc.remarks(**places[0])
    assert 'seg11valid.txt has 2 images, the official list 736' in remark


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr('sys.argv', ['voc_fcn32s.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        launch.run(voc_fcn32s.solve, voc_fcn32s.__doc__, voc, 'data/vgg16-fcn.caffemodel')
    return end.value.code


def test_options_that_name_missing_things_end_in_one_line_and_status_2(
    places, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    data, weights = places
    empty = tmp_path / 'empty.caffemodel'
    empty.touch()
    trees = ['--sbdd-dir', data['sbdd_dir'], '--voc-dir', data['voc_dir']]
    for arguments, message in (
        (['--weights', 'none.caffemodel', *trees], 'none.caffemodel: no such file'),
        (['--voc-dir', 'nowhere'], 'no such folder'),
        ([*trees, '--weights', empty], 'empty.caffemodel'),
        ([*trees, '--weights', weights, '--resume', 'x'], 'x: no such file'),
        ([*trees, '--weights', weights], 'vgg.caffemodel: conv1_1 0 of shape 2 x 3 x 3 x 3'),
        (['--resume', weights], 'not in the folder of a run; --output names'),
        (['--resume', 'latest'], 'no run there to resume'),
        (['--resume', 'latest', '--output', 'typo'], 'typo: no such folder, so there is'),
        (['--keep', '-1'], '--keep -1: must not be negative'),
        (['--iterations', '0'], '--iterations 0: must be positive'),
    ):
        assert run(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith('error: ') and message in error, error


def test_a_resumed_run_goes_on_in_its_own_folder_or_the_last_one_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(('run', 'run-3', 'run-2')):
        (tmp_path / folder / 'snapshot').mkdir(parents=True)
        (tmp_path / folder / 'log.jsonl').touch()
        os.utime(tmp_path / folder / 'log.jsonl', (number, number))
    state = Path('run-3/snapshot/train_iter_2.solverstate')
    for taken, output, expected in (
        (state, None, 'run-3'),
        (state, 'run', 'run'),
        (LATEST, None, 'run-2'),
        (LATEST, 'run', 'run'),
    ):
        given = output and Path(output)
        assert launch.find_run(taken, given, [Path('run'), Path('none')]) == Path(expected)


@pytest.mark.parametrize('saved, resume, expected', [
    (False, None, None),
    (False, 'state', 'state'),
    (True, None, 'latest'),
    (True, 'state', 'latest'),
])  # fmt: skip
def test_restarted_by_torchrun_a_run_resumes_its_own_snapshots_and_else_as_it_was_told(
    saved, resume, expected, places, tmp_path, monkeypatch
):
    jobs, (data, weights) = [], places
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    (tmp_path / 'state').touch()
    prefix = tmp_path / 'out/snapshot/train'
    prefix.parent.mkdir(parents=True)
    if saved:
        Path(f'{prefix}_iter_4.solverstate').touch()
    arguments = ['--sbdd-dir', data['sbdd_dir'], '--voc-dir', data['voc_dir']]
    arguments += ['--weights', str(weights), '--output', str(tmp_path / 'out')]
    arguments += ['--resume', str(tmp_path / resume)] if resume else []
    monkeypatch.setattr('sys.argv', ['voc_fcn32s.py', *arguments])
    launch.run(jobs.append, '', voc, 'none.caffemodel')
    found = jobs[0].resume
    assert found == (LATEST if expected == 'latest' else expected and tmp_path / expected)


def test_help_shows_the_defaults(monkeypatch, capsys):
    assert run(monkeypatch, '--help') == 0
    printed = capsys.readouterr().out
    for default in (
        'data/sbdd/dataset',
        'data/pascal/VOC2011',
        'output/voc_fcn32s',
        'snapshot/train',
        'vgg16-fcn.caffemodel',
    ):
        assert default in printed


def test_a_job_does_not_begin_with_a_net_of_zeros(places, tmp_path):
    job = job_in(tmp_path / 'run', places)
    solver = job.make_solver(voc_fcn32s.SOLVER, net_file.fcn, 'train', 'seg11valid')
    with pytest.raises(caffe.CaffeError, match='conv1_1: all zero'), job.watch(solver, 2, 2):
        pytest.fail('the run began')


def test_a_reader_that_closes_the_pipe_ends_a_command_without_an_error():
    code = """
from solve.run.options import session
with session():
    for _ in range(100000):
        print('a line of a table')
"""
    command = start(code)
    assert command.stdout.readline() == 'a line of a table\n'
    command.stdout.close()
    assert command.stderr.read() == '' and command.wait(60) == 0


def test_a_net_of_zeros_is_refused_with_what_to_do():
    net = caffe.Net(net_file.fcn('deploy', width=WIDTH, fc=FC), caffe.TEST)
    with pytest.raises(caffe.CaffeError, match='conv1_1: all zero.*--weights'):
        surgery.check_filled(net)
    for name, blobs in net.params.items():
        if not name.startswith('up'):
            blobs[0].data[...] = 1
    with pytest.raises(caffe.CaffeError, match='upscore: all zero.*surgery.interp'):
        surgery.check_filled(net)
    surgery.interp(net, ['upscore'])
    surgery.check_filled(net)


def test_a_run_goes_on_from_the_newest_snapshot_whose_files_belong_together(places, tmp_path):
    job = job_in(tmp_path / 'run', places)
    solver = solver_in(job)
    solver.step(1)
    state = solver.snapshot()
    solver.step(1)
    newest = solver.snapshot()
    assert retention.find_latest(job.prefix) == newest
    values = bytearray(retention.name_weights(newest).read_bytes())
    values[len(values) // 2] ^= 1  # another weight, in a file that is whole
    retention.name_weights(newest).write_bytes(values)
    assert retention.find_latest(job.prefix) == state


@pytest.mark.parametrize(
    'notes',
    [
        {'best': 3},
        {'best': {'iteration': 1}},
        {'best': {'iteration': 1, 'mean_iu': 'x'}},
        {'scored': 'x'},
    ],
)
def test_notes_of_another_kind_are_refused_before_a_run_goes_on(places, tmp_path, notes):
    job = job_in(tmp_path / 'run', places)
    solver = solver_in(job)
    solver.step(1)
    solver.notes = notes
    state = solver.snapshot()
    job = job_in(tmp_path / 'again', places)
    job.resume = state
    fresh = solver_in(job)
    with pytest.raises(caffe.CaffeError, match='memory.json: notes of the snapshot: '):
        job.restore(fresh)
    assert fresh.iter == 0 and fresh.notes == {}
