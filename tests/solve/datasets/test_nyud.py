"""The NYUDv2 data layer: tops by name, and the modalities that only it has."""

import math

import numpy as np
import pytest
from PIL import Image

from caffe_port.errors import CaffeError
from solve.datasets import nyud
from tests.solve.feeding import IDS, SIZES, Tree, facts, fed, make, noise, step

ALL = ['color', 'depth', 'hha', 'label']


@pytest.fixture
def tree(tmp_path):
    return Tree('nyud', tmp_path)


def test_hha_is_fed_as_stored_minus_mean(tree):
    layer, blobs = tree.make(tops=['hha'])
    for name in IDS:
        step(layer, blobs)
        expected = noise(name + 'hha', *SIZES[name], 3) - np.array(facts('nyud')['mean_hha'])
        found = blobs[0].data[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_depth_is_fed_as_its_logarithm_minus_mean(tree):
    layer, blobs = tree.make(tops=['depth'])
    for name in IDS:
        step(layer, blobs)
        assert blobs[0].shape == (1, 1, *SIZES[name]) and blobs[0].data.dtype == np.float32
        for at, millimetres in np.ndenumerate(tree.depth(name)):
            assert blobs[0].data[0, 0][at] == pytest.approx(math.log(millimetres) - 7.844, abs=2e-6)


@pytest.mark.parametrize(
    'tops', [['label'], ['hha', 'label'], ['label', 'depth', 'color'], ('color', 'hha', 'label')]
)
def test_tops_come_by_name_in_the_order_asked_for(tree, tops):
    whole, chosen = tree.make(), tree.make(tops=tops)
    step(*whole)
    step(*chosen)
    for top, blob in zip(tops, chosen[1]):
        np.testing.assert_array_equal(blob.data, whole[1][ALL.index(top)].data)


def test_only_the_files_asked_for_are_needed(tree):
    for name in IDS:
        tree.path('depth', name).unlink()
        tree.path('color', name).unlink()
    assert fed(*tree.make(tops=['hha', 'label']), 3) == IDS
    with pytest.raises(CaffeError, match=f'depth/img_{IDS[0]}.png: no such file'):
        tree.make(tops=['hha', 'depth', 'label'])


@pytest.mark.parametrize('tops', [[], ['colour'], ['color', 3], 'color', None, [['color']]])
def test_tops_of_other_names_are_refused(tree, tops):
    params = {**tree.params, 'split': 'test', 'tops': tops}
    message = "NYUDSegDataLayer: param_str: 'tops' must be a list of color, depth, hha, label"
    with pytest.raises(CaffeError, match=message):
        make(nyud.NYUDSegDataLayer, 1, **params)


# Depth.


def test_depth_has_all_sixteen_bits(tree):
    depth = tree.depth(IDS[0])
    depth[0, :3] = 1, 256, 65535
    Image.fromarray(depth).save(tree.path('depth', IDS[0]))
    layer, blobs = tree.make(tops=['depth', 'label'])
    layer.forward([], blobs)
    np.testing.assert_allclose(
        blobs[0].data[0, 0, 0, :3] + np.float32(7.844), np.log([1, 256, 65535]), atol=2e-6
    )


def test_depth_without_logarithm_is_refused(tree):
    depth, path = tree.depth(IDS[0]), tree.path('depth', IDS[0])
    depth[4, 7] = 0
    Image.fromarray(depth).save(path)
    with pytest.raises(CaffeError, match=f'{path}: depth 0 at row 4, column 7'):
        tree.make()


@pytest.mark.parametrize('mode', ['L', 'RGB', 'P', 'LA', '1'])
def test_depth_of_other_than_sixteen_bits_is_refused(tree, mode):
    path = tree.path('depth', IDS[0])
    Image.fromarray(noise('x', *SIZES[IDS[0]])).convert(mode).save(path)
    with pytest.raises(CaffeError, match=f'{path}: PNG of mode {mode}, .* 16 bits'):
        tree.make()
