"""What stops a run, and what must not: signals, closed terminals, full disks, a second run."""

import fcntl
import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

import caffe_port as caffe
from solve import finetune, launch, score, voc_chain, voc_fcn32s
from solve.datasets import voc
from solve.run import options, retention, terminal, workspace
from solve.run.job import LATEST, Job
from solve.samples import trees
from tests import starting
from tests.solve.feeding import random_classifier
from tests.solve.scored import call

# The script of FCN-32s with a narrow net, as a command; a line is printed at every iteration,
# where it stays while there is a file `wait`.
SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from solve import launch, voc_fcn32s
from solve.datasets import voc
from solve.run import job
job.PANEL_ROWS = 1
def solve(job):
    job.net.update(width=2, fc=8)
    job.constants, job.step = dict(snapshot=2, random_seed=5, display=1), 4
    plain = job.restore
    def tell(solver):
        print('iteration', solver.iter, flush=True)
        while Path('wait').exists():
            time.sleep(0.01)
    def restore(solver):
        solver.add_callback(lambda: None, lambda: tell(solver))
        return plain(solver)
    job.restore = restore
    voc_fcn32s.solve(job)
launch.run(solve, '', voc, 'none.caffemodel')
"""
# The command of a sample whose classifier is trained on so many batches.
SAMPLE = """
import sys, functools
from dataclasses import replace
from nets import vgg16
from solve import launch, voc_fcn32s
from solve.datasets import voc
from solve.samples import classifiers, recipes
net = vgg16.classifier, 193, dict(width=2, fc=8), int(sys.argv.pop(1))
classifiers.CLASSIFIER_NETS = {'vgg16': net}
classifiers.SCENES = 10
entry = recipes.RECIPES['voc_fcn32s']
few = functools.partial(entry.draw, train=2, val=1, size=(80, 80))
constants = {**entry.constants, 'max_iter': 1, 'snapshot': 1}
recipes.RECIPES['voc_fcn32s'] = replace(entry, draw=few, constants=constants)
sys.argv[0] = 'solve/voc_fcn32s.py'
launch.run(voc_fcn32s.solve, '', voc, 'none.caffemodel')
"""


@pytest.fixture(scope='module')
def data():
    # Not one of pytest's folders, which no other user may enter: some tests change theirs.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    places = trees.draw_dataset('voc', folder / 'sample', train=4, val=2, size=(80, 80))
    random_classifier(folder / 'vgg.caffemodel')
    yield [
        *(f'--{name.replace("_", "-")}={path}' for name, path in places.items()),
        f'--weights={folder}/vgg.caffemodel',
    ]
    shutil.rmtree(folder)


@pytest.fixture
def start(tmp_path):
    """Return a function that starts code as a command; processes left at the end are killed."""
    started = []

    def begin(code, *arguments, **streams):
        started.append(starting.start(code, *arguments, cwd=tmp_path, **streams))
        return started[-1]

    yield begin
    for each in started:
        each.kill()
        each.communicate()


def wait_for(run, words):
    """Read a run's standard output up to the line with these words."""
    for line in run.stdout:
        if words in line:
            return
    pytest.fail(run.stderr.read())


def ended(run, status):
    out, error = run.communicate(timeout=120)
    assert run.returncode == status, error
    return error


def states(folder) -> list[int]:
    return list(retention.list_states(Path(folder) / 'snapshot/train'))


def test_sigterm_stops_with_a_snapshot_and_names_the_command_that_goes_on(data, start, tmp_path):
    run = start(SCRIPT, *data, '--iterations', 400, '--output', 'out')
    wait_for(run, 'iteration 2')
    run.send_signal(signal.SIGTERM)
    run.send_signal(signal.SIGTERM)  # as torchrun passes it on
    error = ended(run, 130).splitlines()[-1]
    (*_, last) = states(tmp_path / 'out')
    assert f'iteration {last}' in error, error
    assert f'{" ".join(data)} --iterations 400 --resume latest --output out' in error


def test_stopped_before_anything_is_saved_it_does_not_offer_to_resume(data, tmp_path, monkeypatch):
    def stopped(job):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['x.py', *data, '--output=out', '--gpu', '0'])
    monkeypatch.setattr(options, 'choose_device', lambda gpu: None)
    said = []
    monkeypatch.setattr(launch.parallel, 'end', lambda status, words: said.append((status, words)))
    launch.run(stopped, '', voc, 'none.caffemodel')
    begin = f'python x.py {" ".join(data)} --gpu 0 --output out'
    assert said == [(130, f'stopped; nothing is saved; to begin again: {begin}')]
    assert not list(tmp_path.iterdir())


