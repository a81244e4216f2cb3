"""The SIFT Flow data layer: an image and two labels, in which order, and what is refused."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

import caffe_port
import solve.datasets  # noqa: F401  for the release's module names
from caffe_port.errors import CaffeError
from solve.datasets import siftflow
from tests.solve.feeding import BROKEN, facts, fed, make, noise, official_params, step

IDS = ['coast_natu975', 'coast_arnat59', 'street_par151']
HEIGHT, WIDTH = 6, 9
SEM = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 34).astype(np.uint8)
GEO = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 5 - 1).astype(np.int16)


def path_of(root, kind, name):
    suffix = 'jpg' if kind == 'Images' else 'mat'
    return root / kind / 'spatial_envelope_256x256_static_8outdoorcategories' / f'{name}.{suffix}'


@pytest.fixture
def tree(tmp_path):
    for kind in ('Images', 'SemanticLabels', 'GeoLabels'):
        path_of(tmp_path, kind, IDS[0]).parent.mkdir(parents=True)
    for shift, name in enumerate(IDS):
        Image.fromarray(noise(name, HEIGHT, WIDTH, 3)).save(path_of(tmp_path, 'Images', name))
        for kind, labels in (('SemanticLabels', SEM), ('GeoLabels', GEO)):
            scipy.io.savemat(
                path_of(tmp_path, kind, name),
                {'names': np.array(['a', 'b'], object), 'S': np.roll(labels, shift)},
            )
    for split in ('trainval', 'test'):
        (tmp_path / f'{split}.txt').write_text('\n'.join(IDS) + '\n')
    return tmp_path


def layer_of(root, split='test', **params):
    return make(
        siftflow.SIFTFlowSegDataLayer, 3, siftflow_dir=str(root), split=split, seed=1337, **params
    )


def test_tables_are_the_facts():
    known = facts('siftflow')
    assert list(siftflow.SEMANTIC) == known['semantic']
    assert list(siftflow.GEOMETRIC) == known['geometric']
    assert list(siftflow.MEAN) == known['mean_bgr']
    for name in siftflow.UNLABELLED:
        assert name in known['note']


def test_tops_hold_the_image_and_both_labels(tree):
    layer, blobs = layer_of(tree)
    for shift, name in enumerate(IDS):
        assert step(layer, blobs) == name
        data, sem, geo = (blob.data[0] for blob in blobs)
        pixels = np.array(Image.open(path_of(tree, 'Images', name))).astype(float)
        for channel in range(3):
            mean = facts('siftflow')['mean_bgr'][channel]
            np.testing.assert_allclose(data[channel], pixels[:, :, 2 - channel] - mean, rtol=1e-6)
        for (y, x), number in np.ndenumerate(np.roll(SEM, shift)):
            assert sem[0, y, x] == (255 if number == 0 else number - 1)
        for (y, x), number in np.ndenumerate(np.roll(GEO, shift)):
            assert geo[0, y, x] == (255 if number in (-1, 0) else number - 1)
        assert all(blob.data.dtype == np.float32 for blob in blobs)


@pytest.mark.parametrize('dtype', [np.float64, np.int8, np.int32])
def test_labels_may_be_stored_in_any_type(tree, dtype):
    scipy.io.savemat(path_of(tree, 'GeoLabels', IDS[0]), {'S': GEO.astype(dtype)})
    layer, blobs = layer_of(tree)
    step(layer, blobs)
    assert blobs[2].data[0, 0, 0, :5].tolist() == [255, 255, 0, 1, 2]


def test_official_param_strs_are_read(tree):
    found = official_params('siftflow_layers')
    assert len(found) == 6
    for params, tops in found:
        layer, blobs = make(
            siftflow.SIFTFlowSegDataLayer, tops, **{**params, 'siftflow_dir': str(tree)}
        )
        assert step(layer, blobs) in IDS


def test_images_without_annotations_are_left_out(tree):
    lines = [IDS[0], 'highway_bost181', IDS[1], 'street_urb506', IDS[2]]
    (tree / 'test.txt').write_text('\n'.join(lines))
    assert fed(*layer_of(tree), 4) == [*IDS, IDS[0]]
    (tree / 'test.txt').write_text('street_urb506\n')
    with pytest.raises(CaffeError, match='test.txt: no images but highway_bost181 and'):
        layer_of(tree)


def test_left_out_images_do_not_take_part_in_drawing(tree):
    plain = fed(*layer_of(tree, 'trainval'), 12)
    (tree / 'trainval.txt').write_text('\n'.join(['street_urb506', *IDS, 'highway_bost181']))
    assert fed(*layer_of(tree, 'trainval'), 12) == plain
    assert len(set(plain)) == 3 and plain[:3] != IDS


@pytest.mark.parametrize(
    'kind, value, expected',
    [
        ('SemanticLabels', 34, '0 .void. or 1..33'),
        ('SemanticLabels', -1, '0 .void. or 1..33'),
        ('SemanticLabels', 255, '0 .void. or 1..33'),
        ('GeoLabels', 4, '-1 or 0 .void. or 1..3'),
        ('GeoLabels', -2, '-1 or 0 .void. or 1..3'),
        ('GeoLabels', 0.5, '-1 or 0 .void. or 1..3'),
    ],
)
def test_labels_outside_the_classes_are_refused(tree, kind, value, expected):
    labels = np.ones((HEIGHT, WIDTH))
    labels[5, 2] = value
    path = path_of(tree, kind, IDS[0])
    scipy.io.savemat(path, {'S': labels})
    with pytest.raises(
        CaffeError,
        match=f'{kind}/.*{IDS[0]} has label {value:g}.* at row 5, column 2; {expected} expected',
    ):
        layer_of(tree)


@pytest.mark.parametrize('kind', ['SemanticLabels', 'GeoLabels'])
def test_labels_of_another_size_are_refused(tree, kind):
    scipy.io.savemat(path_of(tree, kind, IDS[0]), {'S': SEM.T % 4})
    with pytest.raises(CaffeError, match=f'{kind}/.*label of 9 x 6 .*, its image is 6 x 9'):
        layer_of(tree)


@pytest.mark.parametrize('damage', BROKEN)
@pytest.mark.parametrize('kind', ['Images', 'SemanticLabels', 'GeoLabels'])
def test_broken_files_are_named(tree, kind, damage):
    path = path_of(tree, kind, IDS[0])
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    with pytest.raises(CaffeError) as error:
        layer_of(tree)
    assert str(path) in str(error.value)


def test_missing_files_are_named(tree):
    with pytest.raises(CaffeError, match='/train.txt: no such file'):
        layer_of(tree, 'train')
    path_of(tree, 'GeoLabels', IDS[0]).unlink()
    with pytest.raises(CaffeError, match=f'GeoLabels/.*{IDS[0]}.mat: no such file'):
        layer_of(tree)


def test_three_tops_are_expected(tree):
    with pytest.raises(CaffeError, match=r'3 tops \(data, sem, geo\) .* got 2'):
        make(siftflow.SIFTFlowSegDataLayer, 2, siftflow_dir=str(tree), split='test')


def test_official_prototxts_lead_to_this_layer(tree, tmp_path):
    params = {'siftflow_dir': str(tree), 'split': 'test', 'seed': 1337}
    path = tmp_path / 'net.prototxt'
    path.write_text(
        'layer { name: "data" type: "Python" top: "data" top: "sem" top: "geo" '
        'python_param { module: "siftflow_layers" layer: "SIFTFlowSegDataLayer" '
        f'param_str: "{params}" }} }}'
    )
    net = caffe_port.Net(str(path), caffe_port.TEST)
    net.forward()
    assert net.blobs['geo'].shape == (1, 1, HEIGHT, WIDTH)
