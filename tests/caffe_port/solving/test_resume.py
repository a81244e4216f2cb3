"""Resume files: what they keep for whom, and that a broken one changes nothing."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port import parallel, rng
from caffe_port.files import caffemodel
from caffe_port.files.checksum import digest_file
from caffe_port.solving import resume
from tests.caffe_port.solving.test_snapshots import (
    VECTOR,
    assert_same,
    feed_and_step,
    params_of,
    stepped,
)
from tests.caffe_port.solving.test_solver import solver_of


class Place:
    """A layer that has nothing but a state."""

    def __init__(self, place: int):
        self.place = place

    def state(self) -> dict:
        return {'place': self.place}

    def set_state(self, state: dict) -> None:
        self.place = state['place']


# Many ranks.


def kept_of_two_ranks(tmp_path, monkeypatch) -> dict:
    """The resume file of two ranks at places 3 and 5, as rank 0 wrote and read it."""
    solver = solver_of(VECTOR)
    other = rng.get_state(), {'0:data': {'place': 5}}
    with monkeypatch.context() as patch:
        patch.setattr(resume, '_layers', lambda _: [('0:data', Place(3))])
        patch.setattr(parallel, 'gather', lambda own: [own, other])
        content = resume.collect(solver)
    resume.write(tmp_path / 'x.memory.json', content)
    return resume.read(tmp_path / 'x.memory.json', 0)


@pytest.mark.parametrize('rank, count, place', [(0, 2, 3), (1, 2, 5), (0, 1, 3), (2, 3, 3)])
def test_each_of_as_many_ranks_goes_on_at_its_own_place(tmp_path, monkeypatch, rank, count, place):
    content, layer = kept_of_two_ranks(tmp_path, monkeypatch), Place(0)
    monkeypatch.setattr(resume, '_layers', lambda _: [('0:data', layer)])
    monkeypatch.setattr(parallel, 'solver_rank', lambda: rank)
    monkeypatch.setattr(parallel, 'solver_count', lambda: count)
    resume.apply(content, solver_of(VECTOR), 'x')
    assert layer.place == place


def test_a_file_with_rank_0s_place_alone_serves_every_rank(tmp_path, monkeypatch):
    kept_of_two_ranks(tmp_path, monkeypatch)
    path, layer = tmp_path / 'x.memory.json', Place(0)
    stored = json.loads(path.read_text())
    del stored['layers_of_other_ranks']
    path.write_text(json.dumps(stored))
    monkeypatch.setattr(resume, '_layers', lambda _: [('0:data', layer)])
    monkeypatch.setattr(parallel, 'solver_rank', lambda: 1)
    monkeypatch.setattr(parallel, 'solver_count', lambda: 2)
    resume.apply(resume.read(path, 0), solver_of(VECTOR), path)
    assert layer.place == 3


# Broken files. RESET is what a solver of other draws and losses must still be after each.


def snapshot(tmp_path) -> tuple:
    """A state and its resume file, and what the file holds."""
    state = stepped(2, tmp_path / 'run', average_loss=3).snapshot()
    path = resume.name_resume_file(state)
    return state, path, json.loads(path.read_text())


STREAMS = {
    'position': [-1, 625, 2**31, 2**70, 1.5, '3', None, True],
    'key': [[], [1] * 623, [2**32] * 624, [-1] * 624, [1.5] * 624, ['a'] * 624, 3, None, [[1]]],
    'has_gauss': [2, -1, 'x', 2**40],
    'gauss': ['x', None, math.nan, [1.0]],
    'device_seed': [2**64, -(2**63) - 1, 1.5, 'x', None],
    'devices': [[], 3, {'nowhere:7': [1]}, {'cuda:0': 'x'}, {'cuda:0': [256]}, {'cuda:0': [[1]]}],
}
TOP = {
    'iter': [None, '2', 2.0, True, [2]],
    'type': [3, ['SGD']],
    'streams': [None, [], 3],
    'streams_of_other_ranks': [{}, 3, [3], [{}]],
    'layers': [None, [], 3],
    'layers_of_other_ranks': [3, [3], {}],
    'losses': [None, 3, ['x'], [None], [math.nan], [math.inf], [[1.0]], [True]],
    'notes': [None, [], 'x', 3],
    'sha256': [3, [], {'caffemodel': 3}],
}
BROKEN = [
    *[((key,), value) for key, values in TOP.items() for value in values],
    *[(('streams', key), value) for key, values in STREAMS.items() for value in values],
]


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('keys, value', BROKEN, ids=lambda it: str(it)[:30])
def test_a_broken_file_is_refused_by_name_and_changes_nothing(tmp_path, keys, value):
    state, path, content = snapshot(tmp_path)
    *outer, last = keys
    inner = content
    for key in outer:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(content))
    other = solver_of(VECTOR, average_loss=3)
    feed_and_step(other, 1)
    before, streams, losses = params_of(other), rng.get_state(), list(other.losses)
    with pytest.raises(caffe.CaffeError, match='run_iter_2.memory.json: ') as raised:
        other.restore(state)
    assert last in str(raised.value) and len(str(raised.value)) < 600
    assert other.iter == 1 and list(other.losses) == losses and other.notes == {}
    assert all(np.array_equal(rng.get_state()[name], streams[name]) for name in ('key', 'position'))
    for name, arrays in params_of(other).items():
        assert all(map(np.array_equal, arrays, before[name]))


@pytest.mark.parametrize('key', [*TOP, *(f'streams.{key}' for key in STREAMS)])
def test_a_missing_entry_is_refused_unless_earlier_versions_had_none(tmp_path, key):
    state, path, content = snapshot(tmp_path)
    outer, _, inner = key.rpartition('.')
    (content[outer] if outer else content).pop(inner)
    path.write_text(json.dumps(content))
    other = solver_of(VECTOR)
    if key in ('type', 'streams_of_other_ranks', 'layers_of_other_ranks', 'sha256'):
        other.restore(state)
        assert other.iter == 2
    else:
        with pytest.raises(caffe.CaffeError, match=f'memory.json: not a resume file: .*{inner}'):
            other.restore(state)


@pytest.mark.parametrize(
    'text', [b'', b'{', b'[1]', b'3', b'\xff\xfe\x00', b'[' * 100_000, b'{"iter": 1e999}']
)
def test_a_file_that_is_no_object_is_refused(tmp_path, text):
    state, path, _ = snapshot(tmp_path)
    path.write_bytes(text)
    with pytest.raises(caffe.CaffeError, match='run_iter_2.memory.json: not a resume file: '):
        solver_of(VECTOR).restore(state)


class Choosy(Place):
    """A layer that takes places below 5 only, and breaks off half-way."""

    def set_state(self, state: dict) -> None:
        super().set_state(state)
        if self.place >= 5:
            raise KeyError('place')


def test_a_layer_that_refuses_its_state_is_named_and_all_go_back(tmp_path, monkeypatch):
    state, path, content = snapshot(tmp_path)
    content['layers'] = {'0:one': {'place': 1}, '0:two': {'place': 7}, '0:three': {'place': 2}}
    path.write_text(json.dumps(content))
    places = {'0:one': Choosy(3), '0:two': Choosy(3), '0:three': Choosy(3)}
    monkeypatch.setattr(resume, '_layers', lambda _: places.items())
    other, streams = solver_of(VECTOR), rng.get_state()
    with pytest.raises(caffe.CaffeError, match="memory.json: layer two: 'place'"):
        other.restore(state)
    assert [layer.place for layer in places.values()] == [3, 3, 3]
    assert np.array_equal(rng.get_state()['key'], streams['key']) and other.iter == 0


def test_notes_that_a_script_refuses_change_nothing(tmp_path):
    solver = stepped(2, tmp_path / 'run')
    solver.notes = {'best': 'x'}
    state = solver.snapshot()
    other, seen = solver_of(VECTOR), []

    def refuse(notes: dict) -> None:
        seen.append(notes)
        raise caffe.CaffeError('best is no number')

    other.check_notes = refuse
    with pytest.raises(caffe.CaffeError, match='run_iter_2.memory.json: best is no number'):
        other.restore(state)
    assert seen == [{'best': 'x'}] and other.notes == {} and other.iter == 0


# Files that do not belong together.


def test_a_snapshots_files_are_known_by_their_digests(tmp_path):
    state, path, content = snapshot(tmp_path)
    model = tmp_path / 'run_iter_2.caffemodel'
    assert content['sha256'] == {
        'caffemodel': digest_file(model),
        'solverstate': digest_file(state),
    }
    assert digest_file(model) != digest_file(state)


@pytest.mark.parametrize('kind', ['caffemodel', 'solverstate'])
def test_a_file_of_another_run_is_refused_by_name(tmp_path, kind):
    state, path, _ = snapshot(tmp_path)
    other = solver_of(VECTOR, tmp_path / 'other', base_lr=1e-6)
    feed_and_step(other, 2)
    shutil.copy(other.snapshot().with_suffix(f'.{kind}'), own := tmp_path / f'run_iter_2.{kind}')
    fresh = solver_of(VECTOR)
    before = params_of(fresh)
    with pytest.raises(caffe.CaffeError, match=f'{own.name}: not the .{kind} of this snapshot: '):
        fresh.restore(state)
    assert fresh.iter == 0
    for name, arrays in params_of(fresh).items():
        assert all(map(np.array_equal, arrays, before[name]))


def test_written_anew_by_a_script_a_file_keeps_its_digests(tmp_path):
    solver = stepped(2, tmp_path / 'run')
    state = solver.snapshot()
    digests = json.loads(resume.name_resume_file(state).read_text())['sha256']
    solver.notes = {'scored': 2}
    resume.write(resume.name_resume_file(state), resume.collect(solver))
    content = json.loads(resume.name_resume_file(state).read_text())
    assert content['sha256'] == digests and len(digests) == 2
    assert content['notes'] == {'scored': 2}
    resumed = solver_of(VECTOR)
    resumed.restore(state)
    assert resumed.notes == {'scored': 2}
    assert_same(resumed, solver)


def test_the_state_is_complete_only_with_its_resume_file(tmp_path, monkeypatch):
    solver = stepped(2, tmp_path / 'run')

    def refuse(*_):
        raise caffe.CaffeError('the disk is full')

    monkeypatch.setattr(resume, 'write', refuse)
    with pytest.raises(caffe.CaffeError, match='the disk is full'):
        solver.snapshot()
    assert [path.name for path in tmp_path.iterdir()] == ['run_iter_2.caffemodel']


def test_a_refused_state_is_named_by_its_own_name(tmp_path):
    solver = stepped(2, tmp_path / 'run')
    (tmp_path / 'run_iter_2.solverstate').mkdir()
    with pytest.raises(caffe.CaffeError, match=r'/run_iter_2\.solverstate: not written: '):
        solver.snapshot()
    assert not list(tmp_path.glob('.*'))


def test_a_missing_model_is_named(tmp_path):
    state, _, _ = snapshot(tmp_path)
    (tmp_path / 'run_iter_2.caffemodel').unlink()
    with pytest.raises(caffe.CaffeError, match='run_iter_2.caffemodel: '):
        solver_of(VECTOR).restore(state)


# Streams.


def test_streams_go_on_from_a_state_that_json_has_held():
    caffe.set_random_seed(5)
    rng.stream().randn(3)  # an odd number, so that one draw waits
    state = json.loads(json.dumps(rng.get_state(), default=np.ndarray.tolist))
    drawn = rng.draw_words(1000), rng.stream().randn(5)
    rng.set_state(state)
    again = rng.draw_words(1000), rng.stream().randn(5)
    assert all(map(np.array_equal, drawn, again)) and state['has_gauss'] == 1


def test_the_largest_position_draws_new_words():
    caffe.set_random_seed(5)
    expected = rng.draw_words(700)
    caffe.set_random_seed(5)
    rng.draw_words(624)
    state = rng.get_state()
    assert state['position'] == 624
    rng.set_state(state)
    assert np.array_equal(rng.draw_words(76), expected[624:])


def test_losses_are_those_of_the_window(tmp_path):
    solver = stepped(4, tmp_path / 'run', average_loss=3)
    state = solver.snapshot()
    resumed = solver_of(VECTOR, average_loss=2)
    resumed.restore(state)
    assert [float(loss) for loss in resumed.losses] == [float(loss) for loss in solver.losses][-2:]
    assert all(isinstance(loss, torch.Tensor) for loss in resumed.losses)


def test_a_solver_state_of_caffe_has_no_resume_file(tmp_path, caplog):
    solver = solver_of(VECTOR)
    caffemodel.write_state(tmp_path / 'x.solverstate', 3, '', solver._update.arrays(), 0)
    with caplog.at_level('INFO', 'caffe_port'):
        solver.restore(tmp_path / 'x.solverstate')
    assert solver.iter == 3
    assert 'has no x.memory.json: data order and random streams start anew' in caplog.text
