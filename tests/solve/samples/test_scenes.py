"""Drawn scenes: what covers what. Windows onto them: their class is in the middle."""

import numpy as np
import pytest

from solve.datasets import voc
from solve.samples.drawings import BACKGROUNDS
from solve.samples.scenes import compose_scene
from solve.samples.windows import WindowSampler


def test_regions_cover_a_place_from_top_to_bottom():
    made_of = {
        'room': ['wall', 'floor'],
        'meadow': ['sky', 'grass'],
        'street': ['sky', 'building', 'sidewalk', 'road'],
    }
    assert set(made_of) == set(BACKGROUNDS)
    for place, names in made_of.items():
        for seed in range(3):
            scene = compose_scene(120, 100, [], np.random.RandomState(seed), [place])
            numbers = {name: number for number, name in enumerate([*names], 1)}
            regions = scene.labels({**numbers, 'line': numbers.get('road', 0)})
            assert set(np.unique(regions)) == set(numbers.values())
            assert (np.diff(regions.astype(int), axis=0) >= 0).all()


def test_front_objects_hide_those_behind():
    scene = compose_scene(100, 100, ['bus', 'sheep'], np.random.RandomState(0))
    (_, bus), (_, sheep) = scene.objects
    assert (bus & sheep).any()
    np.testing.assert_array_equal(scene.labels({'bus': 1, 'sheep': 2}) == 2, sheep)
    np.testing.assert_array_equal(scene.labels({'bus': 1, 'sheep': 2}) == 1, bus & ~sheep)


# Windows.


@pytest.fixture(scope='module')
def batch():
    return WindowSampler(10, size=193, seed=3).batch(24)


def test_windows_come_in_turn_and_the_same_from_a_seed(batch):
    images, labels = batch
    assert images.shape == (24, 3, 193, 193) and images.dtype == np.float32
    assert labels.dtype == np.int64
    assert np.bincount(labels, minlength=21)[[0, 5, 6, 16, 17, 20]].tolist() == [4] * 6
    windows = WindowSampler(10, size=193, seed=3)
    again = [windows.batch(12) for _ in range(2)]
    assert (np.concatenate([part for part, _ in again]) == images).all()
    assert (np.concatenate([part for _, part in again]) == labels).all()
    assert not (WindowSampler(10, size=193, seed=4).batch(24)[0] == images).all()


def test_windows_are_bgr_minus_mean_and_0_beyond_the_scene(batch):
    images, _ = batch
    beyond = (images == 0).all(1, keepdims=True)
    restored = images + np.array(voc.MEAN, np.float32)[:, np.newaxis, np.newaxis]
    inside = np.where(beyond, 0, restored)
    assert abs(inside - inside.round()).max() < 1e-4
    assert inside.min() > -0.5 and inside.max() < 255.5
    assert not beyond[:, :, 96, 96].any()
    # Every scene is shorter than a window one way at least.
    assert (beyond.all(3).any((1, 2)) | beyond.all(2).any((1, 2))).all()


def test_windows_show_their_class_in_the_middle(batch):
    images, labels = batch
    # Buses are red to yellow, screens blue.
    centre = images[:, :, 86:107, 86:107].mean((2, 3)) + np.array(voc.MEAN)
    blue, red = centre[:, 0], centre[:, 2]
    assert np.median((red - blue)[labels == 6]) > 40 > 0 > np.median((red - blue)[labels == 20])
