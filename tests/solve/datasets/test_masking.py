"""What masking hides of a picture, and what it leaves."""

import numpy as np
import pytest

from caffe_port.errors import CaffeError
from solve.datasets.masking import mask_image
from tests.solve.feeding import Tree, step

IMAGE = np.arange(1, 25, dtype=np.float32).reshape(1, 3, 2, 4)
LABEL = np.array([[0, 0, 7, 255], [0, 20, 255, 0]], np.float32)[np.newaxis, np.newaxis]
FRONT = np.broadcast_to(LABEL != 0, IMAGE.shape)


def test_each_mask_hides_its_pixels_and_no_other():
    assert mask_image(IMAGE, LABEL, None) is IMAGE
    without_front = mask_image(IMAGE, LABEL, 'foreground')
    assert not without_front[FRONT].any() and (without_front == IMAGE)[~FRONT].all()
    without_back = mask_image(IMAGE, LABEL, 'background')
    assert not without_back[~FRONT].any() and (without_back == IMAGE)[FRONT].all()
    shape = mask_image(IMAGE, LABEL, 'shape')
    assert (shape[FRONT] == 128).all() and (shape[~FRONT] == -128).all()


@pytest.mark.parametrize('kind', ['sbd', 'voc'])
def test_the_data_layers_take_a_mask_and_refuse_another(kind, tmp_path):
    tree = Tree(kind, tmp_path)
    layer, tops = tree.make(mask='foreground')
    step(layer, tops)
    image, label = (top.data for top in tops)
    assert (label != 0).any() and not image[np.broadcast_to(label != 0, image.shape)].any()
    with pytest.raises(CaffeError, match="'mask' must be 'foreground' or 'background' or 'shape'"):
        tree.make(mask='sky')
