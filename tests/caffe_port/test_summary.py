"""The summary of a net against counts by hand, coordinate maps and measured fields."""

import pytest
import torch

import caffe_port as caffe
from caffe_port import coord_map, prototxt, summary
from caffe_port.module import NetModule
from caffe_port.net_spec import NetSpec
from caffe_port.net_spec import layers as L
from caffe_port.proto.caffe_pb2 import NetState
from nets import caffenet, voc_fcn8s, voc_fcn32s, voc_fcn_alexnet
from tests import starting


def rows_of(param, size=None) -> dict[str, summary.Row]:
    module = NetModule(param, NetState(phase=caffe.TEST))
    given = {name: module.shapes[name] for name in module.inputs}
    if size is not None:
        given = {name: (*shape[:2], *size) for name, shape in given.items()}
    return {row.name: row for row in summary.rows(module, given)}


def test_fcn32s_is_what_the_paper_says():
    rows = rows_of(voc_fcn32s.fcn('deploy'), (500, 334))
    trunk, fc6, fc7 = 14_714_688, 512 * 49 * 4096 + 4096, 4096 * 4096 + 4096
    scores = 4096 * 21 + 21 + 21 * 21 * 64 * 64
    assert sum(row.parameters for row in rows.values()) == trunk + fc6 + fc7 + scores
    assert rows['fc7'].sights[0][:2] == (404, 32)
    assert rows['conv1_1'].multiply_adds == 3 * 9 * 64 * 698 * 532
    assert rows['fc6'].multiply_adds == 512 * 49 * 4096 * 16 * 11
    assert rows['upscore'].multiply_adds == 21 * 21 * 64 * 64 * 16 * 11
    assert rows['pool5'].nbytes == 4 * 512 * 22 * 17 and rows['relu6'].nbytes == 0
    assert [float(value) for value in rows['score'].sights[0][1:]] == [1, 0]


def test_parameters_and_work_of_fully_connected_layers():
    rows = rows_of(caffenet.classifier())
    assert sum(row.parameters for row in rows.values()) == 60_965_224
    assert rows['fc6'].multiply_adds == 10 * 9216 * 4096 and rows['fc6'].sights is None


@pytest.mark.parametrize('fcn', [voc_fcn32s.fcn, voc_fcn8s.fcn, voc_fcn_alexnet.fcn])
def test_crops_put_blobs_on_the_grid_they_are_cropped_to(fcn):
    """The nets' crops come from coord_map, which is another derivation."""
    param = fcn('deploy', width=4, fc=4)
    rows = rows_of(param, (101, 75))
    crops = [layer for layer in param.layer if layer.type == 'Crop']
    for layer in crops:
        for found, expected in zip(rows[layer.name].sights, rows[layer.bottom[1]].sights):
            assert (found.stride, found.offset) == (expected.stride, expected.offset)
    assert crops[-1].name == 'score'


def test_offsets_of_a_small_net_are_those_of_coord_map():
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 2, 40, 40]))
    n.conv = L.Convolution(n.data, kernel_size=5, stride=2, pad=3, num_output=2)
    n.pool = L.Pooling(n.conv, kernel_size=3, stride=2)
    n.wide = L.Convolution(n.pool, kernel_size=3, dilation=2, num_output=2)
    n.up = L.Deconvolution(
        n.wide, convolution_param=dict(kernel_size=6, stride=3, pad=1, num_output=2)
    )
    rows = rows_of(n.to_proto())
    for name in ('conv', 'pool', 'wide', 'up'):
        _, scale, shift = coord_map.coord_map_from_to(n.data, getattr(n, name))
        sight = rows[name].sights[0]
        assert (sight.stride, sight.offset) == (1 / scale[0], -shift[0] / scale[0]), name


def test_the_field_is_where_the_gradient_of_a_pixel_falls():
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 1, 60, 60]))
    ones = dict(type='constant', value=1)
    n.conv = L.Convolution(n.data, kernel_size=4, stride=2, num_output=1, weight_filler=ones)
    n.wide = L.Convolution(n.conv, kernel_size=3, dilation=2, num_output=1, weight_filler=ones)
    n.pool = L.Pooling(n.wide, kernel_size=3, stride=2, pool=1)
    param = n.to_proto()
    module = caffe.Net(param, caffe.TEST).module
    x = torch.ones(1, 1, 60, 60, requires_grad=True)
    module(data=x)['pool'][0, 0, 3, 2].backward()
    seen = x.grad[0, 0].nonzero()
    low, high = seen.min(0).values, seen.max(0).values
    field, stride, offset = rows_of(param)['pool'].sights[0]
    assert [int(field)] * 2 == (high - low + 1).tolist()
    centre = [float(offset + stride * at) for at in (3, 2)]
    assert centre == ((low + high) / 2).tolist()


def test_the_table_and_the_graph_are_printed(capsys):
    assert summary.main(['voc_fcn8s', '--size', '500x334']) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 + len(voc_fcn8s.fcn('deploy').layer) + 1
    assert out[1].split()[:2] == ['data', 'Input'] and '1 x 3 x 500 x 334' in out[1]
    assert out[-1].endswith('multiply-adds')
    assert summary.main(['voc_fcn8s', '--size', '500x334', '--dot']) == 0
    out = capsys.readouterr().out
    assert out.startswith('digraph') and out.rstrip().endswith('}')
    assert '"score_blob" [label="score\\n1 x 21 x 500 x 334"' in out


def test_layers_that_see_all_or_nothing_have_no_field():
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, 9, 9]))
    n.near = L.LRN(n.data, local_size=5, norm_region=1)
    n.whole = L.MVN(n.near)
    n.after = L.ReLU(n.whole)
    n.flat = L.Flatten(n.near)
    rows = rows_of(n.to_proto())
    assert rows['near'].sights[0] == (5, 1, 0)
    assert rows['whole'].sights is rows['after'].sights is rows['flat'].sights is None


def test_a_prototxt_is_read_and_errors_are_one_line(tmp_path, capsys):
    path = tmp_path / 'deploy.prototxt'
    prototxt.write(voc_fcn32s.fcn('deploy', width=2, fc=4), path)
    assert summary.main([str(path)]) == 0
    assert 'conv5_3' in capsys.readouterr().out
    assert summary.main(['no_net']) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: no_net: neither a prototxt') and err.count('\n') == 1


def test_a_reader_that_leaves_ends_it_without_a_traceback():
    first, errors = starting.read_first_line('-m', 'caffe_port.summary', 'vgg16')
    assert first.startswith('layer') and not errors


def test_the_plan_counts_arithmetic_before_and_after(capsys):
    assert summary.main(['voc_fcn32s', '--size', '500x334', '--plan']) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines)[1:4] == ['conv1_1', 'conv1_2', 'pool1']
    assert 'fc6 relu6 drop6' in lines['fc6'] and 'product' in lines['fc6']
    direct = 3 * 9 * 64 * 698 * 532
    # The picture reaches a pixel on each of its sides.
    assert lines['conv1_1'].split()[-2:] == [
        f'{direct / 1e6:.1f}',
        f'{3 * 9 * 64 * 502 * 336 / 1e6:.1f}',
    ]


def test_a_net_without_a_plan_says_so(tmp_path, capsys):
    small = tmp_path / 'small.prototxt'
    small.write_text(
        'input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 } '
        'layer { name: "relu" type: "ReLU" bottom: "data" top: "relu" }'
    )
    assert summary.main([str(small), '--plan']) == 0
    assert capsys.readouterr().out == 'no plan: the layers run one by one\n'
