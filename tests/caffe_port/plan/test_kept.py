"""What is derived from weights is derived anew once they have changed, wherever and however."""

import pytest
import torch

from caffe_port.plan import kept
from caffe_port.plan.kept import Kept


@pytest.fixture
def counted(monkeypatch):
    """Return a Kept that compares few values at a time, and a function that derives a sum."""
    monkeypatch.setattr(kept, '_STRIP', 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Kept()
    torch.set_num_threads(threads)


@pytest.mark.parametrize('shape', [(7, 3), (1, 9), (11,), ()])
def test_a_change_of_any_one_value_is_found(counted, shape):
    weight = torch.zeros(shape)
    for i in range(weight.numel()):
        counted.watch('ip.weight', weight)
        counted.refresh()
        before = counted.changes
        assert counted.of('ip.weight', 'sum', torch.sum) == i
        counted.refresh()
        assert counted.changes == before
        weight.view(-1).numpy()[i] = 1
        counted.refresh()
        assert counted.changes == before + 1
        assert counted.of('ip.weight', 'sum', torch.sum) == i + 1


def test_only_what_follows_from_changed_weights_is_derived_anew(counted):
    one, other, calls = torch.zeros(6, 2), torch.zeros(5), []
    counted.watch('one', one)
    counted.watch('other', other)

    def derive(weight):
        calls.append(weight.shape)
        return weight.sum()

    for _ in range(2):
        counted.of('one', 'sum', derive)
        counted.of('other', 'sum', derive)
    other[4] = 2
    counted.refresh()
    assert counted.of('one', 'sum', derive) == 0
    assert counted.of('other', 'sum', derive) == 2
    assert calls == [one.shape, other.shape, other.shape]


@pytest.mark.parametrize('shape', [(3, 6), (6, 3, 1), (18,), (0,)])
def test_a_weight_of_another_shape_is_a_change(counted, shape):
    counted.watch('weight', torch.zeros(6, 3))
    counted.refresh()
    before = counted.changes
    counted.watch('weight', torch.zeros(shape))
    counted.refresh()
    assert counted.changes == before + 1
