"""FCN-16s on SIFT Flow, from FCN-32s: both tasks fuse the scores of pool4, stride 16."""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec, Top
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

    semantic = head(n, 'sem', 33)
    if split != 'deploy':
        n.loss = pixel_loss(semantic, n.sem)

    geometric = head(n, 'geo', 3)
    if split != 'deploy':
        n.loss_geo = pixel_loss(geometric, n.geo)
    return n.to_proto()


def head(n: NetSpec, task: str, classes: int) -> Top:
    """Add one task's layers and return its scores; `task` is in every layer's name."""
    n[f'score_fr_{task}'] = deep = score(n.drop7, classes)

    n[f'upscore2_{task}'] = up = upsample(deep, classes, ks=4, stride=2)
    n[f'score_pool4_{task}'] = skip = score(n.pool4, classes)
    n[f'score_pool4_{task}c'] = skip = crop(skip, up)
    n[f'fuse_pool4_{task}'] = fused = add(up, skip)

    n[f'upscore16_{task}'] = up = upsample(fused, classes, ks=32, stride=16)
    n[f'score_{task}'] = scores = crop(up, n.data)
    return scores


if __name__ == '__main__':
    write_prototxts(fcn, trainval='trainval', test='test')
