"""The commands for the papers' other experiments: their arithmetic."""

import numpy as np
import pytest

import caffe_port as caffe
from nets import voc_fcn8s
from solve import base_nets, frequencies
from solve.run import bounds, variants


@pytest.mark.parametrize('row', base_nets.ROWS, ids=lambda row: row[0])
def test_receptive_fields_are_the_papers(row):
    """CVPR 2015, table 1; GoogLeNet's 907 there has 6 x 32 more, of the pooling it leaves out."""
    name, module, (*_, field, stride) = row
    sight = base_nets.see(caffe.Net(module.fcn('deploy', width=4), caffe.TEST))
    assert sight.field == field - 6 * 32 * (name == 'FCN-GoogLeNet')
    assert sight.stride == stride


def test_weights_give_each_class_the_same_part_and_keep_the_size_of_the_loss():
    counts = np.array([600, 0, 300, 100])
    weights = frequencies.weigh_classes(counts)
    parts = weights * counts
    assert parts[1] == 0 and np.ptp(parts[counts > 0]) < 1e-9
    assert parts.sum() == pytest.approx(counts.sum())


def test_labels_of_whole_blocks_survive_and_smaller_ones_do_not():
    labels = np.zeros((16, 24), np.uint8)
    labels[:8, 8:16], labels[15, 23], labels[4:6, 7:9] = 1, 2, 255
    found = bounds.measure_bounds([labels], 3, factors=(8, 1))
    assert found['nearest'][1].mean_iu == 1 and found['bilinear'][1].mean_iu == 1
    coarse = found['nearest'][8].iu
    assert coarse[1] == 1 and coarse[2] == 0


def test_void_takes_the_nearest_label():
    labels = np.array([[1, 255, 255, 255, 2]], np.uint8)
    filled = bounds.fill_void(labels)
    assert filled[0, 1] == 1 and filled[0, 3] == 2 and 255 not in filled


def test_rates_and_data_of_a_variant_are_changed_in_a_copy():
    net = voc_fcn8s.fcn('train', width=2, fc=4)
    before = net.SerializeToString()
    made = {
        layer.name: [param.lr_mult for param in layer.param]
        for layer in variants.set_rates(net, {'*': 0, 'score_fr': 1, 'upscore2': 1}).layer
    }
    assert made['score_fr'] == [1, 2] and made['upscore2'] == [1]
    assert made['conv1_1'] == [0, 0] and made['upscore8'] == [0]
    masked = variants.set_data(net, mask='shape')
    assert "'mask': 'shape'" in masked.layer[0].python_param.param_str
    assert net.SerializeToString() == before
