"""All fifteen nets by plan against layer by layer: sizes, batches, phases, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
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
@pytest.mark.parametrize(('phase', 'batch'), [(caffe.TRAIN, 1), (caffe.TEST, 3)])
def test_values_and_gradients_in_both_phases(name, phase, batch):
    found = []
    net = drawn(name, 'val', phase, drop=0.5)
    for top in net.inputs:
        net.blobs[top].reshape(batch, net.blobs[top].channels, 17, 9)
    rng = np.random.RandomState(0)
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
        values = {f'data {name}': blob.data.copy() for name, blob in net.blobs.items()}
        values.update((f'diff {name}', blob.diff.copy()) for name, blob in net.blobs.items())
        for layer, blobs in net.params.items():
            values.update((f'{layer} {i}', blob.diff.copy()) for i, blob in enumerate(blobs))
        found.append(values)
    for what, expected in found[1].items():
        assert_near(found[0][what], expected, 1e-5 if what.startswith('data') else 1e-4, what)
    assert any(expected.any() for expected in found[1].values())
