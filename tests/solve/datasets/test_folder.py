"""The layer of own pictures and masks, and the lists of pairs."""

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port.net_spec import NetSpec
from nets.data import python_layer
from solve.datasets import folder
from solve.datasets.folder import OTHERS, Pair, map_labels, read_mask, read_pairs, write_pairs


@pytest.fixture
def data(tmp_path):
    Image.new('RGB', (6, 4), (10, 20, 30)).save(tmp_path / 'one.png')
    mask = np.zeros((4, 6), np.uint8)
    mask[0] = 7
    mask[1] = 99
    Image.fromarray(mask).save(tmp_path / 'one_mask.png')
    write_pairs(
        tmp_path / 'train.txt', [Pair('one', tmp_path / 'one.png', tmp_path / 'one_mask.png')]
    )
    return tmp_path


def make_net(data, **params):
    n = NetSpec()
    n.data, n.label = python_layer(
        'folder_layers', 'FolderSegDataLayer', 2, lists_dir=str(data), split='train', **params
    )
    return caffe.Net(n.to_proto(), caffe.TRAIN)


def test_the_layer_feeds_bgr_minus_mean_and_mapped_labels(data):
    net = make_net(data, classes=3, map={7: 2, 0: 1, OTHERS: 255}, mean=(1, 2, 3))
    net.forward()
    assert net.blobs['data'].data.shape == (1, 3, 4, 6)
    assert net.blobs['data'].data[0, :, 0, 0].tolist() == [29, 18, 7]
    assert net.blobs['label'].data[0, 0, :, 0].tolist() == [2, 255, 1, 1]


def test_a_number_outside_the_classes_is_named(data):
    with pytest.raises(caffe.CaffeError, match=r'one_mask.png: .* label 99 at row 1, column 0'):
        make_net(data, classes=8)
    with pytest.raises(caffe.CaffeError, match=r'label 99 .* one of the map, 0, 7'):
        make_net(data, classes=8, map={0: 0, 7: 1})


def test_masks_are_palette_grey_16_bit_or_two_valued_and_not_colours(tmp_path):
    numbers = np.array([[0, 1], [2, 255]], np.uint8)
    for kind in ('L', 'P'):
        image = Image.fromarray(numbers)
        if kind == 'P':
            image.putpalette([9] * 768)
        image.save(tmp_path / f'{kind}.png')
        assert np.array_equal(read_mask(tmp_path / f'{kind}.png'), numbers)
    Image.fromarray(numbers.astype(np.uint16) * 200).save(tmp_path / '16.png')
    assert read_mask(tmp_path / '16.png').max() == 51000
    assert map_labels(read_mask(tmp_path / '16.png'), {OTHERS: 0, 51000: 1}, 2, tmp_path)[1, 1] == 1
    Image.fromarray(numbers > 0).save(tmp_path / 'two.png')
    assert read_mask(tmp_path / 'two.png').tolist() == [[0, 1], [1, 1]]
    Image.new('RGB', (2, 2)).save(tmp_path / 'rgb.png')
    with pytest.raises(caffe.CaffeError, match='rgb.png: colour mask .mode RGB.'):
        read_mask(tmp_path / 'rgb.png')


def test_pairs_come_back_as_written_and_other_files_are_refused(tmp_path):
    pairs = [Pair('a b', tmp_path / 'a b.jpg', tmp_path / 'x' / 'a b.png')]
    write_pairs(tmp_path / 'list.txt', pairs)
    assert read_pairs(tmp_path / 'list.txt') == pairs
    (tmp_path / 'list.txt').write_text('a b\n')
    with pytest.raises(caffe.CaffeError, match='line 1: 1 fields, 3 expected'):
        read_pairs(tmp_path / 'list.txt')
    (tmp_path / 'list.txt').write_text('')
    with pytest.raises(caffe.CaffeError, match='empty'):
        read_pairs(tmp_path / 'list.txt')


def test_the_module_is_registered_under_its_name():
    assert caffe.plugins.import_layer_module('folder_layers').__name__ == folder.__name__
