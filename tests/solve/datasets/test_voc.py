"""The VOC and SBD data layers: what they feed, in which order, and what they refuse."""

import copy
import json
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

import caffe_port
from caffe_port import Blob
from caffe_port.errors import CaffeError
from solve.datasets import voc
from solve.datasets.images import read_rgb
from solve.datasets.layer import Order

FACTS = Path(__file__).parents[2] / 'facts'
IDS = ['2008_000003', '2008_000001', '2008_000007']
# No two of a size, so that a shape tells whose it is.
SIZES = {'2008_000003': (9, 6), '2008_000001': (5, 8), '2008_000007': (7, 7)}


def picture(name):
    """H x W x 3 noise that belongs to an id."""
    width, height = SIZES[name]
    return (
        np.random.RandomState(len(SIZES) + int(name[-1]))
        .randint(0, 256, (height, width, 3))
        .astype(np.uint8)
    )


def labels_of(name):
    width, height = SIZES[name]
    return (np.arange(height * width).reshape(height, width) % 21).astype(np.uint8)


def save_label(path, labels):
    image = Image.fromarray(labels)
    image.putpalette(voc.palette().tobytes())
    image.save(path)


@pytest.fixture
def sbd(tmp_path):
    """An SBD tree of three images; JPEGs are read back for their exact pixels."""
    root = tmp_path / 'sbd'
    for folder in ('img', 'cls'):
        (root / folder).mkdir(parents=True)
    for name in IDS:
        Image.fromarray(picture(name)).save(root / 'img' / f'{name}.jpg')
        boundaries = np.empty((20, 1), object)
        boundaries[:] = [[scipy.sparse.csc_matrix(np.eye(3))]] * 20
        scipy.io.savemat(
            root / 'cls' / f'{name}.mat',
            {
                'GTcls': {
                    'Boundaries': boundaries,
                    'Segmentation': labels_of(name),
                    'CategoriesPresent': np.array([[1], [20]], np.uint8),
                }
            },
            do_compression=True,
        )
    for split in ('train', 'val'):
        (root / f'{split}.txt').write_text('\n'.join(IDS) + '\n')
    return root


@pytest.fixture
def voc_tree(tmp_path):
    """A VOC tree of the same images, with a void pixel."""
    root = tmp_path / 'voc'
    for folder in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True)
    for name in IDS:
        Image.fromarray(picture(name)).save(root / 'JPEGImages' / f'{name}.jpg')
        labels = labels_of(name)
        labels[0, 0] = 255
        save_label(root / 'SegmentationClass' / f'{name}.png', labels)
    (root / 'ImageSets/Segmentation/val.txt').write_text('\n'.join(IDS) + '\n')
    return root


def make(layer_class, **params):
    """Set up a layer as a net does: setup, then one reshape."""
    layer = layer_class()
    layer.param_str = params.pop('param_str', None) or repr(params)
    tops = [Blob(), Blob()]
    layer.setup([], tops)
    layer.reshape([], tops)
    return layer, tops


def sbd_layer(root, split='train', **params):
    return make(
        voc.SBDDSegDataLayer, sbdd_dir=str(root), split=split, mean=voc.MEAN, seed=1337, **params
    )


def voc_layer(root, split='val', **params):
    return make(
        voc.VOCSegDataLayer, voc_dir=str(root), split=split, mean=voc.MEAN, seed=1337, **params
    )


def step(layer, tops):
    """One forward pass; returns the id that was fed."""
    layer.reshape([], tops)
    layer.forward([], tops)
    assert tops[1].shape[2:] == SIZES[layer.current][::-1]
    return layer.current


def fed(layer, tops, count):
    return [step(layer, tops) for _ in range(count)]


# Tables.


def test_classes_and_mean_are_the_facts():
    facts = json.loads((FACTS / 'datasets.json').read_text())['voc']
    assert list(voc.CLASSES) == facts['classes']
    assert list(voc.MEAN) == facts['mean_bgr']


def test_palette_is_voc_s():
    published = [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
        (192, 0, 0),
        (64, 128, 0),
        (192, 128, 0),
        (64, 0, 128),
        (192, 0, 128),
        (64, 128, 128),
        (192, 128, 128),
        (0, 64, 0),
        (128, 64, 0),
        (0, 192, 0),
        (128, 192, 0),
        (0, 64, 128),
    ]
    palette = voc.palette()
    assert palette.dtype == np.uint8 and palette.shape == (256, 3)
    assert palette[:21].tolist() == [list(colour) for colour in published]
    assert palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


# What the tops hold.


