"""Tiles: what they keep is what the whole picture gives, on the net's own grid."""

import weakref

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port.coord_map import UndefinedMapException, coord_map_from_to
from caffe_port.errors import CaffeError
from caffe_port.net_spec import NetSpec
from caffe_port.net_spec import layers as L
from nets import (
    nyud_fcn32s_color_d,
    siftflow_fcn16s,
    voc_fcn8s,
    voc_fcn16s,
    voc_fcn32s,
    voc_fcn_alexnet,
)
from solve.run import free_memory, tiles
from solve.run.cones import Cones
from tests.solve.scored import NARROW, save_random

CPU = torch.device('cpu')
# Of weights with which the net predicts several classes.
SEEDS = {voc_fcn32s: 6}


def make(param, tmp_path, seed=8):
    return caffe.Net(param, str(save_random(param, tmp_path / 'w.caffemodel', seed)), caffe.TEST)


def draw(module, size):
    rng = np.random.RandomState(3)
    return {
        name: torch.from_numpy(rng.uniform(-120, 130, (1, shape[1], *size)).astype(np.float32))
        for name, shape in module.shapes.items()
        if name in module.inputs
    }


def stitch(module, inputs, outputs, rows, columns):
    """Compute the scores in tiles, as `label` does."""
    size = next(iter(inputs.values())).shape[2:]
    found = {name: torch.full((module.shapes[name][1], *size), torch.nan) for name in outputs}
    for row in rows:
        for column in columns:
            part = {name: x[:, :, row.read, column.read].clone() for name, x in inputs.items()}
            for name, scores in tiles.compute(module, part, outputs).items():
                kept = scores[0, :, tiles._within(row), tiles._within(column)]
                found[name][:, row.kept, column.kept] = kept
    return found


@pytest.mark.parametrize(
    'net, size',
    [
        (voc_fcn32s, (531, 703)),
        (voc_fcn16s, (531, 703)),
        (voc_fcn8s, (531, 703)),
        (voc_fcn8s, (97, 1211)),
        (voc_fcn_alexnet, (531, 703)),
        (siftflow_fcn16s, (603, 517)),
        (nyud_fcn32s_color_d, (517, 603)),
    ],
)
def test_tiles_give_what_the_whole_picture_gives(net, size, tmp_path):
    net = make(net.fcn('deploy', **NARROW), tmp_path, SEEDS.get(net, 8))
    module, outputs = net.module, net.outputs
    cones = Cones(module, outputs)
    rows, columns = tiles.cut(cones, 0, size[0], 2), tiles.cut(cones, 1, size[1], 3)
    assert any(column.read.start > 0 and column.read.stop < size[1] for column in columns) or (
        columns[0].read.stop < size[1] and columns[-1].read.start > 0
    )
    inputs = draw(module, size)
    whole = tiles.compute(module, inputs, outputs)
    for name, found in stitch(module, inputs, outputs, rows, columns).items():
        expected = whole[name][0]
        assert len(expected.argmax(0).unique()) > 1
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert torch.equal(found.argmax(0), expected.argmax(0))


def test_a_tile_with_a_smaller_margin_gives_something_else(tmp_path):
    """The cone is no larger than it must be: pixels at its edge count."""
    net = make(voc_fcn8s.fcn('deploy', **NARROW), tmp_path)
    inputs = draw(net.module, (45, 1001))
    whole = tiles.compute(net.module, inputs, ['score'])['score'][0]
    first, last = Cones(net.module, ['score']).read(1, 480, 480)
    assert first > 0 and last < 1000
    changed = {}
    for column in (first - 1, first, last, last + 1):
        other = inputs['data'].clone()
        other[:, :, :, column] += 1e4
        scores = tiles.compute(net.module, {'data': other}, ['score'])['score'][0]
        changed[column] = not torch.equal(scores[:, :, 480], whole[:, :, 480])
    assert not changed[first - 1] and not changed[last + 1]


