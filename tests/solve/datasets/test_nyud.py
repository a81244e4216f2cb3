"""The NYUDv2 data layer: what each top holds, in which order, and what is refused."""

import math
import random

import numpy as np
import pytest
import scipy.io
from PIL import Image

import caffe_port
import solve.datasets  # noqa: F401  for the release's module names
from caffe_port.errors import CaffeError
from solve.datasets import nyud
from tests.solve.feeding import BROKEN, facts, fed, make, noise, official_params, step

IDS = ['5003', '5001', '6449']
SIZES = {'5003': (6, 9), '5001': (8, 5), '6449': (7, 7)}  # height, width
ALL = ['color', 'depth', 'hha', 'label']


def depth_of(name):
    return 1 + noise(name + 'depth', *SIZES[name]).astype(np.uint16) * 257 // 2


def stored_labels(name):
    height, width = SIZES[name]
    return (np.arange(height * width).reshape(height, width) % 41).astype(np.uint8)


@pytest.fixture
def tree(tmp_path):
    """An NYUDv2 tree of three rooms, each of its own size."""
    for name in IDS:
        for file in nyud.FILES.values():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        for top in ('color', 'hha'):
            Image.fromarray(noise(name + top, *SIZES[name], 3)).save(path_of(tmp_path, top, name))
        Image.fromarray(depth_of(name)).save(path_of(tmp_path, 'depth', name))
        scipy.io.savemat(path_of(tmp_path, 'label', name), {'segmentation': stored_labels(name)})
    for split in ('trainval', 'test'):
        (tmp_path / f'{split}.txt').write_text('\n'.join(IDS) + '\n')
    return tmp_path


def path_of(root, top, name):
    return root / nyud.FILES[top].format(name)


def layer_of(root, tops=ALL, split='test', **params):
    return make(
        nyud.NYUDSegDataLayer,
        len(tops),
        nyud_dir=str(root),
        split=split,
        tops=tops,
        seed=1337,
        **params,
    )


def test_tables_are_the_facts():
    known = facts('nyud')
    assert list(nyud.CLASSES) == known['classes']
    assert list(nyud.MEAN) == known['mean_bgr'] and list(nyud.MEAN_HHA) == known['mean_hha']
    assert known['mean_log_depth'] == nyud.MEAN_LOG_DEPTH
    for top, file in nyud.FILES.items():
        assert known['layout'][top].startswith('<nyud_dir>/' + file.replace('{}', '<id>'))


def test_each_top_holds_its_modality(tree):
    layer, blobs = layer_of(tree)
    means = facts('nyud')
    for _ in range(4):
        name = step(layer, blobs)
        color, depth, hha, label = (blob.data[0] for blob in blobs)
        assert [blob.shape for blob in blobs] == [(1, n, *SIZES[name]) for n in (3, 1, 3, 1)]
        assert all(blob.data.dtype == np.float32 for blob in blobs)
        stored = noise(name + 'color', *SIZES[name], 3).astype(float)
        for channel in range(3):
            np.testing.assert_allclose(
                color[channel], stored[:, :, 2 - channel] - means['mean_bgr'][channel], rtol=1e-6
            )
        stored = noise(name + 'hha', *SIZES[name], 3).astype(float)
        for channel in range(3):
            np.testing.assert_allclose(
                hha[channel], stored[:, :, channel] - means['mean_hha'][channel], rtol=1e-6
            )
        for (y, x), millimetres in np.ndenumerate(depth_of(name)):
            assert depth[0, y, x] == pytest.approx(math.log(millimetres) - 7.844, abs=2e-6)
        for (y, x), number in np.ndenumerate(stored_labels(name)):
            assert label[0, y, x] == (255 if number == 0 else number - 1)


@pytest.mark.parametrize(
    'tops', [['label'], ['hha', 'label'], ['label', 'depth', 'color'], ('color', 'hha', 'label')]
)
def test_tops_come_by_name_in_the_order_asked_for(tree, tops):
    whole, chosen = layer_of(tree), layer_of(tree, tops)
    step(*whole)
    step(*chosen)
    for top, blob in zip(tops, chosen[1]):
        np.testing.assert_array_equal(blob.data, whole[1][ALL.index(top)].data)


def test_only_the_files_asked_for_are_needed(tree):
    for name in IDS:
        path_of(tree, 'depth', name).unlink()
        path_of(tree, 'color', name).unlink()
    assert fed(*layer_of(tree, ['hha', 'label']), 3) == IDS
    with pytest.raises(CaffeError, match='depth/img_5003.png: no such file'):
        layer_of(tree, ['hha', 'depth', 'label'])


def test_official_param_strs_are_read(tree):
    found = official_params('nyud_layers')
    assert len(found) == 8
    for params, tops in found:
        layer, blobs = make(nyud.NYUDSegDataLayer, tops, **{**params, 'nyud_dir': str(tree)})
        assert step(layer, blobs) in IDS


def test_trainval_is_drawn_from_the_seed_and_test_runs_in_order(tree):
    rng = random.Random(1337)
    assert fed(*layer_of(tree, split='trainval'), 9) == [
        IDS[int(rng.random() * 3)] for _ in range(9)
    ]
    assert fed(*layer_of(tree, split='test'), 4) == [*IDS, IDS[0]]
    assert fed(*layer_of(tree, split='trainval', randomize=False), 4) == [*IDS, IDS[0]]


