"""Weight files recorded from Caffe, and how the tests look at them."""

import numpy as np
import pytest

from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel
from tests.vectors import GOLDEN

FORMATS, SOLVER = GOLDEN / 'formats', GOLDEN / 'solver'
V1, V1_UPGRADED = FORMATS / 'legacy_v1.caffemodel', FORMATS / 'legacy_v1_upgraded.caffemodel'
MEAN = FORMATS / 'mean.binaryproto'
MODEL, STATE = SOLVER / 'snapshot_iter_4.caffemodel', SOLVER / 'snapshot_iter_4.solverstate'
VALUES = np.arange(12, dtype=np.float32).reshape(3, 4) / 8 - 0.5


def arrays_of(path) -> dict[str, list[np.ndarray]]:
    return {layer.name: [blob.array() for blob in layer.blobs] for layer in caffemodel.read(path)}


def refused(read, path, *words: str) -> str:
    with pytest.raises(CaffeError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and '\n' not in message
    for word in words:
        assert word in message
    return message
