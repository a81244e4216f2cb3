"""What is derived from weights is derived anew once they have changed, wherever and however."""

import pytest
import torch

from caffe_port.plan import kept
from caffe_port.plan.kept import Kept


@pytest.fixture
def in_parts(monkeypatch):
    """Return a Kept that compares few values at a time, on two threads."""
    monkeypatch.setattr(kept, '_STRIP', 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield Kept()
    torch.set_num_threads(threads)


@pytest.mark.parametrize('shape', [(7, 3), (1, 9), (11,), ()])
def test_a_change_of_any_one_value_is_found(in_parts, shape):
    weight = torch.zeros(shape)
    for i in range(weight.numel()):
        in_parts.watch('ip.weight', weight)
        in_parts.refresh()
        before = in_parts.changes
        assert in_parts.of('ip.weight', 'sum', torch.sum) == i
        in_parts.refresh()
        assert in_parts.changes == before
        weight.view(-1).numpy()[i] = 1
        in_parts.refresh()
        assert in_parts.changes == before + 1
        assert in_parts.of('ip.weight', 'sum', torch.sum) == i + 1


def test_only_what_follows_from_changed_weights_is_derived_anew(in_parts):
    one, other, calls = torch.zeros(6, 2), torch.zeros(5), []
    in_parts.watch('one', one)
    in_parts.watch('other', other)

    def derive(weight):
        calls.append(weight.shape)
        return weight.sum()

    for _ in range(2):
        in_parts.of('one', 'sum', derive)
        in_parts.of('other', 'sum', derive)
    other[4] = 2
    in_parts.refresh()
    assert in_parts.of('one', 'sum', derive) == 0
    assert in_parts.of('other', 'sum', derive) == 2
    assert calls == [one.shape, other.shape, other.shape]


@pytest.mark.parametrize('shape', [(3, 6), (6, 3, 1), (18,), (0,)])
def test_a_weight_of_another_shape_is_a_change(in_parts, shape):
    in_parts.watch('weight', torch.zeros(6, 3))
    in_parts.refresh()
    before = in_parts.changes
    in_parts.watch('weight', torch.zeros(shape))
    in_parts.refresh()
    assert in_parts.changes == before + 1
