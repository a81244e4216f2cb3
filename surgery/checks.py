"""The commonest failure of the release, told before it costs a day."""

from __future__ import annotations

from typing import Any

from caffe_port.errors import CaffeError


def check_filled(net: Any) -> None:
    """Refuse a net whose trunk or upsampling is still zero, as an untouched net's is.

    Layers named conv* and fc* are the trunk, up* the upsampling. Score layers start
    at zero by design.

    Raises CaffeError with the layer and what to do.
    """
    for name, blobs in net.params.items():
        if not name.startswith(('conv', 'fc', 'up')) or blobs[0].data.any():
            continue
        if name.startswith('up'):
            raise CaffeError(
                f'{name}: all zero, so every score will be; fill it with bilinear '
                f'interpolation: surgery.interp(net, [{name!r}])'
            )
        raise CaffeError(
            f'{name}: all zero, so nothing would be learned; start from weights: '
            "--weights vgg16-fcn.caffemodel, or the VGG16 classifier's, or a "
            'snapshot (in code: net.copy_from or surgery.transplant)'
        )
