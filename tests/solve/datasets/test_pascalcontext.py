"""The PASCAL-Context data layer: annotations become 59 classes, and what is refused."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

import caffe_port
import solve.datasets  # noqa: F401  for the release's module names
from caffe_port.errors import CaffeError
from solve.datasets import pascalcontext
from tests.solve.feeding import BROKEN, facts, fed, make, noise, official_params, step

IDS = ['2008_000002', '2007_000032', '2010_005000']
HEIGHT, WIDTH = 20, 25
KNOWN = facts('pascalcontext')
ANNOTATED, CLASSES, RENAMED = (KNOWN[key] for key in ('annotated_classes', 'classes', 'renamings'))
# Every annotation number and 0, as 16 bits, as the real files hold them.
LABEL_MAP = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 460).astype(np.uint16)


def numbered(names):
    return ''.join(f'{number}: {name}\n' for number, name in enumerate(names, 1))


def image_of(root, name):
    return root / 'pascal/VOC2010/JPEGImages' / f'{name}.jpg'


def label_of(root, name):
    return root / 'context/trainval' / f'{name}.mat'


@pytest.fixture
def tree(tmp_path):
    lists = tmp_path / 'pascal/VOC2010/ImageSets/Main'
    for folder in (lists, image_of(tmp_path, '').parent, label_of(tmp_path, '').parent):
        folder.mkdir(parents=True)
    for split in ('train', 'val'):
        (lists / f'{split}.txt').write_text('\n'.join(IDS) + '\n')
    (tmp_path / 'context/labels.txt').write_text(numbered(ANNOTATED))
    (tmp_path / 'context/59_labels.txt').write_text(numbered(CLASSES[1:]))
    for shift, name in enumerate(IDS):
        Image.fromarray(noise(name, HEIGHT, WIDTH, 3)).save(image_of(tmp_path, name))
        scipy.io.savemat(
            label_of(tmp_path, name), {'LabelMap': np.roll(LABEL_MAP, shift)}, do_compression=True
        )
    return tmp_path


def layer_of(root, split='val', **params):
    return make(
        pascalcontext.PASCALContextSegDataLayer,
        2,
        voc_dir=str(root / 'pascal'),
        context_dir=str(root / 'context'),
        split=split,
        seed=1337,
        **params,
    )


def test_tables_are_the_facts():
    assert list(pascalcontext.CLASSES) == CLASSES and len(CLASSES) == 60
    assert list(pascalcontext.MEAN) == KNOWN['mean_bgr']
    assert pascalcontext.ANNOTATED_AS == RENAMED
    assert list(pascalcontext.ANNOTATED) == ANNOTATED


def test_annotations_become_their_class_or_background(tree):
    layer, blobs = layer_of(tree)
    assert fed(layer, blobs, 1) == IDS[:1]
    label, seen = blobs[1].data[0, 0], set()
    for (y, x), number in np.ndenumerate(LABEL_MAP):
        name = ANNOTATED[number - 1].replace(' ', '') if number else None
        expected = [
            index for index, task in enumerate(CLASSES) if index and RENAMED.get(task, task) == name
        ] or [0]
        assert [label[y, x]] == expected
        seen.add(int(label[y, x]))
    assert seen == set(range(60))


def test_the_three_renamed_classes_are_found(tree):
    layer, blobs = layer_of(tree)
    layer.forward([], blobs)
    for task, annotation in (
        ('diningtable', 'table'),
        ('bedcloth', 'bedclothes'),
        ('clothes', 'cloth'),
    ):
        at = ANNOTATED.index(annotation) + 1 == LABEL_MAP
        assert set(blobs[1].data[0, 0][at]) == {CLASSES.index(task)}


def test_data_is_bgr_minus_mean(tree):
    layer, blobs = layer_of(tree)
    for name in IDS:
        assert step(layer, blobs) == name
        pixels = np.array(Image.open(image_of(tree, name))).astype(float)
        for channel in range(3):
            np.testing.assert_allclose(
                blobs[0].data[0, channel],
                pixels[:, :, 2 - channel] - KNOWN['mean_bgr'][channel],
                rtol=1e-6,
            )
        assert all(blob.data.dtype == np.float32 for blob in blobs)


def test_numbers_are_those_of_the_file_not_of_its_lines(tree):
    shuffled = numbered(ANNOTATED).splitlines()[::-1]
    (tree / 'context/labels.txt').write_text('\r\n'.join(shuffled))
    layer, blobs = layer_of(tree)
    layer.forward([], blobs)
    assert blobs[1].data[0, 0, 0, 2] == CLASSES.index('aeroplane')


def test_official_param_strs_are_read(tree):
    found = official_params('pascalcontext_layers')
    assert len(found) == 6
    for params, tops in found:
        places = {'voc_dir': str(tree / 'pascal'), 'context_dir': str(tree / 'context')}
        layer, blobs = make(pascalcontext.PASCALContextSegDataLayer, tops, **{**params, **places})
        assert step(layer, blobs) in IDS


def test_train_is_drawn_and_val_runs_in_order(tree):
    assert fed(*layer_of(tree, 'val'), 4) == [*IDS, IDS[0]]
    drawn = fed(*layer_of(tree, 'train'), 12)
    # The first of 3 that 1337 draws: 0.6177 and 0.5332 of Python's generator.
    assert drawn[:2] == [IDS[1], IDS[1]] and len(set(drawn)) == 3


# Bad input.


@pytest.mark.parametrize(
    'file, change, message',
    [
        (
            'labels.txt',
            lambda text: text.replace('bedclothes', 'sheets'),
            'lacks bedclothes of the 59 classes',
        ),
        (
            'labels.txt',
            lambda text: text.replace('1: accordion', 'accordion'),
            "'number: name' expected, the number from 1 to 65535; got 'accordion'",
        ),
        ('labels.txt', lambda text: text + '0: zero', "got '0: zero'"),
        ('labels.txt', lambda text: text + '-1: less', "got '-1: less'"),
        ('labels.txt', lambda text: text + '65536: more', "got '65536: more'"),
        ('labels.txt', lambda text: text + '9' * 200 + ': more', "got '999"),
        ('labels.txt', lambda text: text + '460:', "got '460:'"),
        (
            'labels.txt',
            lambda text: text + '3: antenna',
            'number 3 is both airconditioner and antenna',
        ),
        ('labels.txt', lambda text: '', 'empty'),
        ('59_labels.txt', lambda text: text.replace('59: wood', ''), 'number 59 is None, wood'),
        ('59_labels.txt', lambda text: text + '60: zebra', 'number 60 is zebra, None expected'),
        (
            '59_labels.txt',
            lambda text: text.replace('2: bicycle', '2: bird').replace('3: bird', '3: bicycle'),
            'number 2 is bird, bicycle expected',
        ),
    ],
)
def test_lists_of_names_that_are_none_are_refused(tree, file, change, message):
    path = tree / 'context' / file
    path.write_text(change(path.read_text()))
    with pytest.raises(CaffeError) as error:
        layer_of(tree)
    assert str(path) in str(error.value) and message in str(error.value)


def test_59_labels_may_have_the_annotation_names(tree):
    path = tree / 'context/59_labels.txt'
    expected = layer_of(tree)
    path.write_text(path.read_text().replace('diningtable', 'table'))
    found = layer_of(tree)
    for layer, blobs in (expected, found):
        layer.forward([], blobs)
    np.testing.assert_array_equal(found[1][1].data, expected[1][1].data)


@pytest.mark.parametrize('value', [460, 65535])
def test_numbers_that_labels_txt_lacks_are_refused(tree, value):
    labels = LABEL_MAP.copy()
    labels[11, 3] = value
    scipy.io.savemat(label_of(tree, IDS[0]), {'LabelMap': labels})
    with pytest.raises(
        CaffeError,
        match=f'{IDS[0]}.mat: image {IDS[0]} has label {value} at '
        'row 11, column 3; a number of labels.txt',
    ):
        layer_of(tree)


def test_labels_of_another_size_are_refused(tree):
    scipy.io.savemat(label_of(tree, IDS[0]), {'LabelMap': LABEL_MAP[1:]})
    with pytest.raises(CaffeError, match='label of 19 x 25 .*, its image is 20 x 25'):
        layer_of(tree)


@pytest.mark.parametrize('damage', BROKEN)
@pytest.mark.parametrize('place', [image_of, label_of])
def test_broken_files_are_named(tree, place, damage):
    path = place(tree, IDS[0])
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    with pytest.raises(CaffeError) as error:
        layer_of(tree)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    'file', ['context/labels.txt', 'context/59_labels.txt', 'pascal/VOC2010/ImageSets/Main/val.txt']
)
def test_missing_files_are_named(tree, file):
    (tree / file).unlink()
    with pytest.raises(CaffeError, match=f'{file}: no such file'):
        layer_of(tree)


def test_official_prototxts_lead_to_this_layer(tree, tmp_path):
    params = {
        'voc_dir': str(tree / 'pascal'),
        'context_dir': str(tree / 'context'),
        'split': 'val',
        'seed': 1337,
    }
    path = tmp_path / 'net.prototxt'
    path.write_text(
        'layer { name: "data" type: "Python" top: "data" top: "label" python_param { '
        'module: "pascalcontext_layers" layer: "PASCALContextSegDataLayer" '
        f'param_str: "{params}" }} }}'
    )
    net = caffe_port.Net(str(path), caffe_port.TEST)
    net.forward()
    assert net.blobs['label'].shape == (1, 1, HEIGHT, WIDTH)
