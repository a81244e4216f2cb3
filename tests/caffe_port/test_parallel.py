"""Ranks: what they sum, how they end together, and a solver on them against one of iter_size."""

import atexit
import os
import signal
import socket
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port import mode, parallel
from caffe_port.__main__ import main
from tests import starting
from tests.caffe_port.solving.test_solver import solver_of
from tests.starting import Started
from tests.vectors import assert_close, load

ROOT = Path(__file__).resolve().parents[2]


def start(function: str, count: int, *arguments) -> list[Started]:
    """Run `module.function(*arguments)` on `count` ranks, as torchrun would start them."""
    module, name = function.rsplit('.', 1)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    code = f'import sys; from {module} import {name}; {name}(*sys.argv[1:])'
    env = {
        **os.environ,
        'WORLD_SIZE': str(count),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
    }
    return [
        starting.start(code, *arguments, env={**env, 'RANK': str(rank), 'LOCAL_RANK': str(rank)})
        for rank in range(count)
    ]


def ends(processes: list[Started], seconds: float = 60) -> list[tuple[int, str]]:
    """Exit status and standard error of each; none may take longer than `seconds`."""
    try:
        end = time.monotonic() + seconds
        said = [
            process.communicate(timeout=max(end - time.monotonic(), 0.1))[1]
            for process in processes
        ]
        return [(process.returncode, text) for process, text in zip(processes, said)]
    finally:
        for process in processes:
            process.kill()


# Sums.


def drawn(rank: int) -> list[torch.Tensor]:
    """Tensors of a rank: some that share a bucket, one larger than any, one not contiguous."""
    rng = np.random.RandomState(rank)
    shapes = (3,), (2, 2), (), (40,), (5, 1), (4, 6)
    *most, last = [torch.from_numpy(np.array(rng.randn(*shape), np.float32)) for shape in shapes]
    return [*most, last.t()]


def collect_sums(folder: str) -> None:
    parallel._BUCKET = 64
    rank = caffe.solver_rank()
    means, copies = drawn(rank), drawn(rank)
    parallel.average(means)
    parallel.broadcast(copies)
    alone = parallel.call_on_first(lambda: (os.getpid(), caffe.solver_count()))
    torch.save(
        {
            'means': means,
            'copies': copies,
            'count': caffe.solver_count(),
            'gathered': parallel.gather({'rank': rank}),
            'first': alone,
            'own': os.getpid(),
            'agreed': [parallel.take_largest(rank), parallel.take_largest(-rank)],
        },
        Path(folder) / f'{rank}.pt',
    )


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """A folder with what two ranks have left, and how they ended."""
    folder = tmp_path_factory.mktemp('ranks')
    return folder, ends(start('tests.caffe_port.test_parallel.act_as_rank', 2, folder))


def act_as_rank(folder: str) -> None:
    parallel.join()
    collect_sums(folder)
    for kind in ('SGD', 'Adam'):
        step_as_rank(folder, kind)
    train_as_rank(folder)
    step_on_nan()


@pytest.fixture
def sums(ranks) -> list[dict]:
    return [torch.load(ranks[0] / f'{rank}.pt') for rank in range(2)]


def test_averages_are_means_over_ranks_and_the_same_on_all(sums):
    for a, b, *found in zip(drawn(0), drawn(1), *(found['means'] for found in sums)):
        assert torch.equal(*found)
        assert_close(found[0].numpy(), (a.double() + b.double()).numpy() / 2, 1e-6)


def test_rank_0_is_copied_to_all(sums):
    for found in sums:
        assert all(map(torch.equal, found['copies'], drawn(0)))


def test_all_know_of_all_and_agree_on_the_largest(sums):
    for found in sums:
        assert found['gathered'] == [{'rank': 0}, {'rank': 1}]
        assert found['agreed'] == [1, 0] and found['count'] == 2


def test_rank_0_is_alone_in_what_it_does_first(sums):
    assert all(found['first'] == (sums[0]['own'], 1) for found in sums)


def test_a_single_process_is_all_ranks():
    tensors = drawn(0)
    parallel.average(tensors)
    parallel.broadcast(tensors)
    assert all(map(torch.equal, tensors, drawn(0)))
    assert (caffe.solver_rank(), caffe.solver_count()) == (0, 1)
    assert parallel.gather('x') == ['x'] and parallel.take_largest(2) == 2
    assert parallel.call_on_first(lambda: 7) == 7


# The solver.


def solver(passes: int, kind: str = 'SGD'):
    """A small FCN of Caffe's, its momentum, decay and multipliers, and gradients to clip."""
    vector = load(f'solver/{"adam" if kind == "Adam" else "fixed"}.npz')
    found = solver_of(vector)
    found.param.iter_size = passes
    # The norm that is clipped is of the mean over ranks, but of the sum over passes.
    found.param.clip_gradients = 0.02 * passes
    return found, vector


def feed(found, vector, k: int) -> None:
    found.net.blobs['data'].data[...] = vector['data'][k]
    found.net.blobs['label'].data[...] = vector['label'][k]


def state_of(found) -> dict[str, np.ndarray]:
    params = {
        f'{name} {i}': blob.data.copy()
        for name, blobs in found.net.params.items()
        for i, blob in enumerate(blobs)
    }
    return {
        **params,
        'losses': np.array([float(loss) for loss in found.losses]),
        'smoothed': np.array(found.smoothed_loss),
        **{f'history {i}': h for i, h in enumerate(found._update.arrays())},
    }


