"""The layer types, grouped as Caffe's catalogue groups them.

All of Caffe 1.0's but these: the recurrent ones (LSTM, RNN), and those that read or
write files of Caffe's own (data.FED_TYPES says what to use instead). Pooling has no
STOCHASTIC.
"""

from caffe_port.ops import common, data, loss, neuron, pooling, python, recurrent, scaling, vision
from caffe_port.ops.base import LAYER_TYPES, Op

__all__ = [
    'LAYER_TYPES',
    'Op',
    'common',
    'data',
    'loss',
    'neuron',
    'pooling',
    'python',
    'recurrent',
    'scaling',
    'vision',
]
