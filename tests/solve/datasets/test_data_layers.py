"""Laws of all data layers: what they feed, in which order, and what they refuse."""

import random

import numpy as np
import pytest
from PIL import Image

import caffe_port
from caffe_port.errors import CaffeError
from solve.datasets import nyud, pascalcontext, siftflow, voc
from tests.solve.feeding import (
    BROKEN,
    IDS,
    KINDS,
    SIZES,
    Tree,
    facts,
    fed,
    make,
    official_params,
    step,
)


@pytest.fixture(params=KINDS)
def tree(request, tmp_path):
    return Tree(request.param, tmp_path)


@pytest.fixture
def tree_of(tmp_path):
    return lambda kind: Tree(kind, tmp_path)


FILES = [(kind, top) for kind, each in KINDS.items() for top in each.tops]
LABELS = [(kind, top) for kind, each in KINDS.items() for top in each.labels]


@pytest.mark.parametrize(
    'found, data, key',
    [
        (voc.CLASSES, 'voc', 'classes'),
        (voc.MEAN, 'voc', 'mean_bgr'),
        (voc.SEG11VALID_IMAGES, 'seg11valid', 'images'),
        (nyud.CLASSES, 'nyud', 'classes'),
        (nyud.MEAN, 'nyud', 'mean_bgr'),
        (nyud.MEAN_HHA, 'nyud', 'mean_hha'),
        (nyud.MEAN_LOG_DEPTH, 'nyud', 'mean_log_depth'),
        (siftflow.SEMANTIC, 'siftflow', 'semantic'),
        (siftflow.GEOMETRIC, 'siftflow', 'geometric'),
        (siftflow.MEAN, 'siftflow', 'mean_bgr'),
        (pascalcontext.CLASSES, 'pascalcontext', 'classes'),
        (pascalcontext.MEAN, 'pascalcontext', 'mean_bgr'),
        (pascalcontext.ANNOTATED_AS, 'pascalcontext', 'renamings'),
    ],
)
def test_tables_are_the_facts(found, data, key):
    assert (list(found) if isinstance(found, tuple) else found) == facts(data)[key]


# What the tops hold.


def test_a_picture_is_fed_as_bgr_minus_mean(tree):
    layer, blobs = tree.make()
    top = next(iter(tree.kind.tops))
    data = 'voc' if tree.kind.facts == 'sbd' else tree.kind.facts
    for name in [*IDS, IDS[0]]:
        assert step(layer, blobs) == name
        rgb = np.array(Image.open(tree.path(tree.kind.tops[top], name)))
        expected = (rgb[:, :, ::-1] - np.array(facts(data)['mean_bgr'])).astype(np.float32)
        assert blobs[0].shape == (1, 3, *SIZES[name])
        np.testing.assert_array_equal(blobs[0].data[0].transpose(1, 2, 0), expected)


@pytest.mark.parametrize('kind, top', LABELS)
def test_every_stored_number_becomes_its_class(tree_of, kind, top):
    tree = tree_of(kind)
    layer, blobs = tree.make()
    blob, classes = blobs[layer.top_names.index(top)], tree.kind.labels[top].classes
    for name in IDS:
        step(layer, blobs)
        assert blob.shape == (1, 1, *SIZES[name]) and blob.data.dtype == np.float32
        stored = tree.stored(top, name)
        assert set(np.unique(stored)) == set(classes)
        assert all(blob.data[0, 0][at] == classes[number] for at, number in np.ndenumerate(stored))


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'nyud'])
def test_mean_is_param_str_s(tree_of, kind):
    tree = tree_of(kind)
    layer, blobs = tree.make(mean=(1, 2, 3))
    step(layer, blobs)
    rgb = np.array(Image.open(tree.path('image', IDS[0]))).astype(int)
    np.testing.assert_array_equal(blobs[0].data[0, 0], rgb[:, :, 2] - 1)
    np.testing.assert_array_equal(blobs[0].data[0, 2], rgb[:, :, 0] - 3)


def test_train_is_drawn_as_python_2_draws_and_other_splits_run_in_order(tree):
    train, other = tree.kind.splits
    rng = random.Random(1337)
    assert fed(*tree.make(train), 12) == [IDS[int(rng.random() * 3)] for _ in range(12)]
    assert fed(*tree.make(other), 7) == (IDS * 3)[:7]
    assert fed(*tree.make(train, randomize=False), 4) == (IDS * 2)[:4]


# As nets name them.


@pytest.mark.parametrize(
    'kind, count', dict(sbd=5, voc=5, nyud=8, siftflow=6, pascalcontext=6).items()
)
def test_official_param_strs_are_read(tree_of, kind, count):
    tree = tree_of(kind)
    if kind == 'voc':
        tree.path('split', 'seg11valid').write_text(IDS[1])
    found = official_params(tree.kind.release, tree.kind.layer.__name__)
    assert len(found) == count
    for params, tops in found:
        places = {name: path for name, path in tree.params.items() if name != 'tops'}
        assert step(*make(tree.kind.layer, tops, **{**params, **places})) in IDS


