"""VGG16: the trunk of all FCNs but AlexNet's, and the classifier it comes from.

Source: Simonyan and Zisserman 2015, ILSVRC 16 layers, as in Caffe's model zoo.
"""

from __future__ import annotations

from typing import Any

from caffe_port.net_spec import NetSpec, Top, layers as L
from caffe_port.proto import caffe_pb2
from nets import data
from nets.atoms import LEARNT, conv_relu, dropout, max_pool, score


def trunk(n: NetSpec, relu1_1: Top, width: int = 64, suffix: str = '', **fillers: Any) -> Top:
    """Add conv1_2 to pool5 on top of `relu1_1` and return pool5, at a 32nd of the size.

    conv1_1 stays with the caller, as its input and its padding are the net's own.
    The blocks have width x (1, 2, 4, 8, 8) channels. `suffix` ends every name.
    """
    bottom = relu1_1
    for block, (convs, nout) in enumerate(zip((2, 2, 3, 3, 3), (1, 2, 4, 8, 8)), start=1):
        for conv in range(2 if block == 1 else 1, convs + 1):
            name = f'{block}_{conv}{suffix}'
            n['conv' + name], n['relu' + name] = conv_relu(bottom, nout * width, **fillers)
            bottom = n['relu' + name]
        bottom = n[f'pool{block}{suffix}'] = max_pool(bottom)
    return bottom


def classifier(num_classes: int = 1000, width: int = 64, fc: int = 4096, size: int = 224,
               split: str = 'deploy', source: tuple[Top, Top] | None = None, batch: int = 10,
               drop: float = 0.5, **fillers: Any) -> caffe_pb2.NetParameter:
    """The whole image's class: VGG16 with fully connected fc6, fc7 and fc8.

    split 'deploy' ends in the probabilities `prob`, batch x num_classes; any other
    in `loss`, over the integer labels of the images. `source` is the pair of tops
    (data, label) to train on, from a layer of the caller's; without it they are
    inputs: batch x 3 x size x size, BGR, and batch. `fillers` (weight_filler=,
    bias_filler=) start every layer, for a net that is trained from nothing.

    Narrow nets have little to spare: give them a `drop`, the share of fc6 and fc7 that
    dropout takes, below the official half.

    At size 224 fc6 sees 7 x 7 pixels: its weights are those of an FCN's fc6.
    """
    n = NetSpec()
    if split != 'deploy' and source:
        n.data, n.label = source
    else:
        n.data = L.Input(shape=dict(dim=[batch, 3, size, size]))
        if split != 'deploy':
            n.label = L.Input(shape=dict(dim=[batch]))

    n.conv1_1, n.relu1_1 = conv_relu(n.data, width, **fillers)
    trunk(n, n.relu1_1, width, **fillers)

    n.fc6 = _fully_connected(n.pool5, fc, **fillers)
    n.relu6 = L.ReLU(n.fc6, in_place=True)
    n.drop6 = dropout(n.relu6, drop)
    n.fc7 = _fully_connected(n.drop6, fc, **fillers)
    n.relu7 = L.ReLU(n.fc7, in_place=True)
    n.drop7 = dropout(n.relu7, drop)
    n.fc8 = _fully_connected(n.drop7, num_classes, **fillers)

    if split == 'deploy':
        n.prob = L.Softmax(n.fc8)
    else:
        n.loss = L.SoftmaxWithLoss(n.fc8, n.label)
    return n.to_proto()


def fully_conv(num_classes: int = 1000, width: int = 64, fc: int = 4096) -> caffe_pb2.NetParameter:
    """The deployed classifier for an image of any size from 224 x 224 on.

    `prob` has num_classes channels and a pixel for every step of 32 pixels that a window
    of 224 x 224 can take. At its edge a window sees its neighbours, where a crop of its
    own would be padded with zeros. The weights are the classifier's, fc6, fc7 and fc8
    as convolutions (see surgery.transplant).
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


def _fully_connected(bottom: Top, nout: int, **fillers: Any) -> Top:
    return L.InnerProduct(bottom, num_output=nout, param=LEARNT, **fillers)
