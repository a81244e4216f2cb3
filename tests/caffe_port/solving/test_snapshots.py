"""What solvers write and read again: HDF5 twins, diffs, debug_info, and whose a state is."""

import numpy as np
import pytest

import caffe_port as caffe
from caffe_port.files import caffemodel
from caffe_port.proto.caffe_pb2 import SolverParameter
from tests.caffe_port.solving.test_solver import follow, solver_of
from tests.vectors import load

VECTOR = load('solver/snapshot.npz')


def stepped(count: int, prefix=None, **options) -> caffe.SGDSolver:
    """The golden solver after `count` iterations on its recorded data."""
    solver = solver_of(VECTOR, prefix, **options)
    feed_and_step(solver, count)
    return solver


def feed_and_step(solver: caffe.SGDSolver, count: int) -> None:
    for k in range(solver.iter, solver.iter + count):
        for blob in ('data', 'label'):
            solver.net.blobs[blob].data[...] = VECTOR[blob][k % len(VECTOR[blob])]
        solver.step(1)


def params_of(solver: caffe.SGDSolver) -> dict[str, list[np.ndarray]]:
    return {name: [blob.data.copy() for blob in blobs] for name, blobs in solver.net.params.items()}


def assert_same(one: caffe.SGDSolver, other: caffe.SGDSolver) -> None:
    expected = params_of(other)
    for name, arrays in params_of(one).items():
        for a, b in zip(arrays, expected[name], strict=True):
            assert np.array_equal(a, b), name


@pytest.mark.parametrize('kind', ['SGD', 'Nesterov'])
def test_hdf5_snapshots_resume_to_the_bit(tmp_path, kind):
    pytest.importorskip('h5py', reason='h5py reads HDF5')
    options = dict(type=kind, snapshot_format=SolverParameter.HDF5)
    solver = stepped(4, tmp_path / 'run', **options)
    state = solver.snapshot()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'run_iter_4.caffemodel.h5',
        'run_iter_4.memory.json',
        'run_iter_4.solverstate.h5',
    ]
    resumed = solver_of(VECTOR, **options)
    resumed.restore(state)
    assert resumed.iter == 4
    for each in (solver, resumed):
        feed_and_step(each, 3)
    assert_same(solver, resumed)


@pytest.mark.parametrize('kind', ['SGD', 'Nesterov'])
@pytest.mark.parametrize('format', [SolverParameter.BINARYPROTO, SolverParameter.HDF5])
def test_snapshot_diff_keeps_what_was_last_subtracted(tmp_path, kind, format):
    if format == SolverParameter.HDF5:
        pytest.importorskip('h5py', reason='h5py reads HDF5')
    solver = stepped(3, tmp_path / 'run', type=kind, snapshot_format=format, snapshot_diff=True)
    before = params_of(solver)
    feed_and_step(solver, 1)
    solver.snapshot()
    (model,) = tmp_path.glob('*.caffemodel*')
    stored = {layer.name: layer.blobs for layer in caffemodel.read(model) if layer.blobs}
    assert set(stored) == set(before)
    for name, blobs in stored.items():
        for blob, old in zip(blobs, before[name], strict=True):
            moved = old.astype(np.float64) - blob.array()
            # The difference of two float32 is as exact as the larger of them.
            assert np.abs(blob.diff.array() - moved).max() <= 1e-6 * np.abs(old).max() + 1e-12
            assert blob.diff.array().any() == moved.any()


def test_without_snapshot_diff_no_diffs_are_kept(tmp_path):
    stepped(1, tmp_path / 'run').snapshot()
    (model,) = tmp_path.glob('*.caffemodel')
    assert all(blob.diff is None for layer in caffemodel.read(model) for blob in layer.blobs)


def test_debug_info_speaks_at_display_intervals_only(caplog):
    solver = solver_of(VECTOR, debug_info=True, display=2)
    for expected in (True, False, True):
        caplog.clear()
        with caplog.at_level('INFO', 'caffe_port'):
            feed_and_step(solver, 1)
        said = '\n'.join(record.getMessage() for record in caplog.records)
        assert ('    [Forward] Layer conv1, param blob 0 data: ' in said) == expected
        assert ('    [Backward] All net params (data, diff): L1 norm' in said) == expected


