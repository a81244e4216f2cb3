"""FCN-32s on PASCAL-Context, 59 classes and background: one stream, stride 32."""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data, vgg16
from nets.atoms import conv_relu, dropout, pixel_loss, score, upsample, write_prototxts


def fcn(
    split: str,
    voc_dir: str = '../../data/pascal',
    context_dir: str = '../../data/pascal-context',
    width: int = 64,
    fc: int = 4096,
    drop: float = 0.5,
) -> NetParameter:
    """Return the net for a split of PASCAL-Context; 'deploy' has no label and no loss."""
    n = NetSpec()
    if split == 'deploy':
        n.data = data.image()
    else:
        n.data, n.label = data.pascalcontext(split, voc_dir, context_dir)

    # With so much padding fc6 has a whole window, however small the image is.
    n.conv1_1, n.relu1_1 = conv_relu(n.data, width, pad=100)
    vgg16.trunk(n, n.relu1_1, width)

    n.fc6, n.relu6 = conv_relu(n.pool5, fc, ks=7, pad=0)
    n.drop6 = dropout(n.relu6, drop)
    n.fc7, n.relu7 = conv_relu(n.drop6, fc, ks=1, pad=0)
    n.drop7 = dropout(n.relu7, drop)
    n.score_fr = score(n.drop7, 60)

    n.upscore = upsample(n.score_fr, 60, ks=64, stride=32)
    n.score = crop(n.upscore, n.data)
    if split != 'deploy':
        n.loss = pixel_loss(n.score, n.label)
    return n.to_proto()


if __name__ == '__main__':
    write_prototxts(fcn, train='train', val='val')