@pytest.mark.parametrize(
    'make_layer, tree, folder', [(sbd_layer, 'sbd', 'img'), (voc_layer, 'voc_tree', 'JPEGImages')]
)
def test_data_is_bgr_minus_mean_and_label_is_as_stored(make_layer, tree, folder, request):
    root = request.getfixturevalue(tree)
    layer, tops = make_layer(root)
    for _ in range(4):
        name = step(layer, tops)
        pixels = np.array(Image.open(root / folder / f'{name}.jpg'), dtype=np.float32)
        expected = (pixels[:, :, ::-1].astype(np.float64) - voc.MEAN).astype(np.float32)
        labels = labels_of(name)
        labels[0, 0] = 255 if tree == 'voc_tree' else labels[0, 0]
        width, height = SIZES[name]
        assert tops[0].shape == (1, 3, height, width) and tops[1].shape == (1, 1, height, width)
        assert tops[0].data.dtype == tops[1].data.dtype == np.float32
        np.testing.assert_array_equal(tops[0].data[0].transpose(1, 2, 0), expected)
        np.testing.assert_array_equal(tops[1].data[0, 0], labels)


def test_mean_is_param_str_s(sbd):
    layer, tops = make(voc.SBDDSegDataLayer, sbdd_dir=str(sbd), split='val', mean=(1, 2, 3))
    step(layer, tops)
    pixels = read_rgb(sbd / 'img' / f'{IDS[0]}.jpg').astype(int)
    np.testing.assert_array_equal(tops[0].data[0, 0], pixels[:, :, 2] - 1)
    np.testing.assert_array_equal(tops[0].data[0, 2], pixels[:, :, 0] - 3)


@pytest.mark.parametrize('mode', ['L', 'CMYK'])
def test_grey_and_cmyk_jpegs_become_rgb(sbd, mode):
    path = sbd / 'img' / f'{IDS[0]}.jpg'
    Image.fromarray(picture(IDS[0])).convert(mode).save(path)
    np.testing.assert_array_equal(read_rgb(path), np.array(Image.open(path).convert('RGB')))
    layer, tops = sbd_layer(sbd, 'val')
    step(layer, tops)
    assert tops[0].shape == (1, 3, 6, 9)


def test_official_param_strs_are_read(sbd, voc_tree):
    nets = json.loads((FACTS / 'official_nets.json').read_text())
    (voc_tree / 'ImageSets/Segmentation/seg11valid.txt').write_text(IDS[1])
    layers = [
        layer['python_param']
        for net in nets.values()
        for phase in ('train_net', 'test_net')
        for layer in net[phase]
        if layer['type'] == 'Python' and layer['python_param']['module'] == 'voc_layers'
    ]
    assert len(layers) == 10
    for python_param in layers:
        params = dict(python_param['param_str'])
        params['sbdd_dir' if 'sbdd_dir' in params else 'voc_dir'] = str(
            sbd if 'sbdd_dir' in params else voc_tree
        )
        layer, tops = make(getattr(voc, python_param['layer']), **params)
        assert step(layer, tops) in IDS


# The order of images.


def test_first_picks_of_8498_images_are_the_published_ones(tmp_path):
    order, picks = Order(8498, True, 1337), []
    for _ in range(6):
        picks.append(order.index)
        order.advance()
    assert picks == [5249, 4531, 3108, 4978, 1408, 7005]
    (tmp_path / 'train.txt').write_text('\n'.join(f'2008_{i:06d}' for i in range(8498)))
    layer = voc.SBDDSegDataLayer()
    layer.param_str = repr({'sbdd_dir': str(tmp_path), 'split': 'train', 'seed': 1337})
    layer.setup([], [Blob(), Blob()])
    assert layer.state()['index'] == 5249


def test_train_is_drawn_as_python_2_draws(sbd):
    rng = random.Random(1337)
    expected = [IDS[int(rng.random() * 3)] for _ in range(12)]
    assert fed(*sbd_layer(sbd, 'train'), 12) == expected


def test_other_splits_run_in_order_and_begin_anew(sbd):
    assert fed(*sbd_layer(sbd, 'val'), 7) == (IDS * 3)[:7]


def test_randomize_false_runs_train_in_order(sbd):
    assert fed(*sbd_layer(sbd, 'train', randomize=False), 4) == (IDS * 2)[:4]


def test_no_image_is_read_twice(sbd, monkeypatch):
    read = []
    monkeypatch.setattr(voc, 'read_rgb', lambda path: (read.append(path.stem), read_rgb(path))[1])
    layer, tops = sbd_layer(sbd, 'val')
    layer.reshape([], tops)
    assert read == IDS[:1]
    fed(layer, tops, 5)
    layer.reshape([], tops)
    layer.reshape([], tops)
    assert read == (IDS * 2)[:6]


