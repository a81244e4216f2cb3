"""FCN-AlexNet on PASCAL VOC, trained on SBD: one stream, stride 32."""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec, Top
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import caffenet, data
from nets.atoms import dropout, pixel_loss, score, upsample, write_prototxts


def fcn(
    split: str,
    sbdd_dir: str = '../data/sbdd/dataset',
    voc_dir: str = '../data/pascal/VOC2011',
    seg11valid_from: str | None = None,
    width: int = 96,
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
    n.conv1, n.relu1 = conv_relu(n.data, width, ks=11, stride=4, pad=100)
    caffenet.trunk(n, n.relu1, width, conv_relu)

    n.fc6, n.relu6 = conv_relu(n.pool5, fc, ks=6)
    n.drop6 = dropout(n.relu6, drop)
    n.fc7, n.relu7 = conv_relu(n.drop6, fc, ks=1)
    n.drop7 = dropout(n.relu7, drop)
    n.score_fr = score(n.drop7, classes)

    n.upscore = upsample(n.score_fr, classes, ks=63, stride=32)
    n.score = crop(n.upscore, n.data)
    if split != 'deploy':
        n.loss = pixel_loss(n.score, n.label, normalize=True)
    return n.to_proto()


def conv_relu(
    bottom: Top, nout: int, ks: int, stride: int = 1, pad: int = 0, group: int = 1
) -> tuple[Top, Top]:
    """Make a convolution without multipliers (its bias learns as its weights do), and its ReLU."""
    return caffenet.conv_relu(bottom, nout, ks, stride=stride, pad=pad, group=group)


if __name__ == '__main__':
    write_prototxts(fcn, train='train', val='seg11valid')
