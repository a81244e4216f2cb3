"""Killed again and again, or out of disk space, a run ends as if nothing had happened."""

import os
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port.errors import WriteError
from caffe_port.files import caffemodel
from caffe_port.proto.caffe_pb2 import SolverParameter
from solve import voc_fcn32s
from solve.datasets.layer import SegDataLayer
from solve.run import job, loading, log, retention, symptoms, watch
from solve.run.job import LATEST, Job
from solve.samples import trees
from tests.caffe_port.solving.test_solver import follow, solver_of
from tests.solve.feeding import random_classifier, save_sbd
from tests.starting import Started, start
from tests.vectors import load

RUN = """
import ast, logging, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from solve import voc_fcn32s
from solve.run import job, retention
from solve.run.job import LATEST, Job
Job._draw = lambda *_: None  # takes longer than all else here
logging.getLogger('caffe_port').handlers.clear()
data, folder = map(Path, sys.argv[1:3])
iterations, keep, constants = ast.literal_eval(sys.argv[3])
folder.mkdir(exist_ok=True)
job = Job('faults', folder, [data / 'vgg.caffemodel'], iterations=iterations, step=6, keep=keep,
          net=dict(sbdd_dir=str(data / 'sample/sbdd/dataset'), width=2, fc=8,
                   voc_dir=str(data / 'sample/pascal/VOC2011')),
          constants=dict(snapshot=2, random_seed=5, **constants))
if retention.list_states(job.prefix):
    job.resume = LATEST
voc_fcn32s.solve(job)
"""
# How many snapshots are kept, and solver constants. Dropout is on in each.
CONFIGURATIONS = {
    'sgd': (0, {}),
    'hdf5': (0, {'snapshot_format': SolverParameter.HDF5}),
    'nesterov': (1, {'type': 'Nesterov', 'iter_size': 2}),
    'adam': (0, {'type': 'Adam', 'base_lr': 1e-4, 'momentum': 0.9}),
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('faults')
    trees.draw_dataset('voc', folder / 'sample', train=4, val=2, size=(80, 80))
    random_classifier(folder / 'vgg.caffemodel')
    return folder


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    """Draw no pictures, which takes longer than all else, where a test does not look at them."""
    if 'drawn' not in request.fixturenames:
        monkeypatch.setattr(Job, '_draw', lambda *_: None)


@pytest.fixture
def drawn(monkeypatch):
    """Draw pictures at the end of a run."""
    monkeypatch.setattr(job, 'PANEL_ROWS', 1)


def started(data, folder, *settings) -> Started:
    return start(RUN, data, folder, repr(settings), stdout=subprocess.DEVNULL)


def finished(run):
    error = run.communicate(timeout=300)[1]
    assert run.returncode == 0, error


def ending(folder, iteration) -> dict[str, bytes]:
    """Return the values of weights and history at the end of a run."""
    state = retention.list_states(folder / 'snapshot/train')[iteration]
    history = caffemodel.read_state(state).history
    values = {
        f'{layer.name} {i}': blob.array().tobytes()
        for layer in caffemodel.read(retention.name_weights(state))
        for i, blob in enumerate(layer.blobs)
    }
    return values | {f'history {i}': blob.array().tobytes() for i, blob in enumerate(history)}


def seen(folder) -> set:
    return {(path.name, path.stat().st_mtime_ns) for path in folder.glob('snapshot/t*[!p]')}


@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_killed_at_random_moments_and_resumed_the_end_is_the_same_to_the_bit(
    name, data, tmp_path, request
):
    kills = request.config.getoption('--kills')
    if name == 'hdf5':
        pytest.importorskip('h5py')
    if name != 'sgd' and not kills:
        pytest.skip('one configuration without --kills')
    kills = kills or 3
    iterations = max(12, 4 * kills)
    keep, constants = CONFIGURATIONS[name]
    finished(started(data, tmp_path / 'straight', iterations, keep, constants))
    rng, killed, done = random.Random(7), tmp_path / 'killed', 0
    for _ in range(kills):
        run = started(data, killed, iterations, keep, constants)
        before = seen(killed)
        while run.poll() is None and seen(killed) <= before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        run.send_signal(signal.SIGKILL)
        run.communicate()
        done += run.returncode == -signal.SIGKILL
    finished(started(data, killed, iterations, keep, constants))
    print(f'{name}: killed {done} times in {iterations} iterations')
    assert done > kills / 2
    assert ending(killed, iterations) == ending(tmp_path / 'straight', iterations)
    assert not list(killed.glob('snapshot/.*.tmp')), 'half-written files were swept'


def job_in(folder, data, **options) -> Job:
    return Job(
        'faults',
        folder,
        [data / 'vgg.caffemodel'],
        net=dict(
            sbdd_dir=str(data / 'sample/sbdd/dataset'),
            voc_dir=str(data / 'sample/pascal/VOC2011'),
            width=2,
            fc=8,
        ),
        **{'iterations': 6, 'step': 6, 'constants': dict(snapshot=3, random_seed=5), **options},
    )


@pytest.fixture
def damaged(data, tmp_path):
    """Break two images of a copy of the data, not the first drawn; return the order and both."""
    copy, folder = tmp_path / 'data', tmp_path / 'out'
    shutil.copytree(data, copy)
    folder.mkdir()
    images = copy / 'sample/sbdd/dataset/img'
    ids = (copy / 'sample/sbdd/dataset/train.txt').read_text().split()
    order = random.Random(1337)
    drawn = [ids[int(order.random() * len(ids))] for _ in range(20)]
    bad = [*dict.fromkeys(drawn)][1:3]
    for name in bad:
        (images / f'{name}.jpg').write_bytes(b'no image')
    return copy, folder, drawn, bad


def test_an_image_that_cannot_be_read_ends_the_run_and_is_named(damaged):
    data, folder, _, bad = damaged
    with pytest.raises(caffe.CaffeError, match=f'{bad[0]}.jpg: not a JPEG'):
        voc_fcn32s.solve(job_in(folder, data))


def test_on_request_such_images_are_skipped_and_listed_also_after_a_resume(damaged, capsys, caplog):
    data, folder, drawn, bad = damaged
    seen = []
    plain = SegDataLayer.forward

    def forward(layer, bottom, top):
        seen.extend([layer.current] if 'train' in layer.split else [])
        plain(layer, bottom, top)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegDataLayer, 'forward', forward)
        voc_fcn32s.solve(job_in(folder, data, iterations=3, step=3, skip_bad_images=True))
        capsys.readouterr()
        voc_fcn32s.solve(job_in(folder, data, resume=LATEST, skip_bad_images=True))
    assert seen == [name for name in drawn if name not in bad][:6]
    listed = capsys.readouterr().out.partition('images were skipped:')
    assert listed[0].endswith('2 ') and all(f'{name}.jpg: not a JPEG' in listed[2] for name in bad)


