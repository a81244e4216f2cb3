"""FCN-32s on NYUDv2 from color and HHA: a whole net for each, their scores averaged."""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec, Top
from caffe_port.net_spec import layers as L
from caffe_port.net_spec import params as P
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data, vgg16
from nets.atoms import conv_relu, dropout, pixel_loss, score, upsample, write_prototxts


def fcn(
    split: str, nyud_dir: str = '../data/nyud', width: int = 64, fc: int = 4096, drop: float = 0.5
) -> NetParameter:
    """Return the net for a split of NYUDv2; 'deploy' has no label and no loss."""
    n = NetSpec()
    if split == 'deploy':
        n.color, n.hha = data.image(), data.image()
    else:
        n.color, n.hha, n.label = data.nyud(split, ['color', 'hha', 'label'], nyud_dir)

    score_color = stream(n, n.color, 'color', width, fc, drop)
    score_hha = stream(n, n.hha, 'hha', width, fc, drop)
    n.score_fused = L.Eltwise(score_color, score_hha, operation=P.Eltwise.SUM, coeff=[0.5, 0.5])

    n.upscore = upsample(n.score_fused, 40, ks=64, stride=32)
    n.score = crop(n.upscore, n.color)
    if split != 'deploy':
        n.loss = pixel_loss(n.score, n.label)
    return n.to_proto()


def stream(n: NetSpec, image: Top, suffix: str, width: int, fc: int, drop: float) -> Top:
    """Add one modality's net and return its scores; `suffix` ends every layer's name."""
    # With so much padding fc6 has a whole window, however small the image is.
    n['conv1_1' + suffix], n['relu1_1' + suffix] = conv_relu(image, width, pad=100)
    pool5 = vgg16.trunk(n, n['relu1_1' + suffix], width, suffix)

    n['fc6' + suffix], n['relu6' + suffix] = conv_relu(pool5, fc, ks=7, pad=0)
    n['drop6' + suffix] = dropout(n['relu6' + suffix], drop)
    n['fc7' + suffix], n['relu7' + suffix] = conv_relu(n['drop6' + suffix], fc, ks=1, pad=0)
    n['drop7' + suffix] = dropout(n['relu7' + suffix], drop)
    n['score_fr' + suffix] = score(n['drop7' + suffix], 40)
    return n['score_fr' + suffix]


if __name__ == '__main__':
    write_prototxts(fcn, trainval='trainval', test='test')
