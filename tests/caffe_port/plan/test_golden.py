"""Trajectories that Caffe recorded, with every line of a plan forced."""

import pytest

from tests.caffe_port.plan.forced import force
from tests.caffe_port.solving.test_solver import follow, solver_of
from tests.vectors import load


@pytest.mark.parametrize('name', ['fixed', 'accumulate', 'dropout', 'step'])
def test_a_trajectory_is_caffes(name, monkeypatch):
    force(monkeypatch)
    vector = load(f'solver/{name}.npz')
    follow(solver_of(vector), vector)
