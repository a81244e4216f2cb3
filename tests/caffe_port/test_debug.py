"""debug_info: what is logged, in Caffe's words, and that the numbers are those of the blobs."""

import re

import numpy as np
import pytest

import caffe_port as caffe
from tests.vectors import net_of

TEXT = """
layer { name: "data" type: "Input" top: "data" top: "label" input_param {
        shape { dim: 2 dim: 3 } shape { dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { name: "w" }
        param { lr_mult: 0 } inner_product_param { num_output: 4
        weight_filler { type: "gaussian" std: 1 } bias_filler { value: -2 } } }
layer { name: "relu" type: "ReLU" bottom: "ip" top: "ip" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def logged(caplog, run) -> list[str]:
    caplog.clear()
    with caplog.at_level('INFO', 'caffe_port'):
        run()
    return [record.getMessage() for record in caplog.records]


def numbers(lines: list[str]) -> list[float]:
    return [float(line.rsplit(' ', 1)[1]) for line in lines]


def test_every_layer_logs_its_mean_magnitudes_and_the_whole_net_its_norms(caplog):
    caffe.set_random_seed(3)
    net = net_of(TEXT, caffe.TRAIN)
    net.debug_info = True
    net.blobs['data'].data[...] = np.arange(6).reshape(2, 3)
    weight, bias = (blob.data for blob in net.params['ip'])
    product = np.arange(6).reshape(2, 3) @ weight.T + bias

    lines = logged(caplog, net.forward)
    expected = {
        'Layer data, top blob data': 2.5,
        'Layer data, top blob label': 0,
        'Layer ip, top blob ip': np.abs(product).mean(),
        'Layer ip, param blob w': np.abs(weight).mean(),
        'Layer ip, param blob 1': 2,
        'Layer relu, top blob ip': np.maximum(product, 0).mean(),
        'Layer loss, top blob loss': net.blobs['loss'].data,
    }
    assert [line.rsplit(' data: ')[0] for line in lines] == [f'    [Forward] {n}' for n in expected]
    assert numbers(lines) == pytest.approx(list(map(float, expected.values())), rel=1e-5)

    lines = logged(caplog, net.backward)
    diff, data = net.params['ip'][0].diff, np.append(weight, bias)
    assert [line.split(':')[0] for line in lines] == [
        '    [Backward] Layer loss, bottom blob ip diff',
        '    [Backward] Layer relu, bottom blob ip diff',
        '    [Backward] Layer ip, param blob 0 diff',
        '    [Backward] All net params (data, diff)',
    ]
    assert numbers(lines[2:3]) == pytest.approx([np.abs(diff).mean()], rel=1e-5)
    assert re.sub(r'[\d.]+(?=[,)])', '#', lines[3]).endswith('L1 norm = (#, #); L2 norm = (#, #)')
    found = [float(n) for n in re.findall(r'[\d.]+(?=[,)])', lines[3])]
    assert found == pytest.approx(
        [np.linalg.norm(side.ravel(), order) for order in (1, 2) for side in (data, diff)], rel=1e-5
    )


def test_a_part_of_the_net_logs_that_part_and_without_debug_info_nothing_is(caplog):
    net = net_of(TEXT, caffe.TRAIN)
    assert logged(caplog, lambda: (net.forward(), net.backward())) == []
    net.debug_info = True
    assert len(logged(caplog, lambda: net.forward(start='relu', end='relu'))) == 1
    assert len(logged(caplog, lambda: net.backward(end='relu'))) == 2
