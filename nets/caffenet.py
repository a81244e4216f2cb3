"""CaffeNet and AlexNet: the trunk of FCN-AlexNet, and both classifiers.

Source: Krizhevsky, Sutskever and Hinton 2012, as in Caffe's model zoo.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from caffe_port.net_spec import NetSpec, Top
from caffe_port.net_spec import layers as L
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data
from nets.atoms import LEARNT, dropout, lrn, max_pool

ConvRelu = Callable[..., tuple[Top, Top]]


def conv_relu(bottom: Top, nout: int, ks: int, **settings: Any) -> tuple[Top, Top]:
    """Make a convolution, with just the settings given, and its ReLU in place."""
    conv = L.Convolution(bottom, kernel_size=ks, num_output=nout, **settings)
    return conv, L.ReLU(conv, in_place=True)


def trunk(n: NetSpec, relu1: Top, width: int = 96, conv_relu: ConvRelu = conv_relu) -> Top:
    """Add CaffeNet's pool1 to pool5 on top of `relu1` and return pool5, at a 32nd of the size.

    The caller makes conv1, whose padding differs from net to net, with `width` channels.
    `conv_relu` makes a convolution from (bottom, nout, ks, pad=, group=).
    """
    n.pool1 = max_pool(relu1, ks=3)
    n.norm1 = lrn(n.pool1)
    n.conv2, n.relu2 = conv_relu(n.norm1, _narrow(width), ks=5, pad=2, group=2)
    n.pool2 = max_pool(n.relu2, ks=3)
    n.norm2 = lrn(n.pool2)
    return _upper_trunk(n, n.norm2, width, conv_relu)


def classifier(num_classes: int = 1000, width: int = 96, fc: int = 4096) -> NetParameter:
    """Return CaffeNet as deployed: `data`, 10 x 3 x 227 x 227 BGR, to `prob`, 10 x num_classes."""
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[10, 3, 227, 227]))
    n.conv1, n.relu1 = conv_relu(n.data, width, ks=11, stride=4)
    trunk(n, n.relu1, width)
    return _classified(n, num_classes, fc)


def fully_conv(num_classes: int = 1000, width: int = 96, fc: int = 4096) -> NetParameter:
    """Return CaffeNet as deployed, for an image of any size from 227 x 227 on.

    `prob` has num_classes channels and a pixel for every window of 227 x 227, 32 pixels
    apart; see vgg16. The weights are the classifier's, fc6, fc7 and fc8 as convolutions.
    """
    n = NetSpec()
    n.data = data.image()
    n.conv1, n.relu1 = conv_relu(n.data, width, ks=11, stride=4)
    trunk(n, n.relu1, width)

    n.fc6, n.relu6 = conv_relu(n.pool5, fc, ks=6)
    n.drop6 = dropout(n.relu6)
    n.fc7, n.relu7 = conv_relu(n.drop6, fc, ks=1)
    n.drop7 = dropout(n.relu7)
    n.fc8 = L.Convolution(n.drop7, kernel_size=1, num_output=num_classes)
    n.prob = L.Softmax(n.fc8)
    return n.to_proto()


def alexnet(num_classes: int = 1000) -> NetParameter:
    """Return AlexNet as deployed: CaffeNet, but normalised before it is pooled."""
    learnt = partial(conv_relu, param=LEARNT)
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[10, 3, 227, 227]))
    n.conv1, n.relu1 = learnt(n.data, 96, ks=11, stride=4)
    n.norm1 = lrn(n.relu1)
    n.pool1 = max_pool(n.norm1, ks=3)
    n.conv2, n.relu2 = learnt(n.pool1, 256, ks=5, pad=2, group=2)
    n.norm2 = lrn(n.relu2)
    n.pool2 = max_pool(n.norm2, ks=3)
    _upper_trunk(n, n.pool2, 96, learnt)
    return _classified(n, num_classes, 4096, param=LEARNT)


def _upper_trunk(n: NetSpec, bottom: Top, width: int, conv_relu: ConvRelu) -> Top:
    n.conv3, n.relu3 = conv_relu(bottom, 4 * width, ks=3, pad=1)
    n.conv4, n.relu4 = conv_relu(n.relu3, 4 * width, ks=3, pad=1, group=2)
    n.conv5, n.relu5 = conv_relu(n.relu4, _narrow(width), ks=3, pad=1, group=2)
    n.pool5 = max_pool(n.relu5, ks=3)
    return n.pool5


def _narrow(width: int) -> int:
    """Return the channels of conv2 and conv5: 8/3 of conv1's, kept even for their two groups."""
    return 2 * (4 * width // 3)


def _classified(n: NetSpec, num_classes: int, fc: int, **settings: Any) -> NetParameter:
    n.fc6 = L.InnerProduct(n.pool5, num_output=fc, **settings)
    n.relu6 = L.ReLU(n.fc6, in_place=True)
    n.drop6 = dropout(n.relu6)
    n.fc7 = L.InnerProduct(n.drop6, num_output=fc, **settings)
    n.relu7 = L.ReLU(n.fc7, in_place=True)
    n.drop7 = dropout(n.relu7)
    n.fc8 = L.InnerProduct(n.drop7, num_output=num_classes, **settings)
    n.prob = L.Softmax(n.fc8)
    return n.to_proto()