def step_as_rank(folder: str, kind: str) -> None:
    rank = caffe.solver_rank()
    found, vector = solver(1, kind)
    if rank:  # only what rank 0 begins with counts
        for blobs in found.net.params.values():
            blobs[0].data[...] = 7
    else:  # a frozen parameter's diff, read on one rank, is nothing to average
        found.add_callback(lambda: None, lambda: found.net.params['upscore'][0].diff)
    for k in range(4):
        feed(found, vector, (2 * k + rank) % len(vector['data']))
        found.step(1)
    np.savez(Path(folder) / f'{kind} {rank}.npz', **state_of(found))


@pytest.mark.parametrize('kind', ['SGD', 'Adam'])
def test_two_ranks_of_one_image_are_one_process_of_two_passes(ranks, caplog, kind):
    one, vector = solver(2, kind)
    forward, passes = one.net.forward_range, iter(range(8))

    def fed(*range_of_layers):
        feed(one, vector, next(passes) % len(vector['data']))
        forward(*range_of_layers)

    one.net.forward_range = fed
    one.step(4)
    assert 'scaling down gradients' in caplog.text
    for rank in range(2):
        found = np.load(ranks[0] / f'{kind} {rank}.npz')
        for name, expected in state_of(one).items():
            assert_close(found[name], expected, 1e-6, f'rank {rank}: {name}')


def write_solver(folder: Path, batch: int) -> str:
    """A solver of a net that reads rows of an HDF5 file."""
    with h5py.File(folder / 'rows.h5', 'w') as file:
        file['data'] = np.random.RandomState(0).randn(8, 3)
        file['label'] = np.arange(8) % 2
    (folder / 'rows.txt').write_text(f'{folder}/rows.h5')
    (folder / 'net').write_text(
        'layer { name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { '
        f'source: "{folder}/rows.txt" batch_size: {batch} }} }}'
        'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { '
        'num_output: 2 weight_filler { type: "xavier" } } }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'
    )
    (folder / 'solver').write_text(
        f'net: "{folder}/net" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 max_iter: 3 '
        f'random_seed: 7 snapshot_prefix: "{folder}/s"'
    )
    return str(folder / 'solver')


def train_as_rank(folder: str) -> None:
    """Run what `python -m caffe_port train --gpu=0,1` starts, on the CPU for want of GPUs."""
    own = Path(folder) / f'train-{caffe.solver_rank()}'
    own.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCHELASTIC_RUN_ID', 'test')
        for module, name in ((mode, 'set_device'), (mode, 'set_mode_gpu'), (parallel, 'leave')):
            patch.setattr(module, name, lambda *_: None)
        status = main(['train', f'--solver={write_solver(own, 2)}', '--gpu=0,1'])
    assert status == 0


def test_train_on_two_gpus_is_one_process_with_the_batches_of_both(ranks, tmp_path):
    alone = caffe.get_solver(write_solver(tmp_path, 4))
    alone.step(3)
    trained = caffe.Net(f'{tmp_path}/net', caffe.TEST)
    trained.copy_from(ranks[0] / 'train-0' / 's_iter_3.caffemodel')
    for one, two in zip(trained.params['fc'], alone.net.params['fc']):
        assert_close(one.data, two.data, 1e-5)
    assert (ranks[0] / 'train-0' / 's_iter_3.solverstate').exists()
    assert not (ranks[0] / 'train-1' / 's_iter_3.solverstate').exists()


# How they end.


def step_on_nan() -> None:
    found, vector = solver(1)
    for k in range(3):
        feed(found, vector, k)
        if k == 2 and caffe.solver_rank() == 1:
            found.net.blobs['data'].data[...] = np.nan
        found.step(1)


def test_a_nan_on_one_rank_ends_all_and_is_named(ranks):
    for status, said in ranks[1]:
        assert status == 1 and 'iteration 2: the loss is nan (rank 1); the largest' in said


def threads_of_gloo() -> int:
    names = [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]
    return sum('gloo' in name for name in names)


def leave_in_order(how: str) -> None:
    def report() -> None:
        print('threads at the end:', threads_of_gloo(), file=sys.stderr)

    atexit.register(report)  # what is registered first is called last
    parallel.join()
    found, vector = solver(1)  # PyTorch imports more of itself with the first net
    feed(found, vector, 0)
    found.step(1)
    print('threads before:', threads_of_gloo() > 0, file=sys.stderr)
    if how == 'leaving':
        parallel.leave()
        report()
        assert (caffe.solver_rank(), caffe.solver_count()) == (0, 1)


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='threads are counted in /proc')
@pytest.mark.parametrize('how', ['leaving', 'just ending'])
def test_no_thread_of_the_group_outlives_it(how):
    for status, said in ends(start('tests.caffe_port.test_parallel.leave_in_order', 2, how)):
        assert status == 0 and 'threads before: True' in said
        assert said.count('threads at the end: 0') == said.count('threads at the end') > 0


def raise_or_wait(how: str) -> None:
    parallel.join()
    if caffe.solver_rank() == 1:
        if how == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        raise LookupError('a cat on the keyboard')
    parallel.average([torch.zeros(3)])
    time.sleep(100)


@pytest.mark.parametrize(
    'how, reason', [('raising', 'rank 1: LookupError: a cat on the keyboard'), ('killed', '')]
)
def test_when_a_rank_dies_the_others_end_and_say_why(how, reason):
    began = time.monotonic()
    (status, said), (_, own) = ends(start('tests.caffe_port.test_parallel.raise_or_wait', 2, how))
    assert status == 1 and time.monotonic() - began < 30
    assert 'CaffeError: rank 0: another rank ended: ' in said and reason in said
    assert how == 'killed' or 'LookupError: a cat on the keyboard' in own


def test_what_cannot_be_joined_is_said(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '1')
    monkeypatch.delenv('MASTER_ADDR', raising=False)
    with pytest.raises(caffe.CaffeError, match='rank 1 of 2: the others were not joined: .*MASTER'):
        parallel.join()
