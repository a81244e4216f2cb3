"""FCN-GoogLeNet on PASCAL VOC, trained on SBD: one stream, stride 32.

The release announces this net and does not publish it. It is the net of Long et al., CVPR 2015,
section 4.1: GoogLeNet with its last loss only and without the average pooling before it.
"""

if __name__ == '__main__':
    import _checkout

from caffe_port.coord_map import crop
from caffe_port.net_spec import NetSpec
from caffe_port.proto.caffe_pb2 import NetParameter
from nets import data, googlenet
from nets.atoms import dropout, pixel_loss, score, upsample, write_prototxts


def fcn(
    split: str,
    sbdd_dir: str = '../data/sbdd/dataset',
    voc_dir: str = '../data/pascal/VOC2011',
    seg11valid_from: str | None = None,
    width: int = 64,
    drop: float = 0.4,
    classes: int = 21,
) -> NetParameter:
    """Return the net: split 'train' is SBD's, 'deploy' has no label and loss, others are VOC's."""
    n = NetSpec()
    if split == 'deploy':
        n.data = data.image()
    else:
        n.data, n.label = data.voc(split, sbdd_dir, voc_dir, seg11valid_from)

    # 16 more than the classifier's 3, so that pool4 has a window however small the image is. No
    # layer needs the 100 of the other nets: behind conv1 all windows are padded themselves.
    conv1 = googlenet.first_conv(n, width, pad=19)
    n.drop5 = dropout(googlenet.trunk(n, conv1, width), drop)
    n.score_fr = score(n.drop5, classes)

    # The 3 x 3 pooling puts pixels half a pixel off, so that only an odd kernel can be aligned.
    n.upscore = upsample(n.score_fr, classes, ks=63, stride=32)
    n.score = crop(n.upscore, n.data)
    if split != 'deploy':
        n.loss = pixel_loss(n.score, n.label, normalize=True)
    return n.to_proto()


if __name__ == '__main__':
    write_prototxts(fcn, train='train', val='seg11valid')
