"""FCN-32s whose loss samples, weighs or balances pixels: CVPR 2015, section 4.3.

In training alone; scores of other splits have the plain loss. Normalised, so that losses compare.
"""

if __name__ == '__main__':
    import _checkout
from typing import Any

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data, vgg16
from nets.atoms import (
    conv_relu,
    dropout,
    pixel_loss,
    sampled_loss,
    score,
    upsample,
    write_prototxts,
)


def fcn(
    split: str,
    sbdd_dir: str = '../data/sbdd/dataset',
    voc_dir: str = '../data/pascal/VOC2011',
    seg11valid_from: str | None = None,
    width: int = 64,
    fc: int = 4096,
    drop: float = 0.5,
    classes: int = 21,
    **loss: Any,
) -> NetParameter:
    """Return the net: split 'train' is SBD's, 'deploy' has no label and loss, others are VOC's.

    `loss`: options of surgery.losses.PixelLoss, as keep=0.5, seed=1337.
    """
    n = NetSpec()
    if split == 'deploy':
        n.data = data.image()
    else:
        n.data, n.label = data.voc(split, sbdd_dir, voc_dir, seg11valid_from)

    # With so much padding fc6 has a whole window, however small the image is.
    n.conv1_1, n.relu1_1 = conv_relu(n.data, width, pad=100)
    vgg16.trunk(n, n.relu1_1, width)

    n.fc6, n.relu6 = conv_relu(n.pool5, fc, ks=7, pad=0)
    n.drop6 = dropout(n.relu6, drop)
    n.fc7, n.relu7 = conv_relu(n.drop6, fc, ks=1, pad=0)
    n.drop7 = dropout(n.relu7, drop)
    n.score_fr = score(n.drop7, classes)

    n.upscore = upsample(n.score_fr, classes, ks=64, stride=32)
    n.score = crop(n.upscore, n.data)
    if split == 'train':
        n.loss = sampled_loss(n.score, n.label, n.score_fr, normalize=True, **loss)
    elif split != 'deploy':
        n.loss = pixel_loss(n.score, n.label, normalize=True)
    return n.to_proto()


if __name__ == '__main__':
    write_prototxts(fcn, train='train', val='seg11valid')
