"""Train a net in some variant of the published way, as a part of a job, and score it."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import surgery
from caffe_port import Net, SGDSolver
from caffe_port.proto.caffe_pb2 import NetParameter
from solve.datasets import voc
from solve.datasets.layer import SegDataLayer
from solve.run import log
from solve.run.counting import compute_hist, find_data_layers
from solve.run.inventory import EXPERIMENTS, open_layer
from solve.run.job import Job
from solve.run.metrics import Scores


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


def train(
    job: Job,
    name: str,
    fcn: Callable[..., NetParameter],
    solver: Mapping[str, Any],
    steps: int | None = None,
    **changes: Any,
) -> tuple[SGDSolver, Path]:
    """Train a variant as a part of a job; return its solver and the folder of its log.

    It starts from the job's weights, all upsampling bilinear. Its constants are those of `solver`,
    or of the sample, with `changes`; its iterations are `steps`, or --iterations, or theirs.
    """
    constants = {**solver, **job.constants, **changes}
    steps = steps or job.iterations or int(constants['max_iter'])
    part = job.make_part(name, constants=constants, iterations=steps, step=None)
    made = part.make_solver({}, fcn, train='train', test='seg11valid')
    if not part.restore(made):
        with contextlib.redirect_stdout(None):  # which layers are copied is the same each time
            part.load_weights(made.net)
        surgery.interp(made.net, [name for name in made.net.params if 'up' in name])
    with part.watch(made, rounds=1, step=steps, prune=part.prune) as rounds:
        for iterations in rounds:
            made.step(iterations)
    return made, part.folder


def score(trained: Net, test: Net) -> Scores:
    """Score the weights of a trained net by a test net, on all images of its data layer."""
    test.share_with(trained)
    (layer,) = find_data_layers(test)
    return Scores(*compute_hist(test, None, layer.ids))


def open_training(net: Mapping[str, Any]) -> SegDataLayer:
    """Open SBD's data layer, by the arguments of fcn()."""
    places = {place: Path(net[place]) for place in voc.PLACES}
    return open_layer(EXPERIMENTS['voc_fcn32s'].train, places)


def read_displays(folder: Path) -> list[dict[str, Any]]:
    """Return the log's lines with a loss, by iteration; of one that is there twice the last."""
    found = {line['iteration']: line for line in log.read(folder) if 'loss' in line}
    return [line for _, line in sorted(found.items())]


def mean_iu_without_background(scores: Scores) -> float:
    """Return the mean IU of the labelled classes but the first."""
    iu = scores.iu[1:][scores.labelled[1:]]
    return float(np.mean(iu)) if iu.size else float('nan')
