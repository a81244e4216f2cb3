"""The layer types, grouped as Caffe's catalogue groups them: all of Caffe 1.0's."""

from caffe_port.ops import (
    common,
    data,
    databases,
    hdf5_data,
    image_data,
    loss,
    neuron,
    pooling,
    python,
    recurrent,
    scaling,
    vision,
    window_data,
)
from caffe_port.ops.base import LAYER_TYPES, Op

__all__ = [
    'LAYER_TYPES',
    'Op',
    'common',
    'data',
    'databases',
    'hdf5_data',
    'image_data',
    'loss',
    'neuron',
    'pooling',
    'python',
    'recurrent',
    'scaling',
    'vision',
    'window_data',
]