def test_labels_that_are_all_void_are_told_once(damaged, capsys):
    data, folder, drawn, bad = damaged
    images = data / 'sample/sbdd/dataset'
    for name in bad:
        shutil.copy(images / f'img/{drawn[0]}.jpg', images / f'img/{name}.jpg')
        with Image.open(images / f'img/{name}.jpg') as image:
            save_sbd(images / f'cls/{name}.mat', np.full(image.size[::-1], 255, np.uint8))
    voc_fcn32s.solve(job_in(folder, data))
    printed = capsys.readouterr().err
    assert printed.count('all its labels are void') == 1
    assert f'image {bad[0]}: all its labels are void' in printed


def test_where_no_image_can_be_read_skipping_ends_too(damaged):
    data, folder, _, _ = damaged
    for path in (data / 'sample/sbdd/dataset/img').iterdir():
        path.write_bytes(b'')
    with pytest.raises(caffe.CaffeError, match='not a JPEG'):
        voc_fcn32s.solve(job_in(folder, data, skip_bad_images=True))


def test_a_run_that_does_not_learn_gets_warnings_with_causes(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(symptoms, 'PATIENCE', 4)
    voc_fcn32s.solve(
        job_in(tmp_path, data, constants=dict(snapshot=3, random_seed=5, display=2, base_lr=1e-20))
    )
    printed, log = capsys.readouterr().err, (tmp_path / 'caffe.log').read_text()
    for words in (
        'loss has stayed at ln(21) = 3.0445 per pixel since iteration 0',
        'the mean accuracy is ',
    ):
        assert words in printed and words in log


def test_where_the_disk_refuses_training_goes_on_and_the_old_snapshot_stays(
    tmp_path, monkeypatch, caplog
):
    vector = load('solver/snapshot.npz')
    solver = solver_of(vector, tmp_path / 'run')
    solver.param.snapshot = 2
    follow(solver, {**vector, 'data': vector['data'][:2]})
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    follow(solver, {**vector, 'data': vector['data'][:4]})
    assert 'No space left on device; training goes on' in caplog.text
    assert kept == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(WriteError):
        solver.snapshot()
    monkeypatch.undo()
    follow(solver, {**vector, 'data': vector['data'][:6]})
    assert retention.find_latest(tmp_path / 'run').name == 'run_iter_6.solverstate'


def test_keep_holds_also_between_scorings_and_where_the_disk_refuses_states(
    data, tmp_path, monkeypatch
):
    def write_state(path, iteration, *rest):
        if iteration >= 3:
            raise WriteError(f'{path}: not written: No space left on device')
        plain(path, iteration, *rest)

    plain, counts = caffemodel.write_state, []
    monkeypatch.setattr(caffemodel, 'write_state', write_state)
    begin = watch.Watch._begin_iteration
    monkeypatch.setattr(
        watch.Watch,
        '_begin_iteration',
        lambda self: (begin(self), counts.append(sorted(names(tmp_path)))),
    )
    constants = dict(snapshot=1, random_seed=5)
    with pytest.raises(WriteError, match='No space left'):
        voc_fcn32s.solve(job_in(tmp_path, data, constants=constants, keep=1))
    assert [len(found) for found in counts] == [0, 3, 3, 3, 3, 3]
    assert counts[-1] == [
        f'train_iter_2.{kind}' for kind in ('caffemodel', 'memory.json', 'solverstate')
    ]


def names(folder) -> list[str]:
    return [path.name for path in (folder / 'snapshot').glob('train_*')]


def test_a_last_snapshot_that_the_disk_refuses_twice_ends_the_run_with_its_reason(
    data, tmp_path, monkeypatch, capsys
):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(WriteError, match='No space left on device'):
        voc_fcn32s.solve(job_in(tmp_path, data, iterations=2, step=2))
    assert 'Error: ' in capsys.readouterr().err
    assert not retention.list_states(tmp_path / 'snapshot/train')


def test_snapshots_beyond_where_a_run_begins_are_set_aside_not_taken_for_its_own(
    data, tmp_path, capsys
):
    prefix = tmp_path / 'snapshot/train'
    voc_fcn32s.solve(job_in(tmp_path, data))
    assert list(retention.list_states(prefix)) == [3, 6]
    from_3 = prefix.parent / 'train_iter_3.solverstate'
    voc_fcn32s.solve(job_in(tmp_path, data, iterations=5, step=5, keep=1, resume=from_3))
    assert list(retention.list_states(prefix)) == [5]
    assert 'train_iter_6.solverstate.old' in capsys.readouterr().err
    assert (prefix.parent / 'train_iter_6.caffemodel.old').is_file()
    with pytest.raises(caffe.CaffeError, match='train_iter_.*snapshots of another run'):
        voc_fcn32s.solve(job_in(tmp_path, data, iterations=2, step=2))
    assert list(retention.list_states(prefix)) == [5]


def test_a_finished_run_that_is_resumed_draws_what_its_weights_see(
    data, tmp_path, monkeypatch, drawn
):
    voc_fcn32s.solve(job_in(tmp_path, data, iterations=2, step=2))
    (tmp_path / 'panel.png').unlink()
    shown, show = [], job.show_images

    def show_images(net, *rest):
        shown.append(net.params['fc6'][0].data.copy())
        return show(net, *rest)

    monkeypatch.setattr(job, 'show_images', show_images)
    voc_fcn32s.solve(job_in(tmp_path, data, iterations=2, step=2, resume=LATEST))
    (seen,) = shown
    weights = loading.read_params(tmp_path / 'snapshot/train_iter_2.caffemodel').params['fc6'][0]
    assert np.array_equal(seen, weights.data) and seen.any()
    assert (tmp_path / 'panel.png').is_file()


def test_a_torn_line_of_the_log_costs_that_line_only(data, tmp_path, drawn):
    voc_fcn32s.solve(job_in(tmp_path, data, iterations=1, step=1))
    path = tmp_path / 'log.jsonl'
    whole = log.read(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"iteration": 3, "ti')
    voc_fcn32s.solve(job_in(tmp_path, data, iterations=2, step=2, resume=LATEST))
    assert len(log.read(tmp_path)) > len(whole) and (tmp_path / 'curve.png').exists()
    assert log.read(tmp_path)[: len(whole)] == whole
    path.write_text('hello')
    with pytest.raises(caffe.CaffeError, match='not a run.s log'):
        log.read(tmp_path)


def test_without_its_memory_a_run_says_that_it_starts_anew(data, tmp_path, capsys):
    voc_fcn32s.solve(job_in(tmp_path, data, iterations=1, step=1))
    (tmp_path / 'snapshot/train_iter_1.memory.json').unlink()
    voc_fcn32s.solve(job_in(tmp_path, data, iterations=2, step=2, resume=LATEST))
    assert 'data order and random streams start anew' in capsys.readouterr().err


def test_the_newest_whole_snapshot_is_found_and_broken_ones_are_not(tmp_path):
    vector = load('solver/snapshot.npz')
    solver = solver_of(vector, tmp_path / 'run')
    solver.param.snapshot = 1
    follow(solver, {**vector, 'data': vector['data'][:5]})
    (tmp_path / 'run_iter_5.caffemodel').unlink()
    broken = tmp_path / 'run_iter_4.solverstate'
    broken.write_bytes(broken.read_bytes()[:100])
    assert retention.find_latest(tmp_path / 'run').name == 'run_iter_3.solverstate'
    retention.prune(tmp_path / 'run', keep=2, best=1)
    assert list(retention.list_states(tmp_path / 'run')) == [1, 4, 5]