def test_next_image_is_read_while_the_net_works(sbd):
    layer, tops = sbd_layer(sbd, 'val')
    begun, load = threading.Event(), layer.load

    def watched(name):
        begun.set()
        return load(name)

    layer.load = watched
    layer.forward([], tops)
    assert begun.wait(10)
    assert layer.current == IDS[0]


def test_reading_ahead_keeps_no_process_alive(sbd):
    layer, tops = sbd_layer(sbd, 'val')
    release, load = threading.Event(), layer.load
    layer.load = lambda name: (release.wait(30), load(name))[1]
    layer.forward([], tops)
    readers = [thread for thread in threading.enumerate() if thread.name == f'load {IDS[1]}']
    release.set()
    assert len(readers) == 1 and readers[0].daemon


def test_error_of_reading_ahead_comes_with_the_next_reshape(sbd):
    path = sbd / 'img' / f'{IDS[1]}.jpg'
    whole = path.read_bytes()
    path.write_bytes(b'')
    layer, tops = sbd_layer(sbd, 'val')
    layer.forward([], tops)
    for _ in range(2):
        with pytest.raises(CaffeError, match=f'{IDS[1]}.jpg: not a JPEG'):
            layer.reshape([], tops)
        assert layer.current == IDS[0]
    path.write_bytes(whole)
    assert step(layer, tops) == IDS[1]


@pytest.mark.parametrize('split', ['train', 'val'])
def test_state_resumes_the_order(sbd, split):
    layer, tops = sbd_layer(sbd, split)
    fed(layer, tops, 5)
    state = json.loads(json.dumps(layer.state()))
    expected = fed(layer, tops, 9)
    other, other_tops = sbd_layer(sbd, split)
    fed(other, other_tops, 2)
    other.set_state(state)
    assert fed(other, other_tops, 9) == expected


def test_a_copied_layer_goes_on_by_itself(sbd):
    layer, tops = sbd_layer(sbd, 'train')
    fed(layer, tops, 3)
    other = copy.deepcopy(layer)
    assert fed(other, [Blob(), Blob()], 6) == fed(layer, tops, 6)


def test_foreign_states_are_refused_and_change_nothing(sbd):
    layer, tops = sbd_layer(sbd, 'train')
    good = layer.state()
    words = good['random']
    for bad in (
        {},
        None,
        [1],
        {**good, 'count': 4},
        {**good, 'index': 3},
        {**good, 'index': -1},
        {**good, 'index': True},
        {**good, 'random': None},
        {**good, 'random': words[:-1]},
        {**good, 'random': words[:-1] + [9999]},
        {**good, 'random': ['x'] * 625},
        {**good, 'random': 5},
        {**good, 'random': [-1] * 625},
    ):
        with pytest.raises(CaffeError, match='state of the data order'):
            layer.set_state(bad)
    assert layer.state() == good


# param_str.


@pytest.mark.parametrize(
    'param_str',
    [
        "__import__('pathlib').Path({marker!r}).touch()",
        "dict(split='train')",
        '{{',
        '',
        'None',
        "['split']",
        '-' * 100_000 + '1',
        "{{'split': }}",
        "{{'split': open({marker!r}, 'w')}}",
    ],
)
def test_param_str_runs_no_code(tmp_path, param_str):
    marker = tmp_path / 'ran'
    with pytest.raises(CaffeError, match='SBDDSegDataLayer: param_str must be a dict literal'):
        make(voc.SBDDSegDataLayer, param_str=param_str.format(marker=str(marker)) or ' ')
    assert not marker.exists()


@pytest.mark.parametrize(
    'changed, message',
    [
        ({'split': 3}, "'split' must be a string, got 3"),
        ({'split': '../train'}, "'../train' is not an id"),
        ({'sbdd_dir': None}, "'sbdd_dir' must be a string, got None"),
        ({'mean': (1, 2)}, "'mean' must be 3 numbers"),
        ({'mean': (1, 2, float('1e999'))}, 'param_str'),
        ({'mean': 'abc'}, "'mean' must be 3 numbers, got 'abc'"),
        ({'mean': (1, 2, True)}, "'mean' must be 3 numbers"),
        ({'seed': '1337'}, "'seed' must be a whole number"),
        ({'randomize': 'no'}, "'randomize' must be True or False"),
    ],
)
def test_wrong_params_are_named(sbd, changed, message):
    params = {'sbdd_dir': str(sbd), 'split': 'train', 'mean': voc.MEAN, 'seed': 1, **changed}
    with pytest.raises(CaffeError) as error:
        make(voc.SBDDSegDataLayer, **params)
    assert message in str(error.value) and 'SBDDSegDataLayer' in str(error.value)


