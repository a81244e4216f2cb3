"""VOC and SBD: colours, kinds of JPEG, and the images that the official nets are scored on."""

import numpy as np
import pytest
from PIL import Image

from caffe_port.errors import CaffeError
from solve.datasets import voc
from solve.datasets.images import read_rgb
from tests.solve.feeding import IDS, Tree, fed, noise, step


@pytest.fixture
def sbd(tmp_path):
    return Tree('sbd', tmp_path)


@pytest.fixture
def voc_tree(tmp_path):
    return Tree('voc', tmp_path)


def test_palette_is_voc_s():
    published = (
        '000000 800000 008000 808000 000080 800080 008080 808080 400000 c00000 408000 c08000 '
        '400080 c00080 408080 c08080 004000 804000 00c000 80c000 004080'
    )
    palette = voc.palette()
    assert palette.dtype == np.uint8 and palette.shape == (256, 3)
    assert palette[:21].tolist() == [[*bytes.fromhex(colour)] for colour in published.split()]
    assert palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


@pytest.mark.parametrize('mode', ['L', 'CMYK'])
def test_grey_and_cmyk_jpegs_become_rgb(sbd, mode):
    path = sbd.path('image', IDS[0])
    Image.fromarray(noise('x', 20, 25, 3)).convert(mode).save(path)
    np.testing.assert_array_equal(read_rgb(path), np.array(Image.open(path).convert('RGB')))
    layer, tops = sbd.make()
    step(layer, tops)
    assert tops[0].shape == (1, 3, 20, 25)


# seg11valid.


def test_seg11valid_is_val_without_sbd_train_in_val_s_order(voc_tree, sbd):
    sbd.path('split', 'train').write_text(f'{IDS[1]}\nother')
    for expected in (2, None):
        found = voc.seg11valid(voc_tree.params['voc_dir'], sbd.params['sbdd_dir'], expected)
        assert found == [IDS[0], IDS[2]]


def test_seg11valid_of_another_count_is_refused(voc_tree, sbd):
    places = voc_tree.params['voc_dir'], sbd.params['sbdd_dir']
    val, train = voc_tree.path('split', 'val'), sbd.path('split', 'train')
    train.write_text(IDS[1])
    with pytest.raises(CaffeError) as error:
        voc.seg11valid(*places)
    for part in (str(val), str(train), 'leaves 2 images, 736 expected'):
        assert part in str(error.value)
    train.write_text('\n'.join(IDS))
    with pytest.raises(CaffeError, match='leaves 0 images'):
        voc.seg11valid(*places, expected=None)


def test_layer_takes_seg11valid_from_the_file_or_makes_it(voc_tree, sbd):
    sbd.path('split', 'train').write_text(IDS[1])
    with pytest.raises(CaffeError, match="seg11valid.txt: no such file; .*'sbdd_dir'"):
        voc_tree.make('seg11valid')
    with pytest.raises(CaffeError, match='736 expected'):
        voc_tree.make('seg11valid', **sbd.params)
    made = voc_tree.make('seg11valid', **sbd.params, expected=None)
    assert fed(*made, 3) == [IDS[0], IDS[2], IDS[0]]
    voc_tree.path('split', 'seg11valid').write_text(IDS[1])
    assert fed(*voc_tree.make('seg11valid', **sbd.params), 2) == [IDS[1]] * 2
