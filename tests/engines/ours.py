"""This project and plain PyTorch as engines: inference, a training step, a product of matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import caffe_port as caffe
from caffe_port.proto.caffe_pb2 import SolverParameter
from nets import voc_fcn32s
from tests.engines import plain
from tests.engines.files import draw_weights
from tests.engines.names import NET, PICTURE, WEIGHTS, Run


def by_module(folder: Path, plan: bool = True, precision: str = 'fp32') -> Run:
    caffe.set_plan(plan)
    net = caffe.Net(str(folder / NET), str(folder / WEIGHTS), caffe.TEST)
    caffe.set_precision(precision)
    net.cast_weights()
    picture = torch.from_numpy(np.load(folder / PICTURE))

    @torch.no_grad()
    def run() -> np.ndarray:
        return net.module(data=picture)['score'].numpy()

    return run


def by_face(folder: Path) -> Run:
    net = caffe.Net(str(folder / NET), str(folder / WEIGHTS), caffe.TEST)
    net.blobs['data'].data[...] = np.load(folder / PICTURE)
    return lambda: net.forward()['score']


def by_plain_module(folder: Path) -> Run:
    module = plain.load(8, folder / WEIGHTS)
    picture = torch.from_numpy(np.load(folder / PICTURE))

    @torch.no_grad()
    def run() -> np.ndarray:
        return module(picture).numpy()

    return run


# A training step of FCN-32s; what it returns is of no matter.


def train(folder: Path, plan: bool = True, precision: str = 'fp32') -> Run:
    caffe.set_plan(plan)
    caffe.set_precision(precision)
    picture = np.load(folder / PICTURE)
    net = voc_fcn32s.fcn('train')
    data = net.layer[0]
    data.type = 'Input'
    data.ClearField('python_param')
    for channels in (3, 1):
        data.input_param.shape.add().dim.extend((1, channels, *picture.shape[2:]))
    # Drawn weights: the rate is so small that no step blows up.
    param = SolverParameter(base_lr=1e-14, momentum=0.99, weight_decay=0.0005, lr_policy='fixed')
    param.net_param.CopyFrom(net)
    solver = caffe.SGDSolver(param)
    draw_weights(solver.net)
    solver.net.blobs['data'].data[...] = picture
    solver.net.blobs['label'].data[...] = _labels(picture)

    def run() -> np.ndarray:
        solver.step(1)
        return np.zeros(1)

    return run


def _labels(picture: np.ndarray) -> np.ndarray:
    return np.random.RandomState(3).randint(0, 21, (1, 1, *picture.shape[2:]))


def train_plain_module(folder: Path) -> Run:
    picture = np.load(folder / PICTURE)
    module = plain.load(32).train()
    module.upscore.weight.requires_grad_(False)
    split = (
        [p for p in module.parameters() if p.dim() > 1],
        [p for p in module.parameters() if p.dim() == 1],
    )
    groups = [
        dict(params=split[0], lr=1e-14, weight_decay=0.0005),
        dict(params=split[1], lr=2e-14, weight_decay=0),
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.99)
    x, y = torch.from_numpy(picture), torch.from_numpy(_labels(picture)[0]).long()

    def run() -> np.ndarray:
        optimizer.zero_grad()
        F.cross_entropy(module(x), y, reduction='sum').backward()
        optimizer.step()
        return np.zeros(1)

    return run


def multiply(folder: Path) -> Run:
    """Multiply square matrices: 2 * 2048**3 operations."""
    a, b = torch.randn(2, 2048, 2048)
    return lambda: (a @ b)[:1].numpy()
