"""This project and plain PyTorch as engines: inference, a training step, a product of matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import caffe_port as caffe
from caffe_port import mode
from caffe_port.proto.caffe_pb2 import SolverParameter
from nets import voc_fcn32s
from tests.engines import plain
from tests.engines.files import draw_weights
from tests.engines.names import NET, PICTURE, SIDES, WEIGHTS, Run


def use_gpu() -> None:
    """Let what is made from now on compute on the first GPU."""
    caffe.set_mode_gpu()


def _wait() -> None:
    if mode.device().type == 'cuda':
        torch.cuda.synchronize()


def by_module(folder: Path, plan: bool = True, precision: str = 'fp32') -> Run:
    caffe.set_plan(plan)
    net = caffe.Net(str(folder / NET), str(folder / WEIGHTS), caffe.TEST)
    caffe.set_precision(precision)
    net.cast_weights()
    net.follow_device()
    picture = torch.from_numpy(np.load(folder / PICTURE))

    @torch.no_grad()
    def run() -> np.ndarray:
        return net.module(data=picture.to(mode.device()))['score'].cpu().numpy()

    return run


def by_face(folder: Path) -> Run:
    net = caffe.Net(str(folder / NET), str(folder / WEIGHTS), caffe.TEST)
    net.blobs['data'].data[...] = np.load(folder / PICTURE)
    return lambda: net.forward()['score']


def by_plain_module(folder: Path) -> Run:
    module = plain.load(8, folder / WEIGHTS).to(mode.device())
    picture = torch.from_numpy(np.load(folder / PICTURE))

    @torch.no_grad()
    def run() -> np.ndarray:
        return module(picture.to(mode.device())).cpu().numpy()

    return run


# A training step of FCN-32s; what it returns is of no matter.


def train(folder: Path, plan: bool = True, precision: str = 'fp32', recompute: bool = False) -> Run:
    caffe.set_plan(plan)
    caffe.set_recompute(recompute)
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
        _wait()
        return np.zeros(1)

    return run


def _labels(picture: np.ndarray) -> np.ndarray:
    return np.random.RandomState(3).randint(0, 21, (1, 1, *picture.shape[2:]))


def train_plain_module(folder: Path) -> Run:
    picture = np.load(folder / PICTURE)
    module = plain.load(32).train().to(mode.device())
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
    x, y = x.to(mode.device()), y.to(mode.device())

    def run() -> np.ndarray:
        optimizer.zero_grad()
        F.cross_entropy(module(x), y, reduction='sum').backward()
        optimizer.step()
        _wait()
        return np.zeros(1)

    return run


def multiply(folder: Path, precision: str = 'fp32') -> Run:
    """Multiply square matrices: 2 * side**3 operations."""
    caffe.set_precision(precision)
    side = SIDES['cpu' if mode.device().type == 'cpu' else 'gpu']
    a, b = torch.randn(2, side, side, device=mode.device(), dtype=mode.low_dtype())

    def run() -> np.ndarray:
        (a @ b)[:1].float().cpu()
        return np.zeros(1)

    return run
