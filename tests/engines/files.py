"""The files that all engines read: a net with drawn weights, a picture, an export to ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import caffe_port as caffe
import surgery
from caffe_port import prototxt
from nets import voc_fcn8s
from tests.engines.names import NET, ONNX, PICTURE, WEIGHTS


def prepare(folder: Path, size: tuple[int, int], with_onnx: bool) -> None:
    """Write prototxt, drawn weights, picture and, if asked for, the export to ONNX."""
    param = voc_fcn8s.fcn('deploy')
    param.layer[0].input_param.shape[0].dim[:] = [1, 3, *size]
    prototxt.write(param, folder / NET)
    net = caffe.Net(param, caffe.TEST)
    draw_weights(net)
    if not (folder / WEIGHTS).exists():
        net.save(folder / WEIGHTS)
    picture = np.random.RandomState(2).randn(1, 3, *size).astype(np.float32) * 50
    np.save(folder / PICTURE, picture)
    if with_onnx:
        caffe.set_plan(False)

        class Score(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net.module

            def forward(self, data: torch.Tensor) -> torch.Tensor:
                return self.net(data=data)['score']

        names = dict(input_names=['data'], output_names=['score'])
        data = torch.from_numpy(picture)
        torch.onnx.export(Score(), (data,), str(folder / ONNX), dynamo=False, **names)


def draw_weights(net) -> None:
    """Draw He weights and small biases; upsampling is bilinear."""
    generator = torch.Generator().manual_seed(1)
    for name, (weight, *biases) in net.params.items():
        if 'up' not in name:
            fan_in = weight.parameter[0].numel()
            weight.parameter.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            for bias in biases:
                bias.parameter.data.normal_(0, 0.1, generator=generator)
    surgery.interp(net, [name for name in net.params if 'up' in name])
