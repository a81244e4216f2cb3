"""VGG16: the trunk of all FCNs but FCN-AlexNet, and the classifier it comes from.

Source: Simonyan and Zisserman 2015, ILSVRC 16 layers, as in Caffe's model zoo.
"""

from __future__ import annotations

from caffe_port.net_spec import NetSpec, Top
from caffe_port.net_spec import layers as L
from caffe_port.proto import caffe_pb2
from nets import data
from nets.atoms import LEARNT, conv_relu, dropout, max_pool, score


def trunk(n: NetSpec, relu1_1: Top, width: int = 64, suffix: str = '') -> Top:
    """Add conv1_2 to pool5 on top of `relu1_1` and return pool5, at a 32nd of the size.

    The caller makes conv1_1, whose input and padding differ from net to net. The blocks
    have width x (1, 2, 4, 8, 8) channels. `suffix` ends every name.
    """
    bottom = relu1_1
    for block, (convs, nout) in enumerate(zip((2, 2, 3, 3, 3), (1, 2, 4, 8, 8)), start=1):
        for conv in range(2 if block == 1 else 1, convs + 1):
            name = f'{block}_{conv}{suffix}'
            n['conv' + name], n['relu' + name] = conv_relu(bottom, nout * width)
            bottom = n['relu' + name]
        bottom = n[f'pool{block}{suffix}'] = max_pool(bottom)
    return bottom


def classifier(
    num_classes: int = 1000, width: int = 64, fc: int = 4096, size: int = 224, batch: int = 10
) -> caffe_pb2.NetParameter:
    """Return VGG16 as deployed: `data`, batch x 3 x size x size BGR, `prob`, batch x num_classes.

    At size 224 fc6 sees 7 x 7 pixels: its weights are those of an FCN's fc6.
    """
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[batch, 3, size, size]))

    n.conv1_1, n.relu1_1 = conv_relu(n.data, width)
    trunk(n, n.relu1_1, width)

    n.fc6 = L.InnerProduct(n.pool5, num_output=fc, param=LEARNT)
    n.relu6 = L.ReLU(n.fc6, in_place=True)
    n.drop6 = dropout(n.relu6)
    n.fc7 = L.InnerProduct(n.drop6, num_output=fc, param=LEARNT)
    n.relu7 = L.ReLU(n.fc7, in_place=True)
    n.drop7 = dropout(n.relu7)
    n.fc8 = L.InnerProduct(n.drop7, num_output=num_classes, param=LEARNT)
    n.prob = L.Softmax(n.fc8)
    return n.to_proto()


def fully_conv(num_classes: int = 1000, width: int = 64, fc: int = 4096) -> caffe_pb2.NetParameter:
    """Return VGG16 as deployed, for an image of any size from 224 x 224 on.

    `prob` has num_classes channels and a pixel for every window of 224 x 224, 32 pixels
    apart. A window sees the pixels beyond its edge, where a crop would be padded with
    zeros. The weights are the classifier's, fc6, fc7 and fc8 as convolutions (see
    surgery.transplant).
    """
    n = NetSpec()
    n.data = data.image()
    n.conv1_1, n.relu1_1 = conv_relu(n.data, width)
    trunk(n, n.relu1_1, width)

    n.fc6, n.relu6 = conv_relu(n.pool5, fc, ks=7, pad=0)
    n.drop6 = dropout(n.relu6)
    n.fc7, n.relu7 = conv_relu(n.drop6, fc, ks=1, pad=0)
    n.drop7 = dropout(n.relu7)
    n.fc8 = score(n.drop7, num_classes)
    n.prob = L.Softmax(n.fc8)
    return n.to_proto()
