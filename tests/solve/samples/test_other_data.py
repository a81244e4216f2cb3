"""The drawn data sets of other shapes: read by their layers, whole, the same from every draw."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caffe_port as caffe
import solve.datasets  # noqa: F401  for the release's module names
from caffe_port.errors import CaffeError
from nets import nyud_fcn32s_color_d, pascalcontext_fcn32s, siftflow_fcn32s
from solve.datasets import nyud, pascalcontext, siftflow
from solve.datasets.images import read_list, read_rgb
from solve.datasets.matfile import read_mat
from solve.samples import other_data, voc_data
from solve.samples.drawings import ALL_PLACES, OBJECTS
from solve.samples.scenes import compose
from tests.solve.feeding import make

SMALL = {'train': 8, 'test': 6, 'seed': 5}
DRAW = {
    'nyud': other_data.draw_nyud,
    'siftflow': other_data.draw_siftflow,
    'pascalcontext': other_data.draw_pascalcontext,
}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp('samples')
    return {name: draw(folder / name, **SMALL) for name, draw in DRAW.items()}


def root_of(data):
    return Path(next(iter(data.places.values()))).parent


def files_of(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != 'sample.json'
    }


def feed_all(layer_class, count, **params):
    """The tops of every image of a split, in order."""
    layer, blobs = make(layer_class, count, randomize=False, seed=1, **params)
    for _ in layer.ids:
        layer.reshape([], blobs)
        layer.forward([], blobs)
        yield [blob.data[0].copy() for blob in blobs]


def seen(maps):
    return set(np.unique(np.concatenate([labels.ravel() for labels in maps])).astype(int))


# Through the layers.


def test_nyud_reads_through_its_layer(drawn):
    data = drawn['nyud']
    for split, count in (('trainval', 8), ('test', 6)):
        fed = list(
            feed_all(
                nyud.NYUDSegDataLayer,
                4,
                split=split,
                tops=['color', 'depth', 'hha', 'label'],
                **data.places,
            )
        )
        assert len(fed) == count
        assert seen(label for *_, label in fed) == {*data.classes, 255}
    assert [nyud.CLASSES[number] for number in data.classes] == [
        'wall',
        'floor',
        'television',
        'otherprop',
    ]


def test_siftflow_reads_through_its_layer(drawn):
    data = drawn['siftflow']
    fed = [
        tops
        for split in ('trainval', 'test')
        for tops in feed_all(siftflow.SIFTFlowSegDataLayer, 3, split=split, **data.places)
    ]
    assert len(fed) == 14
    assert seen(sem for _, sem, _ in fed) == {*data.classes, 255}
    assert seen(geo for _, _, geo in fed) == {0, 1, 2, 255}
    assert {image.shape for image, _, _ in fed} == {(3, 160, 160)}


def test_pascalcontext_reads_through_its_layer(drawn):
    data = drawn['pascalcontext']
    fed = [
        tops
        for split in ('train', 'val')
        for tops in feed_all(pascalcontext.PASCALContextSegDataLayer, 2, split=split, **data.places)
    ]
    assert len(fed) == 14
    assert seen(label for _, label in fed) == set(data.classes)
    assert {pascalcontext.CLASSES[number] for number in data.classes} == {
        'background',
        *OBJECTS,
        'sky',
        'grass',
        'building',
        'sidewalk',
        'road',
    }


@pytest.mark.parametrize(
    'name, split, net',
    [
        ('nyud', 'trainval', nyud_fcn32s_color_d),
        ('siftflow', 'trainval', siftflow_fcn32s),
        ('pascalcontext', 'train', pascalcontext_fcn32s),
    ],
)
def test_places_are_what_the_nets_ask_for(drawn, name, split, net):
    built = caffe.Net(net.fcn(split, **drawn[name].places, width=1, fc=2), caffe.TRAIN)
    built.forward()
    assert np.isfinite(built.blobs['loss'].data)


# What is in them.


def test_semantic_and_geometric_labels_agree(drawn):
    root = Path(drawn['siftflow'].places['siftflow_dir'])
    geometric = {
        'sky': {0},
        'grass': {1},
        'road': {1},
        'sidewalk': {1},
        'building': {2},
        'bus': {2},
        'cow': {2},
        'plant': {2},
        'sign': {2},
    }
    stored = set()
    for name in read_list(root / 'trainval.txt'):
        sem, geo = (
            root / kind / siftflow.SCENES / f'{name}.mat'
            for kind in ('SemanticLabels', 'GeoLabels')
        )
        stored |= seen([read_mat(geo, 'S')])
        sem, geo = siftflow.read_semantic(sem), siftflow.read_geometric(geo)
        for number in np.unique(sem[sem != 255]):
            assert seen([geo[sem == number]]) == geometric[siftflow.SEMANTIC[number]]
        np.testing.assert_array_equal(sem == 255, geo == 255)
    assert stored == {-1, 1, 2, 3}


def rooms(drawn):
    """Labels, depth and HHA of all drawn rooms."""
    root = Path(drawn['nyud'].places['nyud_dir'])
    for name in read_list(root / 'trainval.txt') + read_list(root / 'test.txt'):
        path = {top: root / file.format(name) for top, file in nyud.FILES.items()}
        with Image.open(path['depth']) as image:
            assert image.mode.startswith('I')
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


def test_regions_cover_a_place_from_top_to_bottom():
    made_of = {
        'room': ['wall', 'floor'],
        'meadow': ['sky', 'grass'],
        'street': ['sky', 'building', 'sidewalk', 'road'],
    }
    assert set(made_of) == set(ALL_PLACES)
    for place, names in made_of.items():
        for seed in range(3):
            scene = compose(120, 100, [], np.random.RandomState(seed), [place])
            numbers = {name: number for number, name in enumerate([*names], 1)}
            regions = scene.labels({**numbers, 'line': numbers.get('road', 0)})
            assert set(np.unique(regions)) == set(numbers.values())
            assert (np.diff(regions.astype(int), axis=0) >= 0).all()


def test_front_objects_hide_those_behind():
    scene = compose(100, 100, ['bus', 'sheep'], np.random.RandomState(0))
    (_, bus), (_, sheep) = scene.objects
    assert (bus & sheep).any()
    np.testing.assert_array_equal(scene.labels({'bus': 1, 'sheep': 2}) == 2, sheep)
    np.testing.assert_array_equal(scene.labels({'bus': 1, 'sheep': 2}) == 1, bus & ~sheep)


# The folders.


@pytest.mark.parametrize('name', DRAW)
def test_splits_are_apart(drawn, name):
    root = root_of(drawn[name])
    lists = [
        read_list(path) for path in sorted(root.rglob('t*.txt')) + sorted(root.rglob('val.txt'))
    ]
    assert sorted(map(len, lists)) == [6, 8]
    assert not set(lists[0]) & set(lists[1])


@pytest.mark.parametrize('name', DRAW)
def test_a_seed_draws_the_same_bytes_and_another_seed_others(drawn, name, tmp_path):
    few = {'train': 1, 'test': 1}
    first = DRAW[name](tmp_path / 'a', **few, seed=5)
    again = DRAW[name](tmp_path / 'b', **few, seed=5)
    other = DRAW[name](tmp_path / 'c', **few, seed=6)
    assert files_of(root_of(first)) == files_of(root_of(again)) != files_of(root_of(other))


@pytest.mark.parametrize('name', DRAW)
def test_what_is_drawn_is_taken_again(drawn, name, monkeypatch):
    monkeypatch.setattr(other_data, f'_draw_{name}', None)
    assert DRAW[name](root_of(drawn[name]), **SMALL) == drawn[name]


def test_folders_of_another_data_set_are_left_alone(drawn, tmp_path):
    with pytest.raises(CaffeError, match="'SIFT Flow'.*'NYUDv2'.* expected"):
        other_data.draw_nyud(root_of(drawn['siftflow']), **SMALL)
    with pytest.raises(CaffeError, match="'NYUDv2'.* expected"):
        voc_data.draw(root_of(drawn['nyud']), train=8, val=6, seed=5)
    (tmp_path / 'mine').write_text('mine')
    with pytest.raises(CaffeError, match='holds no sample data'):
        other_data.draw_pascalcontext(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


@pytest.mark.parametrize('draw', DRAW.values())
@pytest.mark.parametrize('settings', [{'train': 0}, {'test': 0}, {'size': (79, 200)}])
def test_impossible_settings_are_refused(tmp_path, draw, settings):
    with pytest.raises(CaffeError, match='at least one of each and 80 pixels'):
        draw(tmp_path / 'data', **settings)
    assert not (tmp_path / 'data').exists()


def test_a_draw_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(other_data, 'write_mat', full)
    with pytest.raises(CaffeError, match='data: not drawn: No space left'):
        other_data.draw_nyud(tmp_path / 'data', train=1, test=1)
    assert list(tmp_path.iterdir()) == []
