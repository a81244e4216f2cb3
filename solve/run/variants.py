"""Train a net on a sample in some variant of the published way, and score it."""

from __future__ import annotations

import ast
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import caffe_port as caffe
import surgery
from caffe_port import TEST, Net
from caffe_port.proto.caffe_pb2 import NetParameter, SolverParameter
from solve.run.counting import compute_hist, find_data_layers
from solve.run.loading import load_start
from solve.run.metrics import Scores


@dataclass(frozen=True)
class Trained:
    """A net after training: its losses by step, and the seconds that took."""

    net: Net
    losses: list[float]
    seconds: float


def set_rates(net: NetParameter, rates: Mapping[str, float]) -> NetParameter:
    """Return the net with the lr_mult of each named layer's params; '*' is for all others."""
    made = NetParameter()
    made.CopyFrom(net)
    for layer in made.layer:
        rate = rates.get(layer.name, rates.get('*'))
        convolution = layer.type in ('Convolution', 'Deconvolution')
        if rate is None or not (convolution or layer.type == 'InnerProduct'):
            continue
        while len(layer.param) < (1 if layer.type == 'Deconvolution' else 2):
            layer.param.add()
        for number, param in enumerate(layer.param):
            param.lr_mult = rate * (number + 1)  # biases learn twice as fast
    return made


def set_data(net: NetParameter, **changes: Any) -> NetParameter:
    """Return the net with `changes` in the param_str of its data layer."""
    made = NetParameter()
    made.CopyFrom(net)
    param = made.layer[0].python_param
    param.param_str = repr({**ast.literal_eval(param.param_str), **changes})
    return made


def train(net: NetParameter, weights: Path, constants: Mapping[str, Any], steps: int) -> Trained:
    """Train from a classifier's weights, all upsampling bilinear to begin with."""
    param = SolverParameter(**{'average_loss': 1, **constants, 'max_iter': steps})
    for field in ('snapshot', 'display'):
        param.ClearField(field)
    param.train_net_param.CopyFrom(net)
    solver = caffe.get_solver(param)
    # The lines of the transplant and of clipped gradients would hide the table.
    logging.getLogger('caffe_port').handlers.clear()
    with contextlib.redirect_stdout(None):
        load_start(solver.net, weights)
    surgery.interp(solver.net, [name for name in solver.net.params if 'up' in name])
    losses, start = [], time.monotonic()
    for _ in range(steps):
        solver.step(1)
        losses.append(float(solver.losses[-1]))
    return Trained(solver.net, losses, time.monotonic() - start)


def score(trained: Net, test: NetParameter, images: int | None = None) -> Scores:
    """Score the weights of a trained net on the first `images` of a split."""
    net = Net(test, TEST)
    net.share_with(trained)
    (layer,) = find_data_layers(net)
    return Scores(*compute_hist(net, None, layer.ids[:images]))


def mean_iu_without_background(scores: Scores) -> float:
    """Return the mean IU of the labelled classes but the first."""
    iu = scores.iu[1:][scores.labelled[1:]]
    return float(np.mean(iu)) if iu.size else float('nan')