@pytest.mark.parametrize('tops', [[], ['colour'], ['color', 3], 'color', None, [['color']]])
def test_tops_of_other_names_are_refused(tree, tops):
    with pytest.raises(
        CaffeError,
        match="NYUDSegDataLayer: param_str: 'tops' must be a list of color, depth, hha, label",
    ):
        make(nyud.NYUDSegDataLayer, 1, nyud_dir=str(tree), split='test', tops=tops)


def test_tops_of_another_number_are_refused(tree):
    with pytest.raises(CaffeError, match=r'2 tops \(depth, label\) .* got 3'):
        make(nyud.NYUDSegDataLayer, 3, nyud_dir=str(tree), split='test', tops=['depth', 'label'])


# Depth.


def test_depth_has_all_sixteen_bits(tree):
    depth = depth_of(IDS[0])
    depth[0, :3] = 1, 256, 65535
    Image.fromarray(depth).save(path_of(tree, 'depth', IDS[0]))
    layer, blobs = layer_of(tree, ['depth', 'label'])
    layer.forward([], blobs)
    np.testing.assert_allclose(
        blobs[0].data[0, 0, 0, :3] + np.float32(7.844), np.log([1, 256, 65535]), atol=2e-6
    )


def test_depth_without_logarithm_is_refused(tree):
    depth = depth_of(IDS[0])
    depth[4, 7] = 0
    path = path_of(tree, 'depth', IDS[0])
    Image.fromarray(depth).save(path)
    with pytest.raises(CaffeError) as error:
        layer_of(tree)
    assert str(path) in str(error.value) and 'depth 0 at row 4, column 7' in str(error.value)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'P', 'LA', '1'])
def test_depth_of_other_than_sixteen_bits_is_refused(tree, mode):
    path = path_of(tree, 'depth', IDS[0])
    Image.fromarray(noise('x', *SIZES[IDS[0]])).convert(mode).save(path)
    with pytest.raises(CaffeError, match=f'img_5003.png: PNG of mode {mode}, .* 16 bits'):
        layer_of(tree)


# Bad input.


@pytest.mark.parametrize('value', [41, 254, 255])
def test_labels_outside_the_classes_are_refused(tree, value):
    labels = stored_labels(IDS[0])
    labels[3, 1] = value
    scipy.io.savemat(path_of(tree, 'label', IDS[0]), {'segmentation': labels})
    with pytest.raises(
        CaffeError,
        match=f'img_5003.mat: image img_5003 has label {value} at '
        r'row 3, column 1; 0 \(void\) or 1..40 expected',
    ):
        layer_of(tree)


@pytest.mark.parametrize(
    'content, message',
    [
        ({'labels': np.eye(3)}, 'it has no variable segmentation'),
        ({'segmentation': np.full((6, 9), np.nan)}, 'has label nan'),
        ({'segmentation': np.full((6, 9), -1, np.int8)}, 'has label -1'),
        ({'segmentation': np.full((6, 9), 1.5)}, 'has label 1.5'),
    ],
)
def test_mat_files_without_labels_are_refused(tree, content, message):
    scipy.io.savemat(path_of(tree, 'label', IDS[0]), content)
    with pytest.raises(CaffeError, match=f'img_5003.mat: .*{message}'):
        layer_of(tree)


@pytest.mark.parametrize('top', ['depth', 'hha', 'label'])
def test_modalities_of_another_size_are_refused(tree, top):
    path = path_of(tree, top, IDS[0])
    path.write_bytes(path_of(tree, top, IDS[1]).read_bytes())
    with pytest.raises(CaffeError) as error:
        layer_of(tree)
    assert f'{path}: 8 x 5 (height x width)' in str(error.value)
    assert f'{path_of(tree, "color", IDS[0])} is 6 x 9' in str(error.value)


@pytest.mark.parametrize('damage', BROKEN)
@pytest.mark.parametrize('top', ALL)
def test_broken_files_are_named(tree, top, damage):
    path = path_of(tree, top, IDS[0])
    path.write_bytes(BROKEN[damage](path.read_bytes()))
    with pytest.raises(CaffeError) as error:
        layer_of(tree)
    assert str(path) in str(error.value)


def test_missing_lists_are_named(tree):
    with pytest.raises(CaffeError, match='/val.txt: no such file'):
        layer_of(tree, split='val')
    with pytest.raises(CaffeError, match="'../trainval' is not an id"):
        layer_of(tree, split='../trainval')


def test_official_prototxts_lead_to_this_layer(tree, tmp_path):
    params = {'nyud_dir': str(tree), 'split': 'test', 'tops': ['depth', 'label'], 'seed': 1337}
    path = tmp_path / 'net.prototxt'
    path.write_text(
        'layer { name: "data" type: "Python" top: "depth" top: "label" python_param { '
        f'module: "nyud_layers" layer: "NYUDSegDataLayer" param_str: "{params}" }} }}'
    )
    net = caffe_port.Net(str(path), caffe_port.TEST)
    net.forward()
    assert net.blobs['depth'].shape == (1, 1, *SIZES[IDS[0]])
