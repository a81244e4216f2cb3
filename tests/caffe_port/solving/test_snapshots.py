"""What solvers write and take up: HDF5 twins, diffs, debug_info, and whom a state belongs to."""

import json

import numpy as np
import pytest

import caffe_port as caffe
from caffe_port import parallel, rng
from caffe_port.files import caffemodel
from caffe_port.proto.caffe_pb2 import SolverParameter
from caffe_port.solving import resume
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


class Place:
    """A layer with no more than a state."""

    def __init__(self, place: int):
        self.place = place

    def state(self) -> dict:
        return {'place': self.place}

    def set_state(self, state: dict) -> None:
        self.place = state['place']


def remembered_of_two_ranks(tmp_path, monkeypatch) -> dict:
    """The memory of two ranks at places 3 and 5, as rank 0 wrote it and a file gave it back."""
    solver = solver_of(VECTOR)
    other = rng.get_state(), {'0:data': {'place': 5}}
    with monkeypatch.context() as patch:
        patch.setattr(resume, '_layers', lambda _: [('0:data', Place(3))])
        patch.setattr(parallel, 'gather', lambda own: [own, other])
        content = resume.collect(solver)
    resume.save(tmp_path / 'x.memory.json', content)
    return resume.load(tmp_path / 'x.memory.json', 0)


@pytest.mark.parametrize('rank, count, place', [(0, 2, 3), (1, 2, 5), (0, 1, 3), (2, 3, 3)])
def test_each_of_as_many_ranks_goes_on_at_its_own_place(tmp_path, monkeypatch, rank, count, place):
    content, layer = remembered_of_two_ranks(tmp_path, monkeypatch), Place(0)
    monkeypatch.setattr(resume, '_layers', lambda _: [('0:data', layer)])
    monkeypatch.setattr(parallel, 'solver_rank', lambda: rank)
    monkeypatch.setattr(parallel, 'solver_count', lambda: count)
    resume.apply(content, solver_of(VECTOR), 'x')
    assert layer.place == place


def test_a_memory_of_rank_0s_place_alone_is_every_ranks(tmp_path, monkeypatch):
    remembered_of_two_ranks(tmp_path, monkeypatch)
    path, layer = tmp_path / 'x.memory.json', Place(0)
    stored = json.loads(path.read_text())
    del stored['layers_of_other_ranks']
    path.write_text(json.dumps(stored))
    monkeypatch.setattr(resume, '_layers', lambda _: [('0:data', layer)])
    monkeypatch.setattr(parallel, 'solver_rank', lambda: 1)
    monkeypatch.setattr(parallel, 'solver_count', lambda: 2)
    resume.apply(resume.load(path, 0), solver_of(VECTOR), path)
    assert layer.place == 3


@pytest.mark.parametrize('broken', [dict(layers=3), dict(layers_of_other_ranks=[3])])
def test_a_memory_whose_layers_are_none_is_refused(tmp_path, monkeypatch, broken):
    remembered_of_two_ranks(tmp_path, monkeypatch)
    path = tmp_path / 'x.memory.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **broken}))
    with pytest.raises(caffe.CaffeError, match='not a resume file'):
        resume.load(path, 0)
