"""The SIFT Flow data layer: types of labels, and images without labels."""

import numpy as np
import pytest

from caffe_port.errors import CaffeError
from tests.solve.feeding import IDS, Tree, facts, fed, step


@pytest.fixture
def tree(tmp_path):
    return Tree('siftflow', tmp_path)


@pytest.mark.parametrize('dtype', [np.float64, np.int8, np.int32])
def test_labels_may_be_stored_in_any_type(tree, dtype):
    layer, blobs = tree.make()
    step(layer, blobs)
    expected = blobs[2].data.copy()
    geo = tree.kind.labels['geo']
    geo.save(tree.path('geometric', IDS[0]), tree.stored('geo', IDS[0]).astype(dtype))
    layer, blobs = tree.make()
    step(layer, blobs)
    np.testing.assert_array_equal(blobs[2].data, expected)


def test_images_without_annotations_are_left_out(tree):
    unlabelled = ['highway_bost181', 'street_urb506']
    assert all(name in facts('siftflow')['note'] for name in unlabelled)
    path = tree.path('split', 'test')
    path.write_text('\n'.join([IDS[0], unlabelled[0], IDS[1], unlabelled[1], IDS[2]]))
    assert fed(*tree.make(), 4) == [*IDS, IDS[0]]
    path.write_text(unlabelled[1])
    with pytest.raises(CaffeError, match='test.txt: no images but highway_bost181 and'):
        tree.make()


def test_left_out_images_do_not_take_part_in_drawing(tree):
    plain = fed(*tree.make('trainval'), 12)
    lines = ['street_urb506', *IDS, 'highway_bost181']
    tree.path('split', 'trainval').write_text('\n'.join(lines))
    assert fed(*tree.make('trainval'), 12) == plain
    assert len(set(plain)) == 3 and plain[:3] != IDS
