"""FCN-16s on PASCAL VOC, from FCN-32s: fuses the scores of pool4, stride 16."""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data, vgg16
from nets.atoms import add, conv_relu, dropout, pixel_loss, score, upsample, write_prototxts


def fcn(
    split: str,
    sbdd_dir: str = '../../data/sbdd/dataset',
    voc_dir: str = '../../data/pascal/VOC2011',
    seg11valid_from: str | None = None,
    width: int = 64,
    fc: int = 4096,
    drop: float = 0.5,
    classes: int = 21,
) -> NetParameter:
    """Return the net: split 'train' is SBD's, 'deploy' has no label and loss, others are VOC's."""
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

    n.upscore2 = upsample(n.score_fr, classes, ks=4, stride=2)
    n.score_pool4 = score(n.pool4, classes)
    n.score_pool4c = crop(n.score_pool4, n.upscore2)
    n.fuse_pool4 = add(n.upscore2, n.score_pool4c)

    n.upscore16 = upsample(n.fuse_pool4, classes, ks=32, stride=16)
    n.score = crop(n.upscore16, n.data)
    if split != 'deploy':
        n.loss = pixel_loss(n.score, n.label)
    return n.to_proto()


if __name__ == '__main__':
    write_prototxts(fcn, train='train', val='seg11valid')
