"""Scores against an independent count, pixel by pixel."""

import math

import numpy as np
import pytest

from solve.run import metrics


def draw(classes=5, seed=0):
    rng = np.random.RandomState(seed)
    label = rng.randint(0, classes, 400).astype(np.float32)
    label[rng.rand(400) < 0.1] = 255
    return label, rng.randint(0, classes, 400)


def counted(label, best, classes):
    hist = np.zeros((classes, classes), int)
    for a, b in zip(label, best):
        if 0 <= a < classes:
            hist[int(a), b] += 1
    return hist


def test_fast_hist_counts_pairs_and_leaves_out_void():
    label, best = draw()
    assert np.array_equal(metrics.fast_hist(label, best, 5), counted(label, best, 5))


def test_measures_are_those_of_the_definitions():
    label, best = draw()
    valid = label < 255
    label, best = label[valid].astype(int), best[valid]
    found = metrics.Scores(metrics.fast_hist(label, best, 5), loss=2.5)
    recall, iu, frequency = [], [], []
    for c in range(5):
        both, either = ((label == c) & (best == c)).sum(), ((label == c) | (best == c)).sum()
        recall.append(both / (label == c).sum())
        iu.append(both / either)
        frequency.append((label == c).mean())
    assert found.overall_accuracy == pytest.approx((label == best).mean())
    assert found.mean_accuracy == pytest.approx(np.mean(recall))
    assert found.mean_iu == pytest.approx(np.mean(iu))
    assert found.fwavacc == pytest.approx(np.dot(frequency, iu))
    assert found.loss == 2.5


def test_a_class_that_neither_labels_nor_predictions_have_does_not_count():
    hist = np.diag([10, 20, 0])
    found = metrics.Scores(hist)
    assert found.mean_iu == 1 and math.isnan(found.iu[2])
    printed = metrics.format_table(found, ['a', 'b', 'c'])
    assert printed.endswith('absent from the ground truth: c'), 'no mean without it beside the same'


def test_a_class_predicted_but_not_labelled_counts_as_a_miss():
    found = metrics.Scores(np.array([[10, 5], [0, 0]]))
    assert found.iu[1] == 0 and math.isnan(found.accuracy[1])
    assert found.mean_iu == pytest.approx((10 / 15 + 0) / 2)
    assert found.mean_iu_labelled == pytest.approx(10 / 15)
    printed = metrics.format_table(found, ['a', 'b'])
    assert 'b               -    0.00\nabsent from the ground truth: b\n' in printed
    assert printed.endswith('mean IU 33.33 %, without these 66.67 %')