def test_a_state_of_another_type_of_solver_is_refused(tmp_path):
    state = stepped(2, tmp_path / 'run').snapshot()
    other = solver_of(VECTOR, type='Nesterov')
    with pytest.raises(
        caffe.CaffeError,
        match='run_iter_2.solverstate: of a solver of type SGD, this one is Nesterov',
    ):
        other.restore(state)
    assert other.iter == 0
    history = [np.zeros(1, np.float32)] * (2 * len(other.net.module.learnable))
    caffemodel.write_state(tmp_path / 'adam.solverstate', 2, '', history, 0)
    with pytest.raises(caffe.CaffeError, match='AdaDelta and Adam keep two for each'):
        other.restore(tmp_path / 'adam.solverstate')


def test_weights_where_a_state_is_due_are_named(tmp_path):
    stepped(2, tmp_path / 'run').snapshot()
    with pytest.raises(caffe.CaffeError, match=r'run_iter_2\.caffemodel: .*solverstate'):
        solver_of(VECTOR).restore(tmp_path / 'run_iter_2.caffemodel')


def test_the_golden_trajectory_does_not_mind_diffs_and_debug_info(caplog):
    vector = {**VECTOR, 'data': VECTOR['data'][:4]}
    follow(solver_of(VECTOR, snapshot_diff=True, debug_info=True, display=1), vector)


@pytest.mark.parametrize('format', [SolverParameter.BINARYPROTO, SolverParameter.HDF5])
@pytest.mark.parametrize('name, found', [('iter', (-3, 0)), ('current_step', (3, -1))])
def test_a_negative_count_in_a_state_is_refused(tmp_path, name, found, format):
    iteration, step = found
    suffix, write = '', caffemodel.write_state
    if format == SolverParameter.HDF5:
        pytest.importorskip('h5py', reason='h5py reads HDF5')
        suffix, write = '.h5', caffemodel.write_state_hdf5
    solver = solver_of(VECTOR)
    path = tmp_path / f'x.solverstate{suffix}'
    write(path, iteration, '', solver._update.arrays(), step)
    with pytest.raises(caffe.CaffeError, match=f'{name} is -[13], must not be negative'):
        solver.restore(path)
    assert (solver.iter, solver.current_step) == (0, 0)


def test_a_history_cut_short_changes_nothing(tmp_path):
    solver = stepped(2, tmp_path / 'run')
    state = solver.snapshot()
    (tmp_path / 'run_iter_2.memory.json').unlink()
    whole, read = state.read_bytes(), caffemodel.read_state

    def cut(path):
        found = read(path)
        state.write_bytes(whole[: len(whole) // 2])
        return found

    fresh = solver_of(VECTOR)
    before = params_of(fresh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caffemodel, 'read_state', cut)
        with pytest.raises(caffe.CaffeError, match='run_iter_2.solverstate'):
            fresh.restore(state)
    assert fresh.iter == 0 and not np.any(fresh._update.arrays()[0])
    for name, arrays in params_of(fresh).items():
        assert all(map(np.array_equal, arrays, before[name]))


def test_weights_named_by_no_path_that_can_be_are_refused_in_one_line(tmp_path):
    solver = solver_of(VECTOR)
    for name in ('w' * 300, 'a\0b'):
        caffemodel.write_state(tmp_path / 'x.solverstate', 1, name, solver._update.arrays(), 0)
        with pytest.raises(caffe.CaffeError) as raised:
            solver.restore(tmp_path / 'x.solverstate')
        assert len(str(raised.value).splitlines()) == 1


def test_a_moved_run_takes_its_own_weights_and_not_those_in_its_old_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    solver = stepped(2, 'run')
    state = solver.snapshot()
    (tmp_path / 'moved').mkdir()
    for path in tmp_path.glob('run_iter_2.*'):
        path.rename(tmp_path / 'moved' / path.name)
    solver_of(VECTOR).net.save(tmp_path / 'run_iter_2.caffemodel')  # of another run
    resumed = solver_of(VECTOR)
    resumed.restore(tmp_path / 'moved' / state.name)
    assert_same(resumed, solver)
    (tmp_path / 'moved/run_iter_2.caffemodel').rename(tmp_path / 'run_iter_2.caffemodel')
    elsewhere = solver_of(VECTOR)
    elsewhere.restore(tmp_path / 'moved' / state.name)
    assert_same(elsewhere, solver)
