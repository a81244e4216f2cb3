"""Every layer type against vectors recorded from Caffe."""

import pytest

from tests.vectors import GOLDEN, check_layer


@pytest.mark.parametrize('name', sorted(path.stem for path in (GOLDEN / 'layers').glob('*.npz')))
def test_layer_computes_what_caffe_recorded(name):
    check_layer(name)
