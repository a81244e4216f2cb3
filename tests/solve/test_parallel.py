"""An experiment on two ranks: data order, end, scores and resume."""

import json
import os
import random
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import caffe_port as caffe
import surgery
from caffe_port import parallel
from caffe_port.files import caffemodel
from caffe_port.solving import resume
from nets import voc_fcn32s as net_file
from solve import voc_fcn32s
from solve.datasets.layer import Order, SegDataLayer
from solve.run import counting, figures, retention
from solve.run.job import Job
from solve.samples import trees
from tests import starting
from tests.caffe_port.test_parallel import ROOT, ends, start
from tests.solve.feeding import random_classifier
from tests.solve.ranks import job_in, places
from tests.vectors import assert_close

TRAIN, VAL = 4, 3


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Draw images to disk, and make a narrow classifier of random weights."""
    folder = tmp_path_factory.mktemp('data')
    trees.draw_dataset('voc', folder / 'sample', train=TRAIN, val=VAL, size=(80, 80))
    random_classifier(folder / 'vgg.caffemodel')
    return folder


def images(data: Path) -> list[str]:
    return (data / 'sample/sbdd/dataset/train.txt').read_text().split()


def official_order(data: Path, count: int) -> list[str]:
    rng = random.Random(1337)
    return [images(data)[int(rng.random() * TRAIN)] for _ in range(count)]


@contextmanager
def watched_feed():
    """Collect the ids of the images that nets in training are fed."""
    fed, forward = [], SegDataLayer.forward

    def watched(layer, bottom, top):
        if layer.phase == caffe.TRAIN:
            fed.append(layer.current)
        forward(layer, bottom, top)

    SegDataLayer.forward = watched
    try:
        yield fed
    finally:
        SegDataLayer.forward = forward


# Two ranks are started once and do all of this.


def act_as_rank(data: str, folder: str) -> None:
    data, folder = Path(data), Path(folder)
    figures.draw_panel = lambda *_: None  # takes longer than all else here
    written, write = [], caffemodel.write_state
    caffemodel.write_state = lambda path, *rest: (written.append(path.name), write(path, *rest))
    parallel.join()
    with watched_feed() as fed:
        voc_fcn32s.solve(job_in(folder / 'plain', data, drop=0))
    voc_fcn32s.solve(job_in(folder / 'straight', data))
    voc_fcn32s.solve(job_in(folder / 'resumed', data, resume=state_of(folder / 'straight', 2)))
    report = {
        'fed': fed,
        'stopped': stopped(job_in(folder / 'stopped', data)),
        'scored': scored(folder, data),
        'written': written,
    }
    (folder / f'{caffe.solver_rank()}.json').write_text(json.dumps(report))
    parallel.leave()


def state_of(folder: Path, iteration: int) -> Path:
    return folder / f'snapshot/train_iter_{iteration}.solverstate'


def stopped(job: Job) -> str:
    """Stop a run on rank 1 alone; return the message of its stop."""
    solver = job.make_solver(voc_fcn32s.SOLVER, net_file.fcn, 'train', 'seg11valid')
    job.load_weights(solver.net)
    surgery.interp(solver.net, ['upscore'])
    if parallel.solver_rank() == 1:
        solver.add_callback(lambda: None, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        with job.watch(solver, 1, 4) as rounds:
            solver.step(rounds[0])
    except KeyboardInterrupt as stop:
        return str(stop)


def scored(folder: Path, data: Path) -> dict:
    """Score the end of the straight run; return counts and the data layer's states on the way."""
    net = caffe.Net(
        net_file.fcn('seg11valid', **places(data), width=2, fc=8),
        str(retention.name_weights(state_of(folder / 'straight', 4))),
        caffe.TEST,
    )
    layer = net.module.nodes[0].op.layer
    seen = folder / f'seen {caffe.solver_count()}'
    hist, loss = counting.compute_hist(net, seen, layer.ids[:2])
    between = layer.state()
    rest, _ = counting.compute_hist(net, seen, layer.ids[2:])
    return {
        'hist': hist.tolist(),
        'loss': loss,
        'between': between,
        'rest': rest.tolist(),
        'after': layer.state(),
    }