def test_missing_params_are_named(sbd):
    for key in ('sbdd_dir', 'split'):
        params = {'sbdd_dir': str(sbd), 'split': 'train'}
        del params[key]
        with pytest.raises(CaffeError, match=f"SBDDSegDataLayer: param_str lacks '{key}'"):
            make(voc.SBDDSegDataLayer, **params)


@pytest.mark.parametrize('bottoms, tops', [(0, 1), (0, 3), (1, 2)])
def test_two_tops_and_no_bottom_are_expected(sbd, bottoms, tops):
    layer = voc.SBDDSegDataLayer()
    layer.param_str = repr({'sbdd_dir': str(sbd), 'split': 'train'})
    with pytest.raises(CaffeError, match=f'2 tops .* got {tops} and {bottoms}'):
        layer.setup([Blob() for _ in range(bottoms)], [Blob() for _ in range(tops)])


# seg11valid.


def test_seg11valid_is_val_without_sbd_train_in_val_s_order(voc_tree, sbd):
    (sbd / 'train.txt').write_text(f'{IDS[1]}\nother')
    assert voc.seg11valid(voc_tree, sbd, expected=2) == [IDS[0], IDS[2]]
    assert voc.seg11valid(voc_tree, sbd, expected=None) == [IDS[0], IDS[2]]


def test_seg11valid_of_another_count_is_refused(voc_tree, sbd):
    (sbd / 'train.txt').write_text(IDS[1])
    with pytest.raises(CaffeError) as error:
        voc.seg11valid(voc_tree, sbd)
    for part in (
        str(voc_tree / 'ImageSets/Segmentation/val.txt'),
        str(sbd / 'train.txt'),
        'leaves 2 images, 736 expected',
    ):
        assert part in str(error.value)
    (sbd / 'train.txt').write_text('\n'.join(IDS))
    with pytest.raises(CaffeError, match='leaves 0 images'):
        voc.seg11valid(voc_tree, sbd, expected=None)


def test_official_count_is_the_fact():
    facts = json.loads((FACTS / 'datasets.json').read_text())
    assert facts['seg11valid']['images'] == voc.SEG11VALID_IMAGES


def test_layer_takes_seg11valid_from_the_file_or_makes_it(voc_tree, sbd):
    (sbd / 'train.txt').write_text(IDS[1])
    with pytest.raises(CaffeError, match="seg11valid.txt: no such file; .*'sbdd_dir'"):
        voc_layer(voc_tree, 'seg11valid')
    with pytest.raises(CaffeError, match='736 expected'):
        voc_layer(voc_tree, 'seg11valid', sbdd_dir=str(sbd))
    layer, tops = voc_layer(voc_tree, 'seg11valid', sbdd_dir=str(sbd), expected=None)
    assert fed(layer, tops, 3) == [IDS[0], IDS[2], IDS[0]]
    (voc_tree / 'ImageSets/Segmentation/seg11valid.txt').write_text(IDS[1])
    layer, tops = voc_layer(voc_tree, 'seg11valid', sbdd_dir=str(sbd))
    assert fed(layer, tops, 2) == [IDS[1]] * 2


# Bad input.


def test_missing_files_are_named(sbd, voc_tree, tmp_path, monkeypatch):
    with pytest.raises(CaffeError, match='none/train.txt: no such file'):
        sbd_layer(tmp_path / 'none')
    with pytest.raises(CaffeError, match='Segmentation/test.txt: no such file'):
        voc_layer(voc_tree, 'test')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CaffeError, match='^elsewhere/train.txt: no such file .looked from /'):
        sbd_layer('elsewhere')
    (sbd / 'img' / f'{IDS[0]}.jpg').unlink()
    with pytest.raises(CaffeError, match=f'img/{IDS[0]}.jpg: no such file'):
        sbd_layer(sbd, 'val')
    (voc_tree / 'SegmentationClass' / f'{IDS[0]}.png').unlink()
    with pytest.raises(CaffeError, match=f'SegmentationClass/{IDS[0]}.png: no such file'):
        voc_layer(voc_tree)
    (voc_tree / 'SegmentationClass' / f'{IDS[0]}.png').mkdir()
    with pytest.raises(CaffeError, match=f'{IDS[0]}.png: a folder'):
        voc_layer(voc_tree)


