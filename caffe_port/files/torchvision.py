"""Convert VGG16 between torchvision's names, colours and scale and Caffe's.

torchvision's net takes z = (x / 255 - m) / s, with x in RGB, 0 to 255, and m and s the
mean and deviation of each channel. Caffe's takes y = x - c, in BGR. With M = 255 m,

    z = (y + c - M) / (255 s)       per channel,

so conv1_1 computes sum(W z) + b = sum(V y) + b + sum(V (c - M)), where V = W / (255 s) with
its input channels in the order BGR. Dividing the weights and reversing the channels is thus
exact, and enough if c = M: for images less the mean M the net is torchvision's, number for
number.

If c is another mean, the constant sum(V (c - M)) remains. It is not added to the bias: Caffe
pads y with zeros, torchvision z, and padding contributes nothing to either sum, whereas the
constant would be added there too. It would be exact only where conv1_1's window touches no
padding: never along the border, and far from true in an FCN, whose conv1_1 has 100 pixels of
it. Left out, the net is torchvision's on an image darker by c - M, and exact in the padding.
For the mean of Caffe's model zoo that is 0.409, 0.499 and 0.005 of 255 levels in B, G, R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from caffe_port.errors import CaffeError
from caffe_port.files.stored import StoredBlob, StoredLayer

ZOO_MEAN_BGR = (103.939, 116.779, 123.68)
TORCHVISION_MEAN_BGR = tuple(255 * mean for mean in (0.406, 0.456, 0.485))
_SCALE_BGR = 255 * np.array([0.225, 0.224, 0.229])

_CONVS = """conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3
conv4_1 conv4_2 conv4_3 conv5_1 conv5_2 conv5_3""".split()
_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# Caffe's layer: the module of torchvision's vgg16.
MODULES = {
    **{name: f'features.{i}' for name, i in zip(_CONVS, _FEATURES)},
    **{name: f'classifier.{i}' for name, i in zip(('fc6', 'fc7', 'fc8'), (0, 3, 6))},
}


def from_torchvision(layers: Sequence[StoredLayer]) -> list[StoredLayer]:
    """Return torchvision's vgg16 as Caffe's layers; conv1_1 takes BGR, 0 to 255, less a mean.

    Raises CaffeError if they are not the layers of that net.
    """
    given = _all_of({module: name for name, module in MODULES.items()}, layers)
    done = []
    for name, module in MODULES.items():
        blobs = list(given[module].blobs)
        if name == 'conv1_1':
            blobs[0] = _folded(blobs[0], 1 / _SCALE_BGR)
        type_ = 'Convolution' if name.startswith('conv') else 'InnerProduct'
        done.append(StoredLayer(name, type_, blobs))
    return done


def to_torchvision(layers: Sequence[StoredLayer]) -> list[StoredLayer]:
    """Return Caffe's VGG16 as torchvision's layers; fully connected ones may be convolutional.

    Raises CaffeError if they are not the layers of that net.
    """
    given = _all_of(MODULES, layers)
    done = []
    for name, module in MODULES.items():
        blobs = list(given[name].blobs)
        if name == 'conv1_1':
            blobs[0] = _folded(blobs[0], _SCALE_BGR[::-1])
        elif name.startswith('fc') and len(blobs[0].shape) > 2:
            outputs = blobs[0].shape[0]
            blobs[0] = replace(blobs[0], shape=(outputs, blobs[0].count // max(outputs, 1)))
        done.append(StoredLayer(module, '', blobs))
    return done


def mean_shift(layers: Sequence[StoredLayer], mean_bgr: Sequence[float]) -> float:
    """Return the most that a mean other than torchvision's changes conv1_1 inside an image.

    `layers` are Caffe's; the result is the largest |sum(V (c - M))| of all its outputs.
    """
    weight = next(layer for layer in layers if layer.name == 'conv1_1').blobs[0].array()
    shift = np.subtract(mean_bgr, TORCHVISION_MEAN_BGR)
    return float(np.abs(weight.sum((2, 3), dtype=np.float64) @ shift).max(initial=0))


def _all_of(due: dict[str, str], layers: Sequence[StoredLayer]) -> dict[str, StoredLayer]:
    given = {layer.name: layer for layer in layers}
    missing, strange = [n for n in due if n not in given], [n for n in given if n not in due]
    if missing or strange:
        raise CaffeError(
            f'expected the {len(due)} layers of VGG16, {next(iter(due))} to {list(due)[-1]}; '
            f'missing: {", ".join(missing[:5]) or "none"}; others: '
            f'{", ".join(strange[:5]) or "none"}'
        )
    for name, layer in given.items():
        if len(layer.blobs) != 2:
            raise CaffeError(f'{name}: expected weight and bias, found {len(layer.blobs)} blobs')
    return given


def _folded(weight: StoredBlob, scale: np.ndarray) -> StoredBlob:
    """Return the weights O x 3 x H x W with their input channels reversed, then each scaled."""
    if len(weight.shape) != 4 or weight.shape[1] != 3:
        raise CaffeError(
            f'{weight.where}: expected weights of three colours, found shape {weight.shape}'
        )
    fill = partial(_fill_folded, weight, scale)
    return StoredBlob(weight.where, weight.shape, weight.dtype, fill)


def _fill_folded(weight: StoredBlob, scale: np.ndarray, out: np.ndarray) -> None:
    reversed_ = weight.array()[:, ::-1].astype(np.float64)
    out[:] = (reversed_ * scale[:, None, None]).reshape(-1)
