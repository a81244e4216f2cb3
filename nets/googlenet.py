"""GoogLeNet: the trunk of FCN-GoogLeNet, and the classifier it comes from.

Source: Szegedy et al. 2015, as in Caffe's model zoo.
"""

from __future__ import annotations

from caffe_port.net_spec import NetSpec, Top
from caffe_port.net_spec import layers as L
from caffe_port.net_spec import params as P
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data
from nets.atoms import LEARNT, lrn, max_pool

LAST = dict(
    param=LEARNT, weight_filler=dict(type='xavier'), bias_filler=dict(type='constant', value=0)
)


def conv_relu(
    n: NetSpec, group: str, name: str, bottom: Top, nout: int, ks: int, std: float, **settings: int
) -> Top:
    """Add the convolution `group/name` with its ReLU in place, and return the ReLU."""
    conv = n[f'{group}/{name}'] = L.Convolution(
        bottom,
        num_output=nout,
        kernel_size=ks,
        param=LEARNT,
        weight_filler=dict(type='xavier', std=std),
        bias_filler=dict(type='constant', value=0.2),
        **settings,
    )
    relu = n[f'{group}/relu_{name.removesuffix("_s2")}'] = L.ReLU(conv, in_place=True)
    return relu


def inception(
    n: NetSpec,
    name: str,
    bottom: Top,
    one: int,
    three_reduce: int,
    three: int,
    five_reduce: int,
    five: int,
    pool: int,
    width: int,
) -> Top:
    """Add four streams (1 x 1, 3 x 3, 5 x 5, pooled), given their channels, and join them.

    The channels are those of the published net, whose `width` is 64.
    """
    group = f'inception_{name}'
    one, three_reduce, three, five_reduce, five, pool = (
        narrow(nout, width) for nout in (one, three_reduce, three, five_reduce, five, pool)
    )
    ones = conv_relu(n, group, '1x1', bottom, one, ks=1, std=0.03)
    threes = conv_relu(n, group, '3x3_reduce', bottom, three_reduce, ks=1, std=0.09)
    threes = conv_relu(n, group, '3x3', threes, three, ks=3, std=0.03, pad=1)
    fives = conv_relu(n, group, '5x5_reduce', bottom, five_reduce, ks=1, std=0.2)
    fives = conv_relu(n, group, '5x5', fives, five, ks=5, std=0.03, pad=2)
    pooled = n[f'{group}/pool'] = L.Pooling(
        bottom, pool=P.Pooling.MAX, kernel_size=3, stride=1, pad=1
    )
    pooled = conv_relu(n, group, 'pool_proj', pooled, pool, ks=1, std=0.1)
    output = n[f'{group}/output'] = L.Concat(ones, threes, fives, pooled)
    return output


def narrow(nout: int, width: int) -> int:
    """Return the channels of a layer that has `nout` in the published net, of width 64."""
    return max(nout * width // 64, 1)


def classifier(num_classes: int = 1000, width: int = 64) -> NetParameter:
    """Return GoogLeNet as deployed: `data`, 10 x 3 x 224 x 224 BGR, to `prob`, 10 x num_classes."""
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[10, 3, 224, 224]))
    means = pool_and_drop(n, trunk(n, first_conv(n, width), width))
    n['loss3/classifier'] = L.InnerProduct(means, num_output=num_classes, **LAST)
    n.prob = L.Softmax(n['loss3/classifier'])
    return n.to_proto()


def fully_conv(num_classes: int = 1000, width: int = 64) -> NetParameter:
    """Return GoogLeNet as deployed, for an image of any size from 224 x 224 on.

    `prob` has num_classes channels and a pixel for every window of 224 x 224, 32 pixels
    apart; see vgg16. The weights are the classifier's, the last layer as a convolution.
    """
    n = NetSpec()
    n.data = data.image()
    means = pool_and_drop(n, trunk(n, first_conv(n, width), width))
    n['loss3/classifier'] = L.Convolution(means, kernel_size=1, num_output=num_classes, **LAST)
    n.prob = L.Softmax(n['loss3/classifier'])
    return n.to_proto()


def first_conv(n: NetSpec, width: int = 64, pad: int = 3) -> Top:
    """Add conv1 on top of `n.data` and return its ReLU."""
    return conv_relu(n, 'conv1', '7x7_s2', n.data, width, ks=7, std=0.1, pad=pad, stride=2)


def trunk(n: NetSpec, relu1: Top, width: int = 64) -> Top:
    """Add pool1 to inception_5b on top of `relu1` and return the last, at a 32nd of the size.

    The caller makes conv1, whose padding differs from net to net, with `width` channels.
    """
    top = n['pool1/3x3_s2'] = max_pool(relu1, ks=3)
    top = n['pool1/norm1'] = lrn(top)
    top = conv_relu(n, 'conv2', '3x3_reduce', top, narrow(64, width), ks=1, std=0.1)
    top = conv_relu(n, 'conv2', '3x3', top, narrow(192, width), ks=3, std=0.03, pad=1)
    top = n['conv2/norm2'] = lrn(top)
    top = n['pool2/3x3_s2'] = max_pool(top, ks=3)

    top = inception(n, '3a', top, 64, 96, 128, 16, 32, 32, width)
    top = inception(n, '3b', top, 128, 128, 192, 32, 96, 64, width)
    top = n['pool3/3x3_s2'] = max_pool(top, ks=3)
    top = inception(n, '4a', top, 192, 96, 208, 16, 48, 64, width)
    top = inception(n, '4b', top, 160, 112, 224, 24, 64, 64, width)
    top = inception(n, '4c', top, 128, 128, 256, 24, 64, 64, width)
    top = inception(n, '4d', top, 112, 144, 288, 32, 64, 64, width)
    top = inception(n, '4e', top, 256, 160, 320, 32, 128, 128, width)
    top = n['pool4/3x3_s2'] = max_pool(top, ks=3)
    top = inception(n, '5a', top, 256, 160, 320, 32, 128, 128, width)
    return inception(n, '5b', top, 384, 192, 384, 48, 128, 128, width)


def pool_and_drop(n: NetSpec, bottom: Top) -> Top:
    """Add the means of 7 x 7 windows that the classifier reads, and its dropout."""
    top = n['pool5/7x7_s1'] = L.Pooling(bottom, pool=P.Pooling.AVE, kernel_size=7, stride=1)
    top = n['pool5/drop_7x7_s1'] = L.Dropout(top, dropout_ratio=0.4, in_place=True)
    return top
