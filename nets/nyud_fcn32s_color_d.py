"""FCN-32s on NYUDv2 from color and depth, joined at the input."""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec
from caffe_port.net_spec import layers as L
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data, vgg16
from nets.atoms import conv_relu, dropout, pixel_loss, score, upsample, write_prototxts


def fcn(
    split: str, nyud_dir: str = '../data/nyud', width: int = 64, fc: int = 4096, drop: float = 0.5
) -> NetParameter:
    """Return the net for a split of NYUDv2; 'deploy' has no label and no loss."""
    n = NetSpec()
    if split == 'deploy':
        n.color, n.depth = data.image(), data.image(channels=1)
    else:
        n.color, n.depth, n.label = data.nyud(split, ['color', 'depth', 'label'], nyud_dir)
    n.data = L.Concat(n.color, n.depth)

    # Not conv1_1: the classifier's layer of that name has weights for three input channels.
    # With so much padding fc6 has a whole window, however small the image is.
    n.conv1_1_bgrd, n.relu1_1 = conv_relu(n.data, width, pad=100)
    vgg16.trunk(n, n.relu1_1, width)

    n.fc6, n.relu6 = conv_relu(n.pool5, fc, ks=7, pad=0)
    n.drop6 = dropout(n.relu6, drop)
    n.fc7, n.relu7 = conv_relu(n.drop6, fc, ks=1, pad=0)
    n.drop7 = dropout(n.relu7, drop)
    n.score_fr = score(n.drop7, 40)

    n.upscore = upsample(n.score_fr, 40, ks=64, stride=32)
    n.score = crop(n.upscore, n.data)
    if split != 'deploy':
        n.loss = pixel_loss(n.score, n.label)
    return n.to_proto()


if __name__ == '__main__':
    write_prototxts(fcn, trainval='trainval', test='test')