def test_the_middle_of_a_cone_is_where_coord_map_puts_it():
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 1, 90, 90]))
    n.conv = L.Convolution(n.data, num_output=1, kernel_size=5, stride=2, pad=7, dilation=2)
    n.pool = L.Pooling(n.conv, kernel_size=3, stride=2, pad=1)
    n.up = L.Deconvolution(
        n.pool, convolution_param=dict(num_output=1, kernel_size=5, stride=4, pad=2)
    )
    _, scale, shift = coord_map_from_to(n.up, n.data)
    module = caffe.Net(n.to_proto(), caffe.TEST).module
    cones = Cones(module, ['up'])
    assert cones.strides == [4, 4]
    # Taken over one total stride, as a pixel's cone is whole pixels wide.
    ends = [cones.read(0, y, y) for y in range(40, 44)]
    middles = np.mean([(first + last) / 2 for first, last in ends])
    assert middles == pytest.approx(float(scale[0]) * 41.5 + float(shift[0]), abs=0.51)


@pytest.mark.parametrize(
    'layer, message',
    [
        (lambda x: L.MVN(x), 'depends on the whole picture'),
        (lambda x: L.Softmax(x, axis=2), 'depends on the whole picture'),
        (lambda x: L.Pooling(x, global_pooling=True), 'global pooling'),
        (lambda x: L.Pooling(x, kernel_size=2, stride=2), 'not of the scale of the picture'),
        (lambda x: L.InnerProduct(x, num_output=2), 'no coordinate map'),
    ],
)
def test_a_net_that_looks_everywhere_is_refused(layer, message):
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 2, 8, 8]))
    n.top = layer(n.data)
    module = caffe.Net(n.to_proto(), caffe.TEST).module
    with pytest.raises(UndefinedMapException, match=message):
        Cones(module, ['top'])


def test_memory_is_bounded_and_what_does_not_fit_is_refused():
    module = caffe.Net(voc_fcn8s.fcn('deploy', **NARROW), caffe.TEST).module
    needs = tiles.estimate(module, (1500, 2000), ['score'])
    assert len(tiles.plan(module, (1500, 2000), ['score'], needs)[0]) == 1
    for share in (0.8, 0.5):
        rows, columns = tiles.plan(module, (1500, 2000), ['score'], int(share * needs))
        largest = [
            max(tile.read.stop - tile.read.start for tile in each) for each in (rows, columns)
        ]
        assert tiles.estimate(module, tuple(largest), ['score']) <= share * needs
        for each, size in ((rows, 1500), (columns, 2000)):
            kept = [pixel for tile in each for pixel in range(tile.kept.start, tile.kept.stop)]
            assert kept == list(range(size))
    with pytest.raises(CaffeError, match='and the smallest tiles .* at a time; --max-memory is 5'):
        tiles.plan(module, (1500, 2000), ['score'], 5 << 20)


def test_a_blob_is_freed_when_its_last_reader_is_done():
    module = caffe.Net(voc_fcn8s.fcn('deploy', **NARROW), caffe.TEST).module
    made = {}

    def look(node, tops):
        gone = {name for name, top in made.items() if top() is None}
        assert node.name != 'fc6' or {'conv1_1', 'conv2_1', 'conv4_1', 'conv5_3'} <= gone
        assert node.name != 'fc6' or not {'pool3', 'pool4', 'pool5'} & gone
        made[node.name] = weakref.ref(tops[0])

    found = tiles.compute(module, {'data': torch.zeros(1, 3, 70, 70)}, ['score'], look)
    assert list(found) == ['score'] and 'fc6' in made


@pytest.mark.parametrize(
    'text, count',
    [('2G', 2 << 30), ('1.5GiB', 3 << 29), ('800M', 800 << 20), ('4096', 4096), ('3 kb', 3072)],
)
def test_amounts_of_memory_are_read(text, count):
    assert free_memory.parse_bytes(text) == count


def test_what_is_free_is_known():
    free = free_memory.free_bytes(CPU)
    assert free is None or 0 <= free < 1 << 50
