"""Caffe's six types of solvers: its own values where recorded, else its formulas in float64."""

import copy
import pickle
import shutil

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port.building import Learnable
from caffe_port.proto.caffe_pb2 import SolverParameter, SolverState
from caffe_port.solving import update as update_module
from caffe_port.solving.solver_types import SOLVERS
from caffe_port.solving.update import Update
from tests.caffe_port.solving.test_snapshots import assert_same, feed_and_step
from tests.caffe_port.solving.test_solver import follow, solver_of
from tests.vectors import GOLDEN, assert_close, load

ADAM = load('solver/adam.npz')
# Rates at which a few steps of each type move the parameters by a per cent or so.
SETTINGS = {
    'SGD': dict(momentum=0.9, base_lr=1e-4),
    'Nesterov': dict(momentum=0.9, base_lr=1e-4),
    'AdaGrad': dict(momentum=0, base_lr=0.01, delta=1e-6),
    'RMSProp': dict(momentum=0, base_lr=0.01, delta=1e-6, rms_decay=0.9),
    'AdaDelta': dict(momentum=0.9, base_lr=1, delta=1e-6),
    'Adam': dict(momentum=0.9, base_lr=0.01, delta=1e-6, momentum2=0.99),
}
TYPES = list(SETTINGS)


# Caffe's own values.


@pytest.mark.parametrize('name', ['adam', 'rmsprop'])
def test_trajectory_is_caffes(name):
    vector = load(f'solver/{name}.npz')
    solver = solver_of(vector)
    assert solver.type == {'adam': 'Adam', 'rmsprop': 'RMSProp'}[name]
    follow(solver, vector)


@pytest.mark.parametrize('iteration', [4, 8])
def test_restored_from_caffes_adam_the_trajectory_goes_on(iteration, tmp_path):
    for suffix in ('caffemodel', 'solverstate'):
        shutil.copy(GOLDEN / f'solver/adam_iter_{iteration}.{suffix}', tmp_path)
    solver = solver_of(ADAM)
    solver.restore(tmp_path / f'adam_iter_{iteration}.solverstate')
    assert solver.iter == iteration
    follow(solver, ADAM)


def test_own_state_of_adam_is_caffes_blob_by_blob(tmp_path):
    solver = solver_of(ADAM, tmp_path / 'own')
    follow(solver, {**ADAM, 'data': ADAM['data'][:4]})
    ours, caffes = SolverState(), SolverState()
    ours.ParseFromString(solver.snapshot().read_bytes())
    caffes.ParseFromString((GOLDEN / 'solver/adam_iter_4.solverstate').read_bytes())
    assert len(caffes.history) == len(ours.history) == 2 * len(solver.net.module.learnable)
    for i, (own, other) in enumerate(zip(ours.history, caffes.history)):
        assert list(own.shape.dim) == list(other.shape.dim)
        assert_close(np.array(own.data), np.array(other.data), 1e-4, f'history {i}')
    # The kernel of upscore has lr_mult 0, but weight decay: in Caffe it has a history too.
    assert np.any(ours.history[6].data) and np.any(ours.history[13].data)
    assert (ours.iter, ours.current_step) == (caffes.iter, caffes.current_step)


def test_caffes_state_of_adam_is_written_again_to_the_byte(tmp_path):
    for suffix in ('caffemodel', 'solverstate'):
        shutil.copy(GOLDEN / f'solver/adam_iter_8.{suffix}', tmp_path)
    solver = solver_of(ADAM, tmp_path / 'adam')
    solver.restore(tmp_path / 'adam_iter_8.solverstate')
    solver.param.snapshot_prefix = str(tmp_path / 'again')
    again, caffes = SolverState(), SolverState()
    again.ParseFromString(solver.snapshot().read_bytes())
    caffes.ParseFromString((GOLDEN / 'solver/adam_iter_8.solverstate').read_bytes())
    again.learned_net = caffes.learned_net
    assert again.SerializeToString() == caffes.SerializeToString()


