"""The drawn data set: that it reads as the real ones do, whole, the same from every draw."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from caffe_port import Blob
from caffe_port.errors import CaffeError
from solve.datasets import voc
from solve.datasets.images import read_label_png, read_list
from solve.datasets.matfile import read_mat
from solve.samples import voc_data

SMALL = {'train': 12, 'val': 6, 'seed': 5}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    return voc_data.draw(tmp_path_factory.mktemp('sample') / 'data', **SMALL)


def files_of(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def root_of(data):
    return data.voc_dir.parents[1]


def feed_all(layer_class, **params):
    """Every image and label of a split once, in order, through the layer."""
    layer, tops = layer_class(), [Blob(), Blob()]
    layer.param_str = repr({'mean': voc.MEAN, 'randomize': False, 'seed': 1, **params})
    layer.setup([], tops)
    for _ in layer.ids:
        layer.reshape([], tops)
        layer.forward([], tops)
        yield tops[0].data.copy(), tops[1].data.copy()


def test_sbd_tree_reads_through_the_sbd_layer(drawn):
    fed = list(feed_all(voc.SBDDSegDataLayer, sbdd_dir=str(drawn.sbdd_dir), split='train'))
    assert len(fed) == drawn.train == 12
    assert set(np.unique(np.concatenate([label.ravel() for _, label in fed]))) == set(drawn.classes)


def test_voc_tree_reads_through_the_voc_layer(drawn):
    fed = list(
        feed_all(
            voc.VOCSegDataLayer,
            voc_dir=str(drawn.voc_dir),
            split='seg11valid',
            sbdd_dir=str(drawn.sbdd_dir),
            expected=drawn.val,
        )
    )
    assert len(fed) == drawn.val == 6
    seen = set(np.unique(np.concatenate([label.ravel() for _, label in fed])))
    assert seen == {*drawn.classes, 255}
    assert all(abs(data).max() < 160 for data, _ in fed)


def test_official_places_are_the_sample_s(drawn):
    assert drawn.sbdd_dir == root_of(drawn) / 'sbdd' / 'dataset'
    assert drawn.voc_dir == root_of(drawn) / 'pascal' / 'VOC2011'


def test_val_has_images_of_sbd_train_and_train_none_of_val(drawn):
    lists = drawn.voc_dir / 'ImageSets/Segmentation'
    val, train = set(read_list(lists / 'val.txt')), set(read_list(lists / 'train.txt'))
    assert val & set(read_list(drawn.sbdd_dir / 'train.txt'))
    assert not val & train
    assert len(voc.seg11valid(drawn.voc_dir, drawn.sbdd_dir, drawn.val)) == 6


def test_classes_are_voc_s_numbers(drawn):
    names = [voc.CLASSES[number] for number in drawn.classes]
    assert names == ['background', 'bottle', 'bus', 'pottedplant', 'sheep', 'tvmonitor']


def test_voc_labels_are_sbd_s_with_void_between_objects_and_the_rest(drawn):
    for name in read_list(drawn.sbdd_dir / 'train.txt'):
        inner = read_mat(drawn.sbdd_dir / 'cls' / f'{name}.mat', 'GTcls', 'Segmentation')
        outer = read_label_png(drawn.voc_dir / 'SegmentationClass' / f'{name}.png')
        void = outer == 255
        np.testing.assert_array_equal(outer[~void], inner[~void])
        assert inner.max() < 255 and 0.01 < void.mean() < 0.3
        # No two of VOC's classes touch: void lies between them.
        for a, b in ((outer[1:], outer[:-1]), (outer[:, 1:], outer[:, :-1])):
            assert not ((a != b) & (a != 255) & (b != 255)).any()


def test_images_lie_and_stand_and_objects_are_large(drawn):
    shapes, extents = [], []
    for path in sorted((drawn.sbdd_dir / 'img').iterdir()):
        width, height = Image.open(path).size
        shapes.append(width > height)
        assert 140 < min(width, height) <= 160 < 180 < max(width, height) <= 200
        rows, columns = np.nonzero(
            read_mat(drawn.sbdd_dir / 'cls' / f'{path.stem}.mat', 'GTcls', 'Segmentation')
        )
        extents.append(max(np.ptp(rows), np.ptp(columns)))
    assert any(shapes) and not all(shapes)
    assert min(extents) > 60


def test_a_seed_draws_the_same_bytes_and_another_seed_others(drawn, tmp_path):
    again = voc_data.draw(tmp_path / 'again', **SMALL)
    assert files_of(root_of(again)) == files_of(root_of(drawn))
    other = voc_data.draw(tmp_path / 'other', train=1, val=1, seed=6)
    same = voc_data.draw(tmp_path / 'same', train=1, val=1, seed=5)
    assert files_of(root_of(other)) != files_of(root_of(same))


def test_what_is_drawn_is_taken_again(drawn, monkeypatch):
    monkeypatch.setattr(voc_data, '_draw_trees', None)
    assert voc_data.draw(root_of(drawn), **SMALL) == drawn


def test_another_folder_is_left_alone(drawn, tmp_path):
    with pytest.raises(CaffeError, match="'seed': 5.*'seed': 6.* expected"):
        voc_data.draw(root_of(drawn), **{**SMALL, 'seed': 6})
    (tmp_path / 'mine').write_text('mine')
    for folder in (tmp_path, tmp_path / 'mine'):
        with pytest.raises(CaffeError, match='holds no sample data'):
            voc_data.draw(folder, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ['mine']


def test_a_draw_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(voc_data, 'write_list', full)
    with pytest.raises(CaffeError, match='data: not drawn: No space left'):
        voc_data.draw(tmp_path / 'data', train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_two_draws_at_once_leave_one_whole_set(tmp_path, monkeypatch):
    folder, draw_trees = tmp_path / 'data', voc_data._draw_trees

    def slower(beside, settings):
        draw_trees(beside, settings)
        if not folder.exists():
            shutil.copytree(beside, folder)

    monkeypatch.setattr(voc_data, '_draw_trees', slower)
    assert voc_data.draw(folder, train=1, val=1).train == 1
    assert [path.name for path in tmp_path.iterdir()] == ['data']


@pytest.mark.parametrize('size', [(80, 80), (80, 100), (112, 140)])
def test_small_images_are_drawn_too(tmp_path, size):
    data = voc_data.draw(tmp_path / 'data', train=8, val=4, size=size)
    sizes = [Image.open(path).size for path in (data.sbdd_dir / 'img').iterdir()]
    assert len(sizes) == 8 and all(sorted(found) <= list(size) for found in sizes)


@pytest.mark.parametrize('settings', [{'train': 0}, {'val': 0}, {'size': (79, 200)}])
def test_impossible_settings_are_refused(tmp_path, settings):
    with pytest.raises(CaffeError, match='at least one of each and 80 pixels'):
        voc_data.draw(tmp_path / 'data', **settings)
    assert not (tmp_path / 'data').exists()


@pytest.fixture(scope='module')
def batch():
    return voc_data.Windows(10, size=193, seed=3).batch(24)


def test_windows_come_in_turn_and_the_same_from_a_seed(batch):
    images, labels = batch
    assert images.shape == (24, 3, 193, 193) and images.dtype == np.float32
    assert labels.dtype == np.int64
    assert np.bincount(labels, minlength=21)[[0, 5, 6, 16, 17, 20]].tolist() == [4] * 6
    windows = voc_data.Windows(10, size=193, seed=3)
    again = [windows.batch(12) for _ in range(2)]
    assert (np.concatenate([part for part, _ in again]) == images).all()
    assert (np.concatenate([part for _, part in again]) == labels).all()
    assert not (voc_data.Windows(10, size=193, seed=4).batch(24)[0] == images).all()


def test_windows_are_bgr_minus_mean_and_0_beyond_the_scene(batch):
    images, labels = batch
    beyond = (images == 0).all(1, keepdims=True)
    restored = images + np.array(voc.MEAN, np.float32)[:, np.newaxis, np.newaxis]
    inside = np.where(beyond, 0, restored)
    assert abs(inside - inside.round()).max() < 1e-4
    assert inside.min() > -0.5 and inside.max() < 255.5
    assert not beyond[:, :, 96, 96].any()
    # Every scene is shorter than a window one way at least.
    assert (beyond.all(3).any((1, 2)) | beyond.all(2).any((1, 2))).all()


def test_windows_show_their_class_in_the_middle(batch):
    images, labels = batch
    # Buses are red to yellow, screens blue.
    centre = images[:, :, 86:107, 86:107].mean((2, 3)) + np.array(voc.MEAN)
    blue, red = centre[:, 0], centre[:, 2]
    assert np.median((red - blue)[labels == 6]) > 40 > 0 > np.median((red - blue)[labels == 20])
