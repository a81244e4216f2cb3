"""FCN-32s on SIFT Flow: semantic and geometric classes from one trunk, stride 32."""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data, vgg16
from nets.atoms import conv_relu, dropout, pixel_loss, score, upsample, write_prototxts


def fcn(
    split: str,
    siftflow_dir: str = '../data/sift-flow',
    width: int = 64,
    fc: int = 4096,
    drop: float = 0.5,
) -> NetParameter:
    """Return the net for a split of SIFT Flow; 'deploy' has no labels and no losses."""
    n = NetSpec()
    if split == 'deploy':
        n.data = data.image()
    else:
        n.data, n.sem, n.geo = data.siftflow(split, siftflow_dir)

    # With so much padding fc6 has a whole window, however small the image is.
    n.conv1_1, n.relu1_1 = conv_relu(n.data, width, pad=100)
    vgg16.trunk(n, n.relu1_1, width)

    n.fc6, n.relu6 = conv_relu(n.pool5, fc, ks=7, pad=0)
    n.drop6 = dropout(n.relu6, drop)
    n.fc7, n.relu7 = conv_relu(n.drop6, fc, ks=1, pad=0)
    n.drop7 = dropout(n.relu7, drop)

    # Semantic classes.
    n.score_fr_sem = score(n.drop7, 33)

    n.upscore_sem = upsample(n.score_fr_sem, 33, ks=64, stride=32)
    n.score_sem = crop(n.upscore_sem, n.data)
    if split != 'deploy':
        n.loss = pixel_loss(n.score_sem, n.sem)

    # Geometric classes.
    n.score_fr_geo = score(n.drop7, 3)

    n.upscore_geo = upsample(n.score_fr_geo, 3, ks=64, stride=32)
    n.score_geo = crop(n.upscore_geo, n.data)
    if split != 'deploy':
        n.loss_geo = pixel_loss(n.score_geo, n.geo)
    return n.to_proto()


if __name__ == '__main__':
    write_prototxts(fcn, trainval='trainval', test='test')
