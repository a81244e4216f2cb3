"""FCN-8s on SIFT Flow, from FCN-16s: both tasks fuse the scores of pool4 and pool3, stride 8."""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data, vgg16
from nets.atoms import add, conv_relu, dropout, pixel_loss, score, upsample, write_prototxts


def fcn(
    split: str,
    siftflow_dir: str = '../data/sift-flow',
    width: int = 64,
    fc: int = 4096,
    drop: float = 0.5,
) -> NetParameter:
    """The net for a split of SIFT Flow; 'deploy' has neither labels nor losses.

    The last three arguments serve narrow nets, which dropout of a half would starve.
    """
    n = NetSpec()
    if split == 'deploy':
        n.data = data.image()
    else:
        n.data, n.sem, n.geo = data.siftflow(split, siftflow_dir)

    # So much padding leaves fc6 a whole window however small the image is.
    n.conv1_1, n.relu1_1 = conv_relu(n.data, width, pad=100)
    vgg16.trunk(n, n.relu1_1, width)

    n.fc6, n.relu6 = conv_relu(n.pool5, fc, ks=7, pad=0)
    n.drop6 = dropout(n.relu6, drop)
    n.fc7, n.relu7 = conv_relu(n.drop6, fc, ks=1, pad=0)
    n.drop7 = dropout(n.relu7, drop)

    # Semantic classes.
    n.score_fr_sem = score(n.drop7, 33)

    n.upscore2_sem = upsample(n.score_fr_sem, 33, ks=4, stride=2)
    n.score_pool4_sem = score(n.pool4, 33)
    n.score_pool4_semc = crop(n.score_pool4_sem, n.upscore2_sem)
    n.fuse_pool4_sem = add(n.upscore2_sem, n.score_pool4_semc)

    n.upscore_pool4_sem = upsample(n.fuse_pool4_sem, 33, ks=4, stride=2)
    n.score_pool3_sem = score(n.pool3, 33)
    n.score_pool3_semc = crop(n.score_pool3_sem, n.upscore_pool4_sem)
    n.fuse_pool3_sem = add(n.upscore_pool4_sem, n.score_pool3_semc)

    n.upscore8_sem = upsample(n.fuse_pool3_sem, 33, ks=16, stride=8)
    n.score_sem = crop(n.upscore8_sem, n.data)
    if split != 'deploy':
        n.loss = pixel_loss(n.score_sem, n.sem)

    # Geometric classes.
    n.score_fr_geo = score(n.drop7, 3)

    n.upscore2_geo = upsample(n.score_fr_geo, 3, ks=4, stride=2)
    n.score_pool4_geo = score(n.pool4, 3)
    n.score_pool4_geoc = crop(n.score_pool4_geo, n.upscore2_geo)
    n.fuse_pool4_geo = add(n.upscore2_geo, n.score_pool4_geoc)

    n.upscore_pool4_geo = upsample(n.fuse_pool4_geo, 3, ks=4, stride=2)
    n.score_pool3_geo = score(n.pool3, 3)
    n.score_pool3_geoc = crop(n.score_pool3_geo, n.upscore_pool4_geo)
    n.fuse_pool3_geo = add(n.upscore_pool4_geo, n.score_pool3_geoc)

    n.upscore8_geo = upsample(n.fuse_pool3_geo, 3, ks=16, stride=8)
    n.score_geo = crop(n.upscore8_geo, n.data)
    if split != 'deploy':
        n.loss_geo = pixel_loss(n.score_geo, n.geo)
    return n.to_proto()


if __name__ == '__main__':
    write_prototxts(fcn, trainval='trainval', test='test')
