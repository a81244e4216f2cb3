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
EACH = 3  # sizes a net
PHASES = caffe.TRAIN, caffe.TEST


def cases(name: str) -> list[tuple[int, int, tuple[int, int]]]:
    """Return a phase, a batch and a size, three times for a net.

    The sizes of all nets together have every residue modulo 32 on either side; each net has
    both phases, one image and three, and a size above 32.
    """
    found = []
    for i in range(EACH):
        number = NETS.index(name) + len(NETS) * i
        residue, other = number % 32, (number * 5 + 3) % 32
        height = residue or 32
        width = 32 + other if i == 1 else other or 32
        found.append((PHASES[number % 2], 3 if i == 2 else 1, (height, width)))
    return found


def test_the_sizes_of_all_nets_have_every_residue():
    sizes = [size for name in NETS for _, _, size in cases(name)]
    for side in range(2):
        assert {size[side] % 32 for size in sizes} == set(range(32))


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
def test_blobs_asked_for_before_a_forward_without_gradients_and_after_it(name):
    net, rng = drawn(name), np.random.RandomState(NETS.index(name))
    fill(net, 1, cases(name)[0][2], rng)
    before, after = rng.choice(list(net.blobs), 2)
    found = []
    for on in (True, False):
        caffe.set_plan(on)
        with torch.no_grad():
            net.forward(blobs=[before])
        found.append({what: net.blobs[what].data.copy() for what in (after, before)})
    for what, expected in found[1].items():
        assert_near(found[0][what], expected, what=what)


@examples(4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NETS), st.integers(1, 140), st.integers(1, 140), st.sampled_from([1, 3]))
def test_outputs_at_any_size(name, height, width, batch):
    check(drawn(name), (height, width), batch)


@pytest.mark.parametrize('name', NETS)
def test_outputs_at_sizes_of_every_residue_and_after_the_weights_change(name):
    net = drawn(name)
    check(net, SIZES[NETS.index(name) % len(SIZES)])
    redraw(net, seed=1)
    for _, batch, size in cases(name):
        check(net, size, batch)


@pytest.mark.parametrize('name', NETS)
def test_values_and_gradients_at_sizes_of_every_residue(name):
    for i, case in enumerate(cases(name)):
        # The first as it is, the second after the weights have changed, the third with looks.
        options = dict(changed=i == 1, looks=i == 2)
        assert any(check_gradients(name, *case, seed, **options) for seed in range(6))


@examples(4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(NETS),
    st.sampled_from(PHASES),
    st.sampled_from([1, 3]),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.integers(0, 2**31),
    st.booleans(),
    st.booleans(),
)
def test_values_and_gradients_at_any_size(name, phase, batch, size, seed, changed, looks):
    assume(check_gradients(name, phase, batch, size, seed, changed, looks))


def fill(net: caffe.Net, batch: int, size: tuple[int, int], rng: np.random.RandomState) -> None:
    for top in net.inputs:
        blob = net.blobs[top]
        blob.reshape(batch, blob.channels, *size)
        label = top in ('label', 'sem', 'geo')
        # Larger scores would make the softmax multiply what two ways of rounding leave of them.
        blob.data[...] = rng.randint(0, 3, blob.shape) if label else rng.randn(*blob.shape) * 5


def check_gradients(
    name: str,
    phase: int,
    batch: int,
    size: tuple[int, int],
    seed: int = 0,
    changed: bool = False,
    looks: bool = False,
) -> bool:
    """Hold blobs and gradients by plan against those layer by layer.

    changed: a step of another size, with other weights, has gone before. looks: two blobs are
    looked at between forward and backward.
    Return False where the gradients are apart and a ReLU or a maximum is undecided to rounding:
    then there are two gradients, and both are right.
    """
    found = []
    # Fewer channels may all be small or dropped, and rounding be large beside the largest.
    net, rng = drawn(name, 'val', phase, drop=0.5, fc=48), np.random.RandomState(seed)
    if changed:
        fill(net, 1, (size[1], size[0] + 5), rng)
        net.forward()
        net.backward()
    redraw(net, seed + 1)
    fill(net, batch, size, rng)
    looked_at = rng.choice(list(net.blobs), 2) if looks else []
    for on in (True, False):
        caffe.set_plan(on)
        caffe.set_random_seed(4)
        net.clear_param_diffs()
        net.forward()
        assert any(blob.is_postponed for blob in net.blobs.values()) == on
        for what in looked_at:
            assert net.blobs[what].data.shape == net.blobs[what].shape
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
    own = {**own_diffs, **own_params}
    assert any(expected.any() for expected in own_params.values())
    try:
        for what, expected in own.items():
            assert_near({**diffs, **params}[what], expected, 1e-4, f'diff {what}')
    except AssertionError:
        if choices(net, data) == choices(net, own_data):
            raise
        return False
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