def test_sighup_writes_a_snapshot_and_a_closed_terminal_is_told_to_the_log(data, start, tmp_path):
    (tmp_path / 'wait').touch()
    run = start(SCRIPT, *data, '--iterations', 7, '--output', 'out')
    wait_for(run, 'iteration 0')
    run.stdout.close()
    run.stderr.close()
    run.send_signal(signal.SIGHUP)
    (tmp_path / 'wait').unlink()
    assert run.wait(120) == 0
    assert states(tmp_path / 'out') == [1, 2, 4, 6, 7]
    log = (tmp_path / 'out/caffe.log').read_text()
    for name in 'output', 'error':
        assert log.count(f'standard {name} is not written: Broken pipe') == 1
    assert re.search('Iteration 6 .*, loss = ', log)


def test_a_full_disk_under_standard_output_and_error_does_not_end_a_run(data, start, tmp_path):
    with open('/dev/full', 'w') as full:
        run = start(SCRIPT, *data, '--iterations', 4, '--output', 'out', stdout=full, stderr=full)
        assert run.wait(120) == 0
    assert states(tmp_path / 'out') == [2, 4]
    log = (tmp_path / 'out/caffe.log').read_text()
    assert log.count('standard output is not written: No space left on device') == 1


def test_a_signal_while_the_samples_classifier_trains(start, tmp_path):
    run = start(SAMPLE, 100000, '--output', 'out')
    while not (tmp_path / 'out/data').is_dir():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.02)
    run.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert run.poll() is None, 'SIGHUP killed it'
    run.send_signal(signal.SIGTERM)
    error = ended(run, 130)
    assert 'python solve/voc_fcn32s.py --resume latest --output out' in error
    again = start(SAMPLE, 1, '--resume', 'latest', '--output', 'out')
    ended(again, 0)
    assert states(tmp_path / 'out') == [1]


def test_a_second_run_in_a_live_folder_is_refused_and_a_dead_ones_lock_is_free(
    data, start, tmp_path
):
    first = start(SCRIPT, *data, '--iterations', 400, '--output', 'out')
    wait_for(first, 'iteration 2')
    torn = tmp_path / 'out/snapshot/.train_iter_9.caffemodel.1.tmp'
    torn.touch()
    error = ended(start(SCRIPT, *data, '--resume', 'latest', '--output', 'out'), 2)
    assert f'error: {tmp_path}/out: process {first.pid} on ' in error.splitlines()[-1]
    assert torn.exists(), 'another process swept'
    first.kill()
    first.communicate()
    resumed = start(SCRIPT, *data, '--iterations', 1, '--resume', 'latest', '--output', 'out')
    wait_for(resumed, 'Resuming')
    ended(resumed, 0)
    assert not torn.exists()


def test_a_start_that_fails_leaves_no_folder(data, start, tmp_path):
    bad = tmp_path / 'bad.caffemodel'
    bad.touch()
    options = [*data[:-1], f'--weights={bad}', '--output=deep/out']
    assert 'bad.caffemodel' in ended(start(SCRIPT, *options), 2)
    assert [path.name for path in tmp_path.iterdir()] == ['bad.caffemodel']


def test_locks_are_of_the_process_and_released(tmp_path):
    workspace.take(tmp_path / 'a')
    workspace.take(tmp_path / 'a')
    assert workspace.is_held(tmp_path / 'a/b/c') and not workspace.is_held(tmp_path)
    (tmp_path / 'a/result').touch()
    workspace.take(tmp_path / 'b/c')
    workspace.release()
    assert not workspace.is_held(tmp_path / 'a')
    assert (tmp_path / 'a').is_dir() and not (tmp_path / 'b').exists()


def test_a_folder_that_takes_no_lock_file_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(caffe.CaffeError, match='file: not written to: Not a directory'):
        workspace.hold(tmp_path / 'file' / workspace.LOCK)


