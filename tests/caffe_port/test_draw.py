"""Drawings of nets: what the graph holds, and that it becomes a picture."""

import shutil

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port.draw import BLOB, COLORS, NEURON, draw_net, draw_net_to_file, get_pydot_graph
from nets import siftflow_fcn16s, voc_fcn8s


def test_layers_are_boxes_blobs_octagons_and_edges_go_from_bottom_to_top():
    graph = get_pydot_graph(voc_fcn8s.fcn('deploy'), 'TB')
    assert graph.nodes['conv1_1_Convolution'].color == COLORS['Convolution']
    assert graph.nodes['relu1_1_ReLU'].color == NEURON
    assert (graph.nodes['conv1_1_blob'].label, graph.nodes['conv1_1_blob'].shape) == (
        'conv1_1',
        'octagon',
    )
    assert ('data_blob', 'conv1_1_Convolution', '') in graph.edges
    assert ('conv1_1_Convolution', 'conv1_1_blob', '64') in graph.edges
    assert 'kernel size: 3, stride: 1, pad: 100' in graph.nodes['conv1_1_Convolution'].label


def test_labels_multipliers_and_phases_are_shown_on_request():
    net = voc_fcn8s.fcn('deploy')
    net.layer[-1].include.add(phase=caffe.TRAIN)
    plain = get_pydot_graph(net, 'LR', label_edges=False, phase=caffe.TEST)
    assert not any(label for *_, label in plain.edges)
    assert f'{net.layer[-1].name}_Crop' not in plain.nodes
    shown = get_pydot_graph(net, 'LR', display_lrm=True)
    assert shown.nodes['conv1_1_Convolution'].label.endswith('\nlr mult: 1 x 2')
    with pytest.raises(caffe.CaffeError, match="rankdir 'UP': expected one of LR"):
        get_pydot_graph(net, 'UP')


@pytest.mark.parametrize('rankdir', ['LR', 'BT'])
def test_without_graphviz_matplotlib_draws_every_node(rankdir, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    path = tmp_path / 'net.png'
    draw_net_to_file(siftflow_fcn16s.fcn('deploy'), path, rankdir)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert('RGB')).astype(int) @ (1 << 16, 1 << 8, 1)
    colors = {f'#{pixel:06X}' for pixel in np.unique(pixels)}
    assert {*COLORS.values()} - {'#CC33FF'} | {NEURON, BLOB} <= colors
    with pytest.raises(caffe.CaffeError, match='a drawing of kind xyz'):
        draw_net_to_file(siftflow_fcn16s.fcn('deploy'), tmp_path / 'net.xyz')
    assert [each.name for each in tmp_path.iterdir()] == ['net.png']


def test_the_text_quotes_names_so_that_graphviz_reads_them():
    net = voc_fcn8s.fcn('deploy')
    net.layer[1].name = 'a"b\\c'
    text = draw_net(net, 'LR', 'dot').decode()
    assert '"a\\"b\\\\c_Convolution"' in text and text.count('{') == text.count('}') == 1
