"""FCN-32s on PASCAL VOC, trained on SBD: one stream, stride 32."""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data, vgg16
from nets.atoms import conv_relu, dropout, pixel_loss, score, upsample, write_prototxts


def fcn(
    split: str,
    sbdd_dir: str = '../data/sbdd/dataset',
    voc_dir: str = '../data/pascal/VOC2011',
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

    n.upscore = upsample(n.score_fr, classes, ks=64, stride=32)
    n.score = crop(n.upscore, n.data)
    if split != 'deploy':
        n.loss = pixel_loss(n.score, n.label)
    return n.to_proto()


if __name__ == '__main__':
    write_prototxts(fcn, train='train', val='seg11valid')