def test_a_held_prefix_is_told_with_its_own_option(tmp_path):
    # A lock belongs to the open file, so this one counts as another process's.
    with open(tmp_path / '.train.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        job = Job('a', tmp_path / 'out', [], prefix=tmp_path / 'train')
        with pytest.raises(caffe.CaffeError, match='name another place with --snapshot-prefix'):
            job._take_folders()
    workspace.release()


@pytest.mark.parametrize('name', ['curve.png', 'panel.png', 'report.html', 'caffe.log'])
@pytest.mark.parametrize('resume', [None, LATEST])
def test_a_run_replaces_no_file_of_its_user(name, resume, tmp_path):
    (tmp_path / name).write_text('mine')
    for _ in range(2):  # the refusal leaves nothing that a later call takes for its own
        with pytest.raises(caffe.CaffeError) as refused:
            launch.make_run_folder(tmp_path, resume)
        assert str(refused.value) == (
            f'{tmp_path / name}: exists and is not a result of a run; --output names another folder'
        )
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    'files, name',
    [
        (finetune.OWN_FILES, 'finetune.json'),
        (finetune.OWN_FILES, 'train.prototxt'),
        (finetune.OWN_FILES, 'snapshot/classes.txt'),
        (voc_chain.FILES_OF_CHAIN, 'comparison.png'),
        (voc_chain.FILES_OF_CHAIN, 'voc_fcn8s/curve.png'),
    ],
)
def test_other_commands_have_more_files_that_are_not_replaced(files, name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(caffe.CaffeError, match=f'{name}: exists and is not a result of a run'):
        launch.make_run_folder(tmp_path, None, files)


def test_the_commands_refuse_before_they_draw_or_train(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, 'ROOT', tmp_path)
    (tmp_path / 'finetune.json').touch()
    (tmp_path / 'comparison.png').touch()
    assert call(monkeypatch, finetune.main, '--output', '.') == 2
    assert 'finetune.json: exists and is not a result of a run' in capsys.readouterr().err

    def chain():
        launch.run(voc_chain.solve, '', voc, 'none.caffemodel', files=voc_chain.FILES_OF_CHAIN)

    assert call(monkeypatch, chain, '--output', '.') == 2
    assert 'comparison.png: exists and is not a result of a run' in capsys.readouterr().err
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize(
    'record, resume',
    [
        ('log.jsonl', LATEST),
        ('voc_fcn32s/log.jsonl', LATEST),
        ('.lock', LATEST),  # of an earlier version's run, stopped before its first line
        ('snapshot/train_iter_5.solverstate', Path('snapshot/train_iter_5.solverstate')),
        (workspace.MARK, None),
    ],
)
def test_the_folder_of_a_run_is_taken_again(record, resume, tmp_path):
    (tmp_path / record).parent.mkdir(exist_ok=True)
    (tmp_path / record).touch()
    (tmp_path / 'curve.png').touch()
    assert launch.make_run_folder(tmp_path, resume) == tmp_path
    workspace.release()


def test_a_run_that_left_no_log_line_starts_again_in_its_folder(tmp_path):
    launch.make_run_folder(tmp_path / 'out', None)
    (tmp_path / 'out/caffe.log').touch()
    (tmp_path / 'out/data').mkdir()  # so it stays
    workspace.release()
    assert launch.make_run_folder(tmp_path / 'out', None) == tmp_path / 'out'
    workspace.release()


def test_what_cannot_be_encoded_is_written_escaped(tmp_path):
    with open(tmp_path / 'out', 'w', encoding='ascii') as file:
        terminal.Lasting(file, 'out').write('wei\u00df\n')
    assert (tmp_path / 'out').read_text() == 'wei\\xdf\n'


@pytest.fixture
def closed():
    """Make a folder that its user may not enter; root becomes another user meanwhile."""
    folder = Path(tempfile.mkdtemp())
    (folder / 'closed/in').mkdir(parents=True)
    (folder / 'closed/file.prototxt').touch()
    folder.chmod(0o755)
    (folder / 'closed').chmod(0)
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    yield folder / 'closed'
    os.seteuid(user)
    (folder / 'closed').chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    'options',
    [
        ['--sbdd-dir', '{}/in'],
        ['--resume', '{}/x.solverstate'],
        ['--resume', 'latest', '--output', '{}/in'],
        ['--output', '{}/in/out'],
        ['--weights', '{}/x.caffemodel'],
    ],
)
def test_a_folder_one_may_not_enter_is_told_in_one_line(options, closed, data, monkeypatch, capsys):
    options = [each.format(closed) for each in options]
    given = [each for each in data if not each.startswith(options[0])]
    monkeypatch.setattr('sys.argv', ['voc_fcn32s.py', *given, *options])
    with pytest.raises(SystemExit, match='2'):
        launch.run(voc_fcn32s.solve, '', voc, 'none.caffemodel')
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: {closed}/') and error.endswith('Permission denied'), error
    assert error.count(str(closed)) == 1


def test_score_names_a_prototxt_it_may_not_read(closed, data, monkeypatch, capsys):
    weights = data[-1].partition('=')[2]
    for net in (closed / 'file.prototxt', closed / 'x'):
        assert call(monkeypatch, score.main, net, weights) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f'error: {net}: ') and error.endswith('Permission denied'), error