GIF = b'GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;'
BROKEN = {
    'empty': lambda whole: b'',
    'truncated': lambda whole: whole[: len(whole) * 3 // 5],
    'head only': lambda whole: whole[:20],
    'random': lambda whole: np.random.RandomState(0).bytes(len(whole)),
    'of another kind': lambda whole: GIF,
}


@pytest.mark.parametrize('damage', BROKEN)
@pytest.mark.parametrize(
    'tree, make_layer, file',
    [
        ('sbd', sbd_layer, f'img/{IDS[0]}.jpg'),
        ('sbd', sbd_layer, f'cls/{IDS[0]}.mat'),
        ('voc_tree', voc_layer, f'JPEGImages/{IDS[0]}.jpg'),
        ('voc_tree', voc_layer, f'SegmentationClass/{IDS[0]}.png'),
    ],
)
def test_broken_files_are_named(tree, make_layer, file, damage, request):
    root = request.getfixturevalue(tree)
    whole = (root / file).read_bytes()
    (root / file).write_bytes(BROKEN[damage](whole))
    with pytest.raises(CaffeError) as error:
        make_layer(root, 'val')
    assert str(root / file) in str(error.value)


def test_labels_of_colours_are_refused(voc_tree):
    path = voc_tree / 'SegmentationClass' / f'{IDS[0]}.png'
    Image.fromarray(picture(IDS[0])).save(path)
    with pytest.raises(CaffeError, match=r'png: PNG of mode RGB, must be palette \(P\) or grey'):
        voc_layer(voc_tree)


def test_label_of_another_size_is_refused(voc_tree):
    path = voc_tree / 'SegmentationClass' / f'{IDS[0]}.png'
    save_label(path, labels_of(IDS[0])[:, 1:])
    with pytest.raises(CaffeError, match=r'label of 6 x 8 .*, its image is 6 x 9'):
        voc_layer(voc_tree)


@pytest.mark.parametrize('value', [21, 254])
def test_label_outside_the_classes_is_refused(voc_tree, value):
    path = voc_tree / 'SegmentationClass' / f'{IDS[0]}.png'
    labels = labels_of(IDS[0])
    labels[4, 7] = value
    save_label(path, labels)
    with pytest.raises(CaffeError, match=f'image {IDS[0]} has label {value} at row 4, column 7'):
        voc_layer(voc_tree)


@pytest.mark.parametrize(
    'content, message',
    [
        ({'other': np.eye(3)}, 'it has no variable GTcls'),
        ({'GTcls': np.eye(3)}, 'a struct with field Segmentation expected'),
        ({'GTcls': {'CategoriesPresent': np.eye(3)}}, 'it has no field Segmentation'),
        ({'GTcls': {'Segmentation': 'abc'}}, 'real numbers expected'),
        ({'GTcls': {'Segmentation': np.ones((6, 9)) * 1j}}, 'real numbers expected'),
        ({'GTcls': {'Segmentation': np.zeros((6, 9, 2))}}, 'two dimensions expected, there are 3'),
        ({'GTcls': {'Segmentation': np.full((6, 9), 2.5)}}, f'image {IDS[0]} has label 2.5'),
        ({'GTcls': {'Segmentation': np.full((6, 9), np.nan)}}, f'image {IDS[0]} has label nan'),
        ({'GTcls': {'Segmentation': np.full((6, 9), -1, np.int8)}}, f'image {IDS[0]} has label -1'),
        ({'GTcls': {'Segmentation': np.zeros((9, 6), np.uint8)}}, 'label of 9 x 6'),
    ],
)
def test_mat_files_without_labels_are_refused(sbd, content, message):
    path = sbd / 'cls' / f'{IDS[0]}.mat'
    scipy.io.savemat(path, content)
    with pytest.raises(CaffeError) as error:
        sbd_layer(sbd, 'val')
    assert str(path) in str(error.value) and message in str(error.value)


# In a net.


def net_file(folder, params):
    path = folder / 'net.prototxt'
    path.write_text(
        'layer { name: "data" type: "Python" top: "data" top: "label" python_param { '
        f'module: "voc_layers" layer: "SBDDSegDataLayer" param_str: "{params}" }} }}'
    )
    return path


def test_official_prototxts_lead_to_these_layers(sbd):
    net = caffe_port.Net(
        str(net_file(sbd, {'sbdd_dir': str(sbd), 'split': 'val'})), caffe_port.TEST
    )
    for name in IDS + IDS[:1]:
        net.forward()
        np.testing.assert_array_equal(net.blobs['label'].data[0, 0], labels_of(name))


def test_errors_bear_the_layer_s_name(sbd):
    with pytest.raises(CaffeError, match=r'data \(Python\): SBDDSegDataLayer: param_str lacks'):
        caffe_port.Net(str(net_file(sbd, {'split': 'val'})), caffe_port.TEST)