# Formulas, in float64.


def reference_update(kind, p, rate, t, g, history):
    """Caffe's ComputeUpdateValue of a parameter: its update; `history` is moved on in place."""
    if kind in ('SGD', 'Nesterov'):
        before = history[0].copy()
        history[0] = p.momentum * history[0] + rate * g
        if kind == 'SGD':
            return history[0]
        return (1 + p.momentum) * history[0] - p.momentum * before
    if kind == 'AdaGrad':
        history[0] += g**2
        return rate * g / (np.sqrt(history[0]) + p.delta)
    if kind == 'RMSProp':
        history[0] = p.rms_decay * history[0] + (1 - p.rms_decay) * g**2
        return rate * g / (np.sqrt(history[0]) + p.delta)
    if kind == 'AdaDelta':
        history[0] = p.momentum * history[0] + (1 - p.momentum) * g**2
        u = g * np.sqrt((history[1] + p.delta) / (history[0] + p.delta))
        history[1] = p.momentum * history[1] + (1 - p.momentum) * u**2
        return rate * u
    history[0] = p.momentum * history[0] + (1 - p.momentum) * g
    history[1] = p.momentum2 * history[1] + (1 - p.momentum2) * g**2
    correction = np.sqrt(1 - p.momentum2**t) / (1 - p.momentum**t)
    return rate * correction * history[0] / (np.sqrt(history[1]) + p.delta)


