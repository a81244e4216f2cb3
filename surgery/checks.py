"""Find the most common mistake in training an FCN before it costs a day."""

from __future__ import annotations

from typing import Any

from caffe_port.errors import CaffeError


def check_filled(net: Any) -> None:
    """Raise CaffeError if a layer of the trunk or the upsampling is all zero, with what to do.

    Layers named conv* and fc* are the trunk, up* the upsampling; nothing has filled them.
    Score layers start at zero by design.
    """
    for name, blobs in net.params.items():
        if not name.startswith(('conv', 'fc', 'up')) or blobs[0].data.any():
            continue
        if name.startswith('up'):
            raise CaffeError(
                f'{name}: all zero, so every score will be zero; fill it with bilinear '
                f'interpolation: surgery.interp(net, [{name!r}])'
            )
        raise CaffeError(
            f'{name}: all zero, so the net would learn nothing; start from weights: '
            "--weights vgg16-fcn.caffemodel, or the VGG16 classifier's, or a "
            'snapshot (in code: net.copy_from or surgery.transplant)'
        )
