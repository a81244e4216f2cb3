"""The drawn data sets: read by the layers as the real ones, whole, the same from every draw."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
from caffe_port.errors import CaffeError
from nets import nyud_fcn32s_color_d, pascalcontext_fcn32s, siftflow_fcn32s, voc_fcn32s
from solve.datasets import nyud, pascalcontext, siftflow, voc
from solve.datasets.images import read_label_png, read_list, read_rgb
from solve.datasets.labels import read_mat
from solve.samples import trees
from solve.samples.drawings import OBJECTS
from tests.solve.feeding import fed_whole

DATA = ['voc', 'nyud', 'siftflow', 'pascalcontext']
SMALL = {'train': 12, 'val': 6, 'seed': 5}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return tmp_path_factory.mktemp('samples')


@pytest.fixture(scope='module')
def drawn(root):
    return {data: trees.draw_dataset(data, root / data, **SMALL) for data in DATA}


def seen(maps):
    return set(np.unique(np.concatenate([labels.ravel() for labels in maps])).astype(int))


# Through the layers.


OUTDOORS = 'sky grass building sidewalk road '
# Each layer with its splits, how many images they have, and what its label tops show.
LAYERS = [
    (voc.SBDDSegDataLayer, 'train', 12, dict(label=['background', *OBJECTS])),
    (voc.VOCSegDataLayer, 'seg11valid', 6, dict(label=['background', *OBJECTS, 'void'])),
    (
        nyud.NYUDSegDataLayer,
        'trainval test',
        18,
        dict(label='wall floor television otherprop void'.split()),
    ),
    (
        siftflow.SIFTFlowSegDataLayer,
        'trainval test',
        18,
        dict(sem=(OUTDOORS + 'bus plant cow sign void').split(), geo=[*siftflow.GEOMETRIC, 'void']),
    ),
    (
        pascalcontext.PASCALContextSegDataLayer,
        'train val',
        18,
        dict(label=['background', *OBJECTS, *OUTDOORS.split()]),
    ),
]


@pytest.mark.parametrize('layer, splits, count, shown', LAYERS)
def test_a_tree_reads_through_its_layer(drawn, layer, splits, count, shown):
    module = sys.modules[layer.__module__]
    data = module.__name__.rpartition('.')[2]
    tops = [*nyud.FILES] if data == 'nyud' else ['data', *shown]
    params = dict(drawn[data], **({'tops': tops} if data == 'nyud' else {}))
    fed = [
        each
        for split in splits.split()
        for each in fed_whole(layer, len(tops), split=split, **params)
    ]
    assert len(fed) == count
    for top, names in shown.items():
        classes = {'sem': 'SEMANTIC', 'geo': 'GEOMETRIC', 'label': 'CLASSES'}[top]
        numbers = {name: i for i, name in enumerate(getattr(module, classes))} | {'void': 255}
        assert seen(each[tops.index(top)] for each in fed) == {numbers[name] for name in names}


@pytest.mark.parametrize(
    'data, split, net',
    [
        ('voc', 'train', voc_fcn32s),
        ('nyud', 'trainval', nyud_fcn32s_color_d),
        ('siftflow', 'trainval', siftflow_fcn32s),
        ('pascalcontext', 'train', pascalcontext_fcn32s),
    ],
)
def test_places_are_what_the_nets_ask_for(drawn, data, split, net):
    built = caffe.Net(net.fcn(split, **drawn[data], width=1, fc=2), caffe.TRAIN)
    built.forward()
    assert np.isfinite(built.blobs['loss'].data)


# What is in them.


def sbd_labels(drawn):
    for path in sorted(Path(drawn['voc']['sbdd_dir'], 'cls').iterdir()):
        yield path.stem, read_mat(path, 'GTcls', 'Segmentation')


def test_voc_labels_are_sbd_s_with_void_between_objects_and_the_rest(drawn):
    for name, inner in sbd_labels(drawn):
        outer = read_label_png(Path(drawn['voc']['voc_dir'], 'SegmentationClass', f'{name}.png'))
        void = outer == 255
        np.testing.assert_array_equal(outer[~void], inner[~void])
        assert inner.max() < 255 and 0.01 < void.mean() < 0.3
        # No two of VOC's classes touch: there is void between them.
        for a, b in ((outer[1:], outer[:-1]), (outer[:, 1:], outer[:, :-1])):
            assert not ((a != b) & (a != 255) & (b != 255)).any()


def test_voc_s_lists_overlap_with_sbd_s_as_the_real_ones_do(drawn):
    places = drawn['voc']
    val, train, valid = (
        read_list(voc.segmentation_list(places['voc_dir'], split))
        for split in ('val', 'train', 'seg11valid')
    )
    assert {*val} & {*read_list(Path(places['sbdd_dir'], 'train.txt'))}
    assert not {*val} & {*train}
    assert voc.seg11valid(places['voc_dir'], places['sbdd_dir'], 6) == valid


def test_images_are_wide_and_upright_and_objects_are_large(drawn):
    wide, extents = [], []
    for name, labels in sbd_labels(drawn):
        height, width = labels.shape
        assert Image.open(Path(drawn['voc']['sbdd_dir'], 'img', f'{name}.jpg')).size == (
            width,
            height,
        )
        wide.append(width > height)
        assert 140 < min(width, height) <= 160 < 180 < max(width, height) <= 200
        extents.append(max(np.ptp(axis) for axis in np.nonzero(labels)))
    assert any(wide) and not all(wide)
    assert min(extents) > 60


def test_semantic_and_geometric_labels_agree(drawn):
    root = Path(drawn['siftflow']['siftflow_dir'])
    geometric = dict.fromkeys(siftflow.SEMANTIC, 2) | dict(sky=0, grass=1, road=1, sidewalk=1)
    stored = set()
    for name in read_list(root / 'trainval.txt'):
        sem, geo = (
            root / kind / siftflow.SCENES / f'{name}.mat'
            for kind in ('SemanticLabels', 'GeoLabels')
        )
        stored |= seen([read_mat(geo, 'S')])
        sem, geo = siftflow.read_semantic(sem), siftflow.read_geometric(geo)
        for number in np.unique(sem[sem != 255]):
            assert seen([geo[sem == number]]) == {geometric[siftflow.SEMANTIC[number]]}
        np.testing.assert_array_equal(sem == 255, geo == 255)
    assert stored == {-1, 1, 2, 3}


def rooms(drawn):
    """Labels, depth and HHA of all drawn rooms."""
    root = Path(drawn['nyud']['nyud_dir'])
    for name in read_list(root / 'trainval.txt') + read_list(root / 'test.txt'):
        path = {top: root / file.format(name) for top, file in nyud.FILES.items()}
        yield (
            nyud.read_labels(path['label']),
            nyud.read_depth(path['depth']).astype(float),
            read_rgb(path['hha']).astype(float),
        )


def test_floor_recedes_to_the_wall_and_objects_stand_before_both(drawn):
    for labels, depth, _ in rooms(drawn):
        wall, floor = labels == 0, labels == 1
        by_row = [depth[y][floor[y]].mean() for y in range(len(depth)) if floor[y].sum() > 20]
        assert np.corrcoef(by_row, np.arange(len(by_row)))[0, 1] < -0.9
        assert 1100 < by_row[-1] < 1600 and by_row[0] > 2500
        assert 3000 < depth[wall].mean() < 5000 and depth[wall].std() < 50
        objects = (labels != 0) & (labels != 1) & (labels != 255)
        assert depth[objects].max() < depth[wall].mean()


def test_hha_is_disparity_height_and_angle(drawn):
    for labels, depth, hha in rooms(drawn):
        floor, wall = labels == 1, labels == 0
        inside = (hha[:, :, 0] > 0) & (hha[:, :, 0] < 255)
        np.testing.assert_allclose(hha[inside, 0], 31000 / (depth[inside] / 10), atol=0.7)
        assert hha[floor, 1].mean() < 5 and abs(hha[floor, 2].mean() - 38) < 1
        assert hha[wall, 1].mean() > 60
        assert abs(hha[wall, 2].mean() - 128) < 1
        assert abs(hha[labels > 1, 2][labels[labels > 1] != 255].mean() - 128) < 1
        # The wall is higher the further up one looks.
        column = hha[:, 0, 1][wall[:, 0]]
        assert column[0] >= column[len(column) // 2] > column[-1]


# The folders.


def hashes(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != 'sample.json'
    }


@pytest.mark.parametrize('data', DATA)
def test_a_seed_draws_the_same_bytes_and_another_seed_others(data, tmp_path):
    for folder, seed in ('a', 5), ('b', 5), ('c', 6):
        trees.draw_dataset(data, tmp_path / folder, train=1, val=1, seed=seed)
    first, again, other = (hashes(tmp_path / folder) for folder in 'abc')
    assert first == again != other


@pytest.mark.parametrize('data', DATA)
def test_what_is_drawn_is_taken_again(drawn, root, data, monkeypatch):
    monkeypatch.setattr(trees, '_folders', None)
    assert trees.draw_dataset(data, root / data, **SMALL) == drawn[data]


@pytest.mark.parametrize('data', DATA[1:])
def test_splits_are_apart(drawn, data):
    root = Path(next(iter(drawn[data].values()))).parent
    lists = [read_list(path) for split in ('t*', 'val') for path in root.rglob(f'{split}.txt')]
    assert sorted(map(len, lists)) == [6, 12]
    assert not {*lists[0]} & {*lists[1]}


def test_another_folder_is_left_alone(drawn, root, tmp_path):
    with pytest.raises(CaffeError, match="'seed': 5.*'seed': 6.* expected"):
        trees.draw_dataset('voc', root / 'voc', **{**SMALL, 'seed': 6})
    with pytest.raises(CaffeError, match="'SIFT Flow'.*'NYUDv2'.* expected"):
        trees.draw_dataset('nyud', root / 'siftflow', **SMALL)
    with pytest.raises(CaffeError, match="'NYUDv2'.* expected"):
        trees.draw_dataset('voc', root / 'nyud', **SMALL)
    (tmp_path / 'mine').write_text('mine')
    for folder in (tmp_path, tmp_path / 'mine'):
        with pytest.raises(CaffeError, match='holds no sample data'):
            trees.draw_dataset('pascalcontext', folder, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


@pytest.mark.parametrize('data', DATA)
def test_a_draw_that_fails_leaves_nothing(tmp_path, monkeypatch, data):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(trees, 'write_list', full)
    with pytest.raises(CaffeError, match='data: not drawn: No space left'):
        trees.draw_dataset(data, tmp_path / 'data', train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_two_draws_at_once_leave_one_whole_set(tmp_path, monkeypatch):
    rename = os.rename
    monkeypatch.setattr(
        os,
        'rename',
        lambda beside, folder: (shutil.copytree(beside, folder), rename(beside, folder)),
    )
    places = trees.draw_dataset('voc', tmp_path / 'data', train=1, val=1)
    assert len(read_list(Path(places['sbdd_dir'], 'train.txt'))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['data']


@pytest.mark.parametrize('size', [(80, 80), (80, 100), (112, 140)])
def test_small_images_are_drawn_too(tmp_path, size):
    places = trees.draw_dataset('voc', tmp_path / 'data', train=8, val=4, size=size)
    sizes = [Image.open(path).size for path in Path(places['sbdd_dir'], 'img').iterdir()]
    assert len(sizes) == 8 and all(sorted(found) <= list(size) for found in sizes)


@pytest.mark.parametrize('settings', [{'train': 0}, {'val': 0}, {'size': (79, 200)}])
def test_impossible_settings_are_refused(tmp_path, settings):
    with pytest.raises(CaffeError, match='at least one of each and 80 pixels'):
        trees.draw_dataset('voc', tmp_path / 'data', **settings)
    assert not (tmp_path / 'data').exists()