@pytest.mark.parametrize('passes, clip', [(1, -1), (3, 2.0)])
@pytest.mark.parametrize('decays', ['L1', 'L2'])
@pytest.mark.parametrize('kind', TYPES)
def test_update_history_and_diff_are_those_of_the_formula(kind, decays, passes, clip):
    p = SolverParameter(
        **{**SETTINGS[kind], 'weight_decay': 0.1},
        regularization_type=decays,
        iter_size=passes,
        clip_gradients=clip,
    )
    multipliers = [(1.0, 1.0), (2.0, 0.0), (0.5, 3.0), (0.0, 1.0)]
    random = np.random.RandomState(7)
    shapes = [(3, 4), (5,), (2, 2, 3), (4,)]
    weights = [torch.nn.Parameter(torch.from_numpy(random.randn(*s).astype('f'))) for s in shapes]
    weights[3].requires_grad_(False)  # as a net does where lr_mult is 0
    update = Update(kind, p, [Learnable(w, *m) for w, m in zip(weights, multipliers)])
    expected = [w.detach().numpy().astype(np.float64) for w in weights]
    histories = [[np.zeros(s) for _ in range(2)] for s in shapes]
    for k, rate in enumerate([0.1, 0.02, 0.0, 0.1]):
        grads = [random.randn(*s).astype('f') for s in shapes[:3]] + [np.zeros(shapes[3], 'f')]
        for w, g in zip(weights[:3], grads):
            w.grad = torch.from_numpy(g.copy())
        weights[3].grad = None
        update.apply(rate, k)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads))
        assert clip < 0 or norm > clip
        for w, h, g, found, (lr, decay) in zip(expected, histories, grads, weights, multipliers):
            scaled = g.astype(np.float64) * (clip / norm if clip > 0 else 1) / passes
            scaled += 0.1 * decay * (np.sign(w) if decays == 'L1' else w)
            moved = reference_update(kind, p, rate * lr, k + 1, scaled, h)
            w -= moved
            assert np.allclose(found.detach().numpy(), w, rtol=1e-5, atol=1e-6)
            if found.grad is not None:
                scale = np.abs(moved).max()
                assert np.abs(found.grad.numpy() - moved).max() <= 1e-4 * scale + 1e-12
    kept = update.arrays()
    count = 2 if kind in ('AdaDelta', 'Adam') else 1
    assert len(kept) == count * len(shapes)
    for i, found in enumerate(kept):
        wanted = histories[i % len(shapes)][i // len(shapes)]
        assert_close(found, wanted, 1e-4, f'history {i}')


@pytest.mark.parametrize('kind', TYPES)
def test_worked_on_in_pieces_nothing_changes(kind, monkeypatch):
    ends = []
    for size in (5, 2**16):
        monkeypatch.setattr(update_module, '_PIECE_OF_CPU', size)
        random = np.random.RandomState(1)
        weights = [torch.from_numpy(random.randn(*s).astype('f')) for s in ((7, 3), (2,), (4, 6))]
        weights[2] = weights[2].t()  # not contiguous
        params = [torch.nn.Parameter(w) for w in weights]
        update = Update(
            kind, SolverParameter(**SETTINGS[kind]), [Learnable(w, 1, 1) for w in params]
        )
        for k in range(3):
            for w in params:
                w.grad = torch.from_numpy(random.randn(*w.shape).astype('f'))
            update.apply(0.1, k)
        ends.append([w.detach().numpy() for w in params] + update.arrays())
    for one, other in zip(*ends):
        # A vector's fused operations may round otherwise than those of single elements.
        assert_close(one, other, 1e-6)
    assert not np.array_equal(ends[0][0], np.random.RandomState(1).randn(7, 3).astype('f'))


# In a solver.


def stepped(kind: str, count: int, prefix=None, **options) -> caffe.SGDSolver:
    solver = solver_of(ADAM, prefix, type=kind, **{**SETTINGS[kind], **options})
    feed_and_step(solver, count)
    return solver


@pytest.mark.parametrize('kind', TYPES)
def test_after_a_step_the_diff_holds_what_was_subtracted(kind):
    solver = stepped(kind, 2)
    before = {n: [b.data.copy() for b in blobs] for n, blobs in solver.net.params.items()}
    feed_and_step(solver, 1)
    for name, blobs in solver.net.params.items():
        for blob, old in zip(blobs, before[name]):
            assert np.array_equal(blob.data, old - blob.diff), name
    assert all(solver.net.params[name][0].diff.any() for name in ('conv1', 'fc2', 'score_fr'))


@pytest.mark.parametrize('kind', TYPES)
@pytest.mark.parametrize('format', ['BINARYPROTO', 'HDF5'])
def test_every_type_resumes_to_the_bit(kind, format, tmp_path):
    if format == 'HDF5':
        pytest.importorskip('h5py', reason='h5py reads HDF5')
    options = dict(
        snapshot_format=SolverParameter.SnapshotFormat.Value(format),
        gamma=0.5,
        iter_size=2,
        clip_gradients=50,
        regularization_type='L1',
    )
    solver, resumed = (stepped(kind, 0, tmp_path / 'run', **options) for _ in range(2))
    for each in (solver, resumed):
        each.param.MergeFrom(SolverParameter(lr_policy='multistep', stepvalue=[2, 5]))
    feed_and_step(solver, 3)
    resumed.restore(solver.snapshot())
    assert (resumed.iter, resumed.current_step) == (3, 1)
    for each in (solver, resumed):
        feed_and_step(each, 3)
    assert resumed.current_step == 2
    assert_same(solver, resumed)
    for one, other in zip(solver._update.arrays(), resumed._update.arrays(), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize('kind', ['SGD', 'Adam'])
def test_a_copy_goes_on_by_itself_as_the_original_does(kind, copied):
    solver, called = stepped(kind, 2, average_loss=3), []
    solver.add_callback(lambda: None, lambda: called.append(solver.iter))
    solver.requested_action = lambda: None
    twin = copied(solver)
    stays = copied(twin)
    assert type(twin) is type(solver) and twin.iter == 2
    assert twin.smoothed_loss == solver.smoothed_loss
    feed_and_step(twin, 2)
    assert called == [], 'callbacks belong to the original'
    assert solver.iter == stays.iter == 2
    assert_same(solver, stays)
    feed_and_step(solver, 2)
    assert called == [2, 3]
    assert_same(solver, twin)


# Which type it is.


@pytest.mark.parametrize('kind', TYPES)
def test_get_solver_makes_the_type_that_is_named(kind, tmp_path):
    (tmp_path / 'net.prototxt').write_text(str(ADAM['net']))
    numbers = '\n'.join(f'{name}: {value}' for name, value in SETTINGS[kind].items())
    path = tmp_path / 'solver.prototxt'
    path.write_text(f'type: "{kind}" net: "{tmp_path}/net.prototxt" lr_policy: "fixed"\n{numbers}')
    solver = caffe.get_solver(str(path))
    assert type(solver) is getattr(caffe, f'{kind}Solver') is SOLVERS[kind]
    assert isinstance(solver, caffe.SGDSolver)
    # The older name of the field.
    path.write_text(path.read_text().replace(f'type: "{kind}"', f'solver_type: {kind.upper()}'))
    assert type(caffe.get_solver(str(path))) is SOLVERS[kind]


def test_a_class_solves_by_its_own_type_and_warns_of_another(caplog):
    param = stepped('Nesterov', 0).param
    solver = caffe.SGDSolver(param)
    assert solver.type == 'SGD'
    assert 'type is "Nesterov", but SGDSolver was called: it solves by SGD' in caplog.text
    caplog.clear()
    caffe.NesterovSolver(param)
    assert not caplog.text
    for each in (solver, twin := stepped('SGD', 0)):
        for name, blobs in twin.net.params.items():
            for blob, other in zip(each.net.params[name], blobs):
                blob.data[...] = other.data
        feed_and_step(each, 2)
    assert_same(solver, twin)


def test_a_type_that_caffe_lacks_is_refused_by_name():
    with pytest.raises(caffe.CaffeError, match='solver: no solver type "Adamax"; there are SGD, N'):
        solver_of(ADAM, type='Adamax')


@pytest.mark.parametrize(
    'kind, fields, message',
    [
        ('AdaGrad', dict(momentum=0.9), 'AdaGrad and RMSProp take no momentum, found momentum 0.9'),
        ('RMSProp', dict(momentum=0.5), 'AdaGrad and RMSProp take no momentum, found momentum 0.5'),
        ('RMSProp', dict(rms_decay=1), 'rms_decay must be at least 0 and below 1, found 1'),
        ('RMSProp', dict(rms_decay=-0.5), 'rms_decay must be at least 0 and below 1, found -0.5'),
        ('Adam', dict(momentum=1), 'needs momentum of at least 0 and below 1, found 1'),
        ('Adam', dict(momentum2=1.5), 'needs momentum2 of at least 0 and below 1, found 1.5'),
    ],
)
def test_settings_that_a_type_cannot_take_are_refused(kind, fields, message):
    with pytest.raises(caffe.CaffeError, match=f'^solver: .*{message}'):
        stepped(kind, 0, **fields)


@pytest.mark.parametrize('written, read', [('SGD', 'Adam'), ('Adam', 'RMSProp')])
def test_a_history_of_another_size_is_refused(written, read, tmp_path):
    state = stepped(written, 1, tmp_path / 'run').snapshot()
    (tmp_path / 'run_iter_1.memory.json').unlink()
    count = {'SGD': 7, 'RMSProp': 7, 'Adam': 14}
    message = f'expected {count[read]} history blobs for net "", found {count[written]}; AdaDelta'
    with pytest.raises(caffe.CaffeError, match=message):
        stepped(read, 0).restore(state)


def test_a_rate_that_is_too_large_is_named_with_the_largest_value():
    solver = stepped('Adam', 1)
    solver.net.params['fc2'][0].data[...] = 3e38
    with pytest.raises(
        caffe.CaffeError, match='loss is nan; the largest value of a parameter was 3e.38, in fc2;'
    ):
        feed_and_step(solver, 1)
