"""All fifteen nets by plan against layer by layer: sizes, batches, phases, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st

import caffe_port as caffe
from tests.caffe_port.plan.forced import NETS, assert_near, drawn, force, images, redraw
from tests.examples import examples

# Tiny, odd, tall, wide.
SIZES = [(1, 1), (9, 20), (45, 3), (5, 37)]
# Every residue modulo 32, on either side.
RESIDUES = [(r if r > 1 else 32 + r, 1 + (r * 5) % 32) for r in range(32)]


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    force(monkeypatch)


def both(net: caffe.Net, inputs: dict[str, torch.Tensor]):
    """Return what the module makes by plan, and layer by layer."""
    found = []
    for on in (True, False):
        caffe.set_plan(on)
        with torch.no_grad():
            found.append(net.module(**inputs))
    return found


def check(net: caffe.Net, size: tuple[int, int], batch: int = 1) -> None:
    by_plan, by_layer = both(net, images(net, size, batch))
    assert list(by_plan) == list(by_layer)
    for name, expected in by_layer.items():
        assert_near(by_plan[name], expected, what=f'{net.name} {size} {name}')
        assert by_plan[name].is_contiguous()


@pytest.mark.parametrize('name', NETS)
def test_outputs_of_one_image_and_of_three_and_after_the_weights_change(name):
    net, size = drawn(name), SIZES[NETS.index(name) % len(SIZES)]
    check(net, size)
    redraw(net, seed=1)
    check(net, size, batch=3)


@examples(3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NETS), st.integers(1, 140), st.integers(1, 140), st.sampled_from([1, 3]))
def test_outputs_at_any_size(name, height, width, batch):
    check(drawn(name), (height, width), batch)


def test_outputs_at_every_residue():
    net = drawn('voc_fcn8s')
    for size in RESIDUES:
        check(net, size)


@pytest.mark.parametrize('name', NETS)
def test_values_and_gradients(name):
    one = NETS.index(name) % 2
    case = name, caffe.TRAIN if one else caffe.TEST, 1 if one else 3, (17, 9)
    assert any(check_gradients(*case, seed) for seed in range(3))


@examples(2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(NETS),
    st.sampled_from([caffe.TRAIN, caffe.TEST]),
    st.sampled_from([1, 3]),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_values_and_gradients_in_both_phases(name, phase, batch, size):
    assume(check_gradients(name, phase, batch, size))


def check_gradients(
    name: str, phase: int, batch: int, size: tuple[int, int], seed: int = 0
) -> bool:
    """Hold blobs and gradients by plan against those layer by layer.

    Return False, with the gradients not compared, where a ReLU or a maximum is undecided to
    rounding: then there are two gradients, far apart, and both are right.
    """
    found = []
    net = drawn(name, 'val', phase, drop=0.5)
    for top in net.inputs:
        net.blobs[top].reshape(batch, net.blobs[top].channels, *size)
    rng = np.random.RandomState(seed)
    for top in net.inputs:
        shape = net.blobs[top].shape
        label = top in ('label', 'sem', 'geo')
        net.blobs[top].data[...] = rng.randint(0, 3, shape) if label else rng.randn(*shape) * 50
    for on in (True, False):
        caffe.set_plan(on)
        caffe.set_random_seed(4)
        net.clear_param_diffs()
        net.forward()
        net.backward()
        params = {
            f'{layer} {i}': blob.diff.copy()
            for layer, blobs in net.params.items()
            for i, blob in enumerate(blobs)
        }
        diffs = {name: blob.diff.copy() for name, blob in net.blobs.items()}
        found.append(({name: blob.data.copy() for name, blob in net.blobs.items()}, diffs, params))
    (data, diffs, params), (own_data, own_diffs, own_params) = found
    for what, expected in own_data.items():
        assert_near(data[what], expected, 1e-5, f'data {what}')
    if choices(net, data) != choices(net, own_data):
        return False
    for what, expected in {**own_diffs, **own_params}.items():
        assert_near({**diffs, **params}[what], expected, 1e-4, f'diff {what}')
    assert any(expected.any() for expected in own_params.values())
    return True


def choices(net: caffe.Net, data: dict[str, np.ndarray]) -> list[bytes]:
    """Return which values the ReLUs of a net let pass, and which its maxima pick of those."""
    found = []
    for node in net.module.nodes:
        if node.type == 'ReLU':
            found.append((data[node.tops[0]] > 0).tobytes())
        if node.type == 'Pooling':
            bottom = torch.from_numpy(data[node.bottoms[0]])
            top, picked = torch.nn.functional.max_pool2d(
                bottom, *node.op.windows, ceil_mode=True, return_indices=True
            )
            found.append((picked * (top > 0)).numpy().tobytes())
    return found