def test_official_prototxts_lead_to_the_layer(tree, tmp_path):
    params = {**tree.params, 'split': tree.kind.splits[1], 'seed': 1337}
    tops = ' '.join(f'top: "{top}"' for top in tree.kind.tops)
    path = tmp_path / 'net.prototxt'
    path.write_text(
        f'layer {{ name: "data" type: "Python" {tops} python_param {{ '
        f'module: "{tree.kind.release}" layer: "{tree.kind.layer.__name__}" '
        f'param_str: "{params}" }} }}'
    )
    net = caffe_port.Net(str(path), caffe_port.TEST)
    for name in IDS:
        net.forward()
        for top in tree.kind.labels:
            assert net.blobs[top].shape == (1, 1, *SIZES[name])


@pytest.mark.parametrize('bottoms, tops', [(0, -1), (0, 1), (1, 0)])
def test_other_numbers_of_tops_and_bottoms_are_refused(tree, bottoms, tops):
    count = len(tree.kind.tops)
    layer = tree.kind.layer()
    layer.param_str = repr({**tree.params, 'split': tree.kind.splits[1]})
    names = ', '.join(tree.kind.tops)
    with pytest.raises(
        CaffeError, match=rf'{count} tops \({names}\) .* got {count + tops} and {bottoms}'
    ):
        layer.setup([None] * bottoms, [None] * (count + tops))


# Mistakes.


@pytest.mark.parametrize('damage', BROKEN)
@pytest.mark.parametrize('kind, top', FILES)
def test_a_broken_file_is_named(tree_of, kind, top, damage):
    tree = tree_of(kind)
    path = tree.path(tree.kind.tops[top], IDS[0])
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    with pytest.raises(CaffeError) as error:
        tree.make()
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize('kind, top', FILES)
def test_a_missing_file_is_named(tree_of, kind, top):
    tree = tree_of(kind)
    path = tree.path(tree.kind.tops[top], IDS[0])
    path.unlink()
    with pytest.raises(CaffeError, match=f'{path}: no such file'):
        tree.make()
    path.mkdir()
    with pytest.raises(CaffeError, match=f'{path}: a folder, a file expected'):
        tree.make()


def test_a_missing_list_is_named(tree, tmp_path, monkeypatch):
    with pytest.raises(CaffeError, match=f'{tree.path("split", "none")}: no such file'):
        tree.make('none')
    with pytest.raises(CaffeError, match="'../train' is not an id"):
        tree.make('../train')
    monkeypatch.chdir(tmp_path)
    places = dict.fromkeys(tree.kind.places, 'elsewhere')
    with pytest.raises(CaffeError, match='^elsewhere/.*: no such file .looked from /'):
        tree.make(**places)


@pytest.mark.parametrize('kind, top', [each for each in FILES if each[1] not in ('data', 'color')])
def test_a_file_of_another_size_than_its_picture_is_refused(tree_of, kind, top):
    tree = tree_of(kind)
    path, other = (tree.path(tree.kind.tops[top], name) for name in IDS[:2])
    path.write_bytes(other.read_bytes())
    with pytest.raises(CaffeError, match=f'{path}: .*23 x 21 .*20 x 25'):
        tree.make()


@pytest.mark.parametrize(
    'kind, top, value, expected',
    [
        ('sbd', 'label', 21, '0..20 and 255 (void)'),
        ('sbd', 'label', 2.5, '0..20 and 255 (void)'),
        ('sbd', 'label', np.nan, '0..20 and 255 (void)'),
        ('sbd', 'label', -1, '0..20 and 255 (void)'),
        ('voc', 'label', 254, '0..20 and 255 (void)'),
        ('nyud', 'label', 41, '0 (void) or 1..40'),
        ('nyud', 'label', 255, '0 (void) or 1..40'),
        ('nyud', 'label', 1.5, '0 (void) or 1..40'),
        ('siftflow', 'sem', 34, '0 (void) or 1..33'),
        ('siftflow', 'sem', -1, '0 (void) or 1..33'),
        ('siftflow', 'geo', 4, '-1 or 0 (void) or 1..3'),
        ('siftflow', 'geo', -2, '-1 or 0 (void) or 1..3'),
        ('siftflow', 'geo', 0.5, '-1 or 0 (void) or 1..3'),
        ('pascalcontext', 'label', 460, 'a number of labels.txt, or 0,'),
        ('pascalcontext', 'label', 65535, 'a number of labels.txt, or 0,'),
    ],
)
def test_a_label_without_class_is_named(tree_of, kind, top, value, expected):
    tree = tree_of(kind)
    labels = tree.stored(top, IDS[0]).astype(np.uint8 if kind == 'voc' else float)
    labels[11, 7] = value
    path = tree.path(tree.kind.tops[top], IDS[0])
    tree.kind.labels[top].save(path, labels)
    with pytest.raises(CaffeError) as error:
        tree.make()
    assert str(error.value) == (
        f'{path}: image {path.stem} has label {labels[11, 7]} at row 11, column 7; '
        f'{expected} expected'
    )
