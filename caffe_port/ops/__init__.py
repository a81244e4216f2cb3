"""The layer types, grouped as Caffe's catalogue groups them."""

from caffe_port.ops import common, data, loss, neuron, python, scaling, vision
from caffe_port.ops.base import LAYER_TYPES, Op

__all__ = ['LAYER_TYPES', 'Op', 'common', 'data', 'loss', 'neuron', 'python', 'scaling',
           'vision']
