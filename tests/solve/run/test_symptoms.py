"""Warnings for the known signs of a net that does not learn."""

import math

import numpy as np
import pytest

import caffe_port as caffe
from solve.run import symptoms
from solve.run.metrics import Scores
from tests.vectors import net_of

TEXT = """
layer { name: "data" type: "Input" top: "score" top: "label" input_param {
        shape { dim: 1 dim: 5 dim: 4 dim: 6 } shape { dim: 1 dim: 1 dim: 4 dim: 6 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss"
        loss_param { ignore_label: 255 %s } }
"""
MODES = ['normalize: false', 'normalize: true', 'normalization: FULL', 'normalization: NONE']


def net_with(scores: float, mode: str = MODES[0]) -> caffe.Net:
    """Make a net whose labels are 2, one row in four ignored; class 2 has these scores."""
    net = net_of(TEXT % mode, caffe.TRAIN)
    net.blobs['score'].data[0, 2] = scores
    net.blobs['label'].data[...] = 2
    net.blobs['label'].data[..., 0, :] = 255
    net.forward()
    return net


@pytest.mark.parametrize('mode', MODES)
def test_a_loss_that_stays_at_the_log_of_the_classes_is_warned_of_once(mode):
    watch = symptoms.LossAtChance(net_with(0, mode))
    warnings = [watch.look(iteration) for iteration in range(40, 400, 20)]
    at = 40 + symptoms.PATIENCE
    assert [bool(each) for each in warnings] == [i == at for i in range(40, 400, 20)]
    text = next(filter(None, warnings))
    assert f'ln(5) = {math.log(5):.4f}' in text and 'since iteration 40' in text
    assert 'surgery.interp' in text


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('scores', [0.1, -0.1])
def test_a_loss_away_from_chance_is_not(mode, scores):
    watch = symptoms.LossAtChance(net_with(scores, mode))
    assert not any(watch.look(iteration) for iteration in range(0, 1000, 20))


def test_a_loss_that_comes_back_to_chance_is_counted_anew():
    net = net_with(0)
    watch = symptoms.LossAtChance(net)
    for iteration, scores in ((0, 0), (180, 1), (200, 0), (380, 0)):
        net.blobs['score'].data[0, 2] = scores
        net.forward()
        assert watch.look(iteration) is None
    assert 'since iteration 200' in watch.look(400)


def test_an_image_without_labels_says_nothing():
    net = net_with(0)
    net.blobs['label'].data[...] = 255
    net.forward()
    watch = symptoms.LossAtChance(net)
    assert not any(watch.look(iteration) for iteration in range(0, 1000, 20))


def test_one_class_for_every_pixel_is_warned_of():
    hist = np.zeros((4, 4), int)
    hist[:3, 1] = 50, 30, 20  # class 3 has no pixel
    assert '0.3333, 1 / 3 classes' in symptoms.warn_accuracy_at_chance(Scores(hist))
    hist[0, 0] = 5
    assert symptoms.warn_accuracy_at_chance(Scores(hist)) is None
    only = np.diag([7, 0, 0, 0])
    assert symptoms.warn_accuracy_at_chance(Scores(only)) is None
