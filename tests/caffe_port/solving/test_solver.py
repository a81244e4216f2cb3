"""Training trajectories against Caffe's, iteration by iteration."""

import shutil

import numpy as np
import pytest
from google.protobuf import text_format

import caffe_port as caffe
from caffe_port import prototxt
from caffe_port.files import caffemodel
from caffe_port.proto.caffe_pb2 import SolverParameter, SolverState
from tests.vectors import GOLDEN, assert_close, load


def solver_of(vector, prefix=None, **options) -> caffe.SGDSolver:
    """The recorded solver with its first parameters, but for `options`; it snapshots on request."""
    param = text_format.Parse(str(vector['solver']), SolverParameter())
    param.train_net_param.CopyFrom(prototxt.parse_net(str(vector['net'])))
    param.snapshot = 0
    for name, value in options.items():
        setattr(param, name, value)
    if prefix is not None:
        param.snapshot_prefix = str(prefix)
    solver = caffe.get_solver(param)
    for key in vector:
        if key.startswith('init:'):
            _, layer, i = key.split(':')
            solver.net.params[layer][int(i)].data[...] = vector[key]
    return solver


def follow(solver, vector) -> None:
    """Step to the vector's end, holding loss and every parameter against Caffe's."""
    for k in range(solver.iter, len(vector['data'])):
        solver.net.blobs['data'].data[...] = vector['data'][k]
        solver.net.blobs['label'].data[...] = vector['label'][k]
        solver.step(1)
        found = float(solver.net.blobs['loss'].data)
        assert found == pytest.approx(float(vector['loss'][k]), rel=1e-4), f'loss {k + 1}'
        for key in vector:
            if key.startswith(f'iter{k + 1}:'):
                _, layer, i = key.split(':')
                assert_close(solver.net.params[layer][int(i)].data, vector[key], 1e-4, key)


@pytest.mark.parametrize('name', ['fixed', 'accumulate', 'dropout', 'snapshot', 'step'])
def test_trajectory_is_caffes(name):
    vector = load(f'solver/{name}.npz')
    follow(solver_of(vector), vector)


@pytest.mark.parametrize('iteration', [4, 8])
def test_restored_from_caffes_own_snapshot_the_trajectory_goes_on(iteration, tmp_path):
    for suffix in ('caffemodel', 'solverstate'):
        shutil.copy(GOLDEN / f'solver/snapshot_iter_{iteration}.{suffix}', tmp_path)
    vector = load('solver/snapshot.npz')
    solver = solver_of(vector)
    solver.restore(tmp_path / f'snapshot_iter_{iteration}.solverstate')
    assert solver.iter == iteration
    follow(solver, vector)


def test_own_snapshot_equals_caffes_and_resumes_to_the_bit(tmp_path):
    vector = load('solver/snapshot.npz')
    solver = solver_of(vector, tmp_path / 'own')
    short = {**vector, 'data': vector['data'][:4]}
    follow(solver, short)
    state = solver.snapshot()
    ours, caffes = SolverState(), SolverState()
    ours.ParseFromString(state.read_bytes())
    caffes.ParseFromString((GOLDEN / 'solver/snapshot_iter_4.solverstate').read_bytes())
    assert ours.iter == caffes.iter and len(ours.history) == len(caffes.history)
    for a, b in zip(ours.history, caffes.history):
        assert list(a.shape.dim) == list(b.shape.dim)
        assert_close(np.array(a.data), np.array(b.data), 1e-4)
    resumed = solver_of(vector)
    resumed.restore(state)
    follow(solver, vector)
    follow(resumed, vector)
    for name, blobs in solver.net.params.items():
        for one, other in zip(blobs, resumed.net.params[name]):
            assert np.array_equal(one.data, other.data)


def test_a_failed_restore_changes_nothing(tmp_path):
    vector = load('solver/snapshot.npz')
    solver = solver_of(vector)
    before = {name: [b.data.copy() for b in blobs] for name, blobs in solver.net.params.items()}
    path = tmp_path / 'wrong.solverstate'
    caffemodel.write_state(path, 3, '', [np.zeros(5, np.float32)], 0)
    with pytest.raises(caffe.CaffeError, match=r'wrong\.solverstate: expected 7 history blobs'):
        solver.restore(path)
    assert solver.iter == 0
    for name, blobs in solver.net.params.items():
        assert all(np.array_equal(b.data, a) for b, a in zip(blobs, before[name]))


@pytest.mark.parametrize('passes', [0, -1])
def test_a_test_loss_over_no_passes_is_refused(passes):
    vector = load('solver/fixed.npz')
    net = prototxt.parse_net(str(vector['net']))
    param = SolverParameter(
        net_param=net, base_lr=1, lr_policy='fixed', test_iter=[3, passes], test_interval=1
    )
    param.test_initialization = False
    caffe.SGDSolver(param)
    param.test_compute_loss = True
    with pytest.raises(
        caffe.CaffeError, match=f'^solver: test_iter {passes} with test_compute_loss: '
    ):
        caffe.SGDSolver(param)


@pytest.mark.parametrize('name', ['n' * 300, 'n' * 5000, 'a/' * 200 + 'n'])
def test_a_net_that_no_file_can_be_named_is_refused_in_one_line(tmp_path, name):
    (tmp_path / 'solver.prototxt').write_text(f'net: "{name}" base_lr: 1 lr_policy: "fixed"')
    with pytest.raises(caffe.CaffeError, match='nnn|n: ') as raised:
        caffe.get_solver(tmp_path / 'solver.prototxt')
    assert len(str(raised.value).splitlines()) == 1


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
    vector = load('solver/fixed.npz')
    solver = solver_of(vector, tmp_path / 'run')
    follow(solver, {**vector, 'data': vector['data'][:2]})
    solver.net.blobs['data'].data[...] = np.inf
    message = (
        r'iteration 2: the loss is nan; the largest last change of a parameter was .* '
        r'in (conv1|fc2|score_fr)'
    )
    with pytest.raises(caffe.CaffeError, match=message):
        solver.step(1)
    assert solver.iter == 2 and not list(tmp_path.iterdir())
