"""Every layer type against vectors recorded from Caffe."""

import pytest

from tests import starting
from tests.vectors import GOLDEN, check_layer


@pytest.mark.parametrize('name', sorted(path.stem for path in (GOLDEN / 'layers').glob('*.npz')))
def test_layer_computes_what_caffe_recorded(name):
    check_layer(name)


def test_a_net_is_made_without_pytorchs_compiler():
    """Shapes of these layers once asked for kernels whose import takes two seconds."""
    names = 'batchnorm_test', 'embed', 'pool_ave_global', 'scale_bias', 'scale_const'
    code = (
        'import sys; from tests.vectors import load, net_of\n'
        'for name in sys.argv[1:]:\n'
        '    for phase in 0, 1: net_of(str(load(f"layers/{name}.npz")["prototxt"]), phase)\n'
        'print("torch._dynamo" in sys.modules)'
    )
    assert starting.start(code, *names).communicate() == ('False\n', '')
