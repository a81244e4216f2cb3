"""Nets of a few layers, from text."""

from __future__ import annotations

import numpy as np
from google.protobuf import text_format

import caffe_port as caffe


def layer(kind: str, top: str, *bottoms: str, more: str = '') -> str:
    lines = ' '.join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{kind} {top}" type: "{kind}" {lines} top: "{top}" {more} }}\n'


def conv(top: str, bottom: str, outputs: int = 4, pad: int = 1) -> str:
    more = f'convolution_param {{ num_output: {outputs} kernel_size: 3 pad: {pad} }}'
    return layer('Convolution', top, bottom, more=more)


def in_place(kind: str, name: str) -> str:
    return layer(kind, name, name)


def net_of(layers: str, phase: int) -> caffe.Net:
    """Return a net whose layers read `data`, 2 x 3 x 12 x 11, with drawn weights and data."""
    param = caffe.proto.caffe_pb2.NetParameter()
    shape = 'input_param { shape { dim: 2 dim: 3 dim: 12 dim: 11 } }'
    head = f'force_backward: true layer {{ name: "data" type: "Input" top: "data" {shape} }}\n'
    text_format.Parse(head + layers, param)
    net = caffe.Net(param, phase)
    rng = np.random.RandomState(1)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data[...] = rng.randn(*blob.shape) * 0.3
    net.blobs['data'].data[...] = rng.randn(2, 3, 12, 11)
    return net