@pytest.fixture(scope='module')
def ranks(data, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Run act_as_rank on two ranks; return its folder and their reports."""
    folder = tmp_path_factory.mktemp('ranks')
    started = start('tests.solve.test_parallel.act_as_rank', 2, data, folder)
    for status, printed in ends(started, 200):
        assert status == 0, printed
    return folder, [json.loads((folder / f'{rank}.json').read_text()) for rank in range(2)]


def test_ranks_take_turns_in_the_official_order(data, ranks):
    for rank, report in enumerate(ranks[1]):
        assert report['fed'] == official_order(data, 8)[rank::2]


def arrays(model: Path) -> dict[str, np.ndarray]:
    return {
        f'{layer.name} {i}': blob.array()
        for layer in caffemodel.read(model)
        for i, blob in enumerate(layer.blobs)
    }


def test_two_ranks_are_one_process_of_two_passes(data, ranks, tmp_path):
    with watched_feed() as fed:
        voc_fcn32s.solve(job_in(tmp_path / 'one', data, drop=0, passes=2))
    assert fed == official_order(data, 8)
    for iteration in (2, 4):
        two, one = (
            state_of(folder, iteration) for folder in (ranks[0] / 'plain', tmp_path / 'one')
        )
        expected = arrays(retention.name_weights(one))
        for name, found in arrays(retention.name_weights(two)).items():
            assert_close(found, expected[name], 1e-6, name)
        pairs = zip(caffemodel.read_state(two).history, caffemodel.read_state(one).history)
        for found, expected in pairs:
            assert_close(found.array(), expected.array(), 1e-6)
    logs = [
        [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
        for folder in (ranks[0] / 'plain', tmp_path / 'one')
    ]
    assert len(logs[0]) == len(logs[1]) == 5, 'rank 0 alone writes the log'
    for line in (*logs[0], *logs[1]):
        for measured in ('time', 'images_per_second', 'memory_bytes'):
            line.pop(measured, None)
    assert all(two == pytest.approx(one, rel=1e-6) for two, one in zip(*logs))


def test_rank_0_alone_writes_snapshots(ranks):
    assert ranks[1][0]['written'][:2] == ['train_iter_2.solverstate', 'train_iter_4.solverstate']
    assert ranks[1][1]['written'] == []


def test_ranks_draw_each_from_a_stream_of_their_own(ranks):
    state = state_of(ranks[0] / 'straight', 2)
    remembered = resume.read(resume.name_resume_file(state), 2)
    (other,) = remembered['streams_of_other_ranks']
    assert not np.array_equal(remembered['streams']['key'], other['key'])


def last(folder: Path) -> bytes:
    return retention.name_weights(state_of(folder, 4)).read_bytes()


def test_resumed_with_as_many_ranks_the_end_is_the_same_to_the_bit(ranks):
    assert last(ranks[0] / 'straight') == last(ranks[0] / 'resumed')
    assert last(ranks[0] / 'straight') != last(ranks[0] / 'plain'), 'dropout had a say'


def test_resumed_by_one_process_the_data_order_goes_on(data, ranks, tmp_path):
    with watched_feed() as fed:
        voc_fcn32s.solve(job_in(tmp_path / 'one', data, resume=state_of(ranks[0] / 'straight', 2)))
    assert fed == official_order(data, 6)[4:]
    printed = (tmp_path / 'one/caffe.log').read_text()
    assert 'Snapshot of 2 processes, now there are 1: the data order goes on, random' in printed


def test_stopped_on_one_rank_all_stop_after_the_same_iteration(ranks):
    assert [report['stopped'] for report in ranks[1]] == ['stopped at iteration 1'] * 2
    assert list(retention.list_states(ranks[0] / 'stopped/snapshot/train')) == [1]


def test_scores_of_two_ranks_are_those_of_one_process_digit_for_digit(data, ranks):
    expected = scored(ranks[0], data)
    assert np.sum(expected['hist']) > 0 and expected['loss'] > 0
    for report in ranks[1]:
        assert report['scored'] == expected
    seen = [
        {path.name: path.read_bytes() for path in (ranks[0] / f'seen {count}').iterdir()}
        for count in (1, 2)
    ]
    assert len(seen[0]) == VAL and seen[0] == seen[1]


def test_the_order_is_shared_out_without_a_gap():
    for drawn in (True, False):
        whole, parts = Order(50, drawn, 7), [Order(50, drawn, 7) for _ in range(3)]
        for rank, part in enumerate(parts):
            part.share(rank, 3)
        for _ in range(6):
            for part in parts:
                assert part.index == whole.index
                assert part.state() == parts[0].state()
                whole.advance()
            for part in parts:
                part.advance()
        other = Order(50, drawn, 8)
        other.set_state(json.loads(json.dumps(parts[2].state())))
        assert other.index == whole.index


# Ranks that end.


def test_an_image_that_cannot_be_read_ends_all_ranks_with_its_name(data, tmp_path):
    shutil.copytree(data, tmp_path / 'data')
    order = official_order(data, 8)
    broken = next(name for k, name in enumerate(order) if k % 2 and name not in order[: k + 1 : 2])
    (tmp_path / f'data/sample/sbdd/dataset/img/{broken}.jpg').write_bytes(b'')
    began = time.monotonic()
    (status, printed), (own_status, own) = ends(
        start('tests.solve.ranks.run_command', 2, tmp_path / 'data', tmp_path / 'out')
    )
    assert time.monotonic() - began < 60
    assert status == own_status == 2
    assert own.splitlines()[-1].startswith('error: ') and f'{broken}.jpg: not a JPEG' in own
    assert 'error: rank 0: another rank ended: rank 1: ' in printed
    assert f'{broken}.jpg: not a JPEG' in printed.splitlines()[-1]


def test_killed_and_restarted_by_torchrun_the_end_is_the_same_to_the_bit(data, ranks, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys\nfrom tests.solve.ranks import run_command\nrun_command(*sys.argv[1:])\n'
    )
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/log.jsonl').write_text('')  # of an earlier run
    torchrun = starting.start(
        'from torch.distributed.run import main; main()',
        '--standalone',
        '--nproc_per_node=2',
        '--max-restarts=1',
        script,
        data,
        tmp_path / 'out',
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)},
    )
    try:
        out, error = torchrun.communicate(timeout=150)
    finally:
        torchrun.send_signal(signal.SIGTERM)  # which ends the ranks too
    assert torchrun.returncode == 0, error
    assert f'Resuming from {state_of(tmp_path / "out-2", 2)}' in out
    assert last(tmp_path / 'out-2') == last(ranks[0] / 'straight')
    assert not (tmp_path / 'out-3').exists() and len(list((tmp_path / 'out').iterdir())) == 1
