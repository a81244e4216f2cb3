"""Compare a layer with its formula, computed in float64 without the package.

Values: numpy or scipy from the formula. Gradients: central differences of the same
formula, compared with what Net.backward gives for a random gradient of the tops.
"""

from __future__ import annotations

import numpy as np

import caffe_port as caffe
from tests.vectors import assert_close, net_of

RANDOM = np.random.RandomState


def draw(*shape, seed=0, low=-2, high=2):
    return RANDOM(seed).uniform(low, high, shape).astype(np.float32)


def layer_net(type_: str, settings: str, bottoms, tops=1, phase=caffe.TEST) -> caffe.Net:
    """A net of Input layers b0, b1... and one layer of `type_` called `layer`."""
    text = ''.join(
        f'layer {{ name: "b{i}" type: "Input" top: "b{i}" input_param {{ shape {{ '
        + ' '.join(f'dim: {dim}' for dim in np.shape(bottom))
        + ' } } }\n'
        for i, bottom in enumerate(bottoms)
    )
    text += f'layer {{ name: "layer" type: "{type_}" ' + ' '.join(
        [f'bottom: "b{i}"' for i in range(len(bottoms))] + [f'top: "t{i}"' for i in range(tops)]
    )
    net = net_of(f'{text} {settings} }}', phase, force_backward=True)
    for i, bottom in enumerate(bottoms):
        net.blobs[f'b{i}'].data[...] = bottom
    return net


def run(type_: str, settings: str = '', *bottoms, tops=1, params=(), phase=caffe.TEST):
    net = layer_net(type_, settings, bottoms, tops, phase)
    for blob, values in zip(net.params.get('layer', ()), params):
        blob.data[...] = values
    net.forward()
    return net


def check(
    type_: str,
    settings: str,
    formula,
    *bottoms,
    params=(),
    fixed=(),
    tops=1,
    phase=caffe.TEST,
    gradient=True,
    tolerance=1e-5,
    slope=1e-3,
):
    """Compare values and gradients of a layer with `formula`(*bottoms, *params).

    The formula returns an array, or a tuple of `tops`. `fixed` lists the numbers of bottoms
    without gradient (labels); `slope` bounds the error of gradients.
    """
    net = run(type_, settings, *bottoms, tops=tops, params=params, phase=phase)
    inputs = [np.asarray(a, np.float64) for a in (*bottoms, *params)]
    found = [net.blobs[f't{i}'].data for i in range(tops)]
    expected = formula(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert_close(one, np.asarray(other), tolerance, f't{i}')
    if not gradient:
        return net
    weights = [RANDOM(9 + i).uniform(0.5, 1.5, top.shape) for i, top in enumerate(found)]
    for i, weight in enumerate(weights):
        net.blobs[f't{i}'].diff[...] = weight
    net.clear_param_diffs()
    net.backward()

    def total(values):
        result = formula(*values)
        result = result if isinstance(result, tuple) else (result,)
        return sum((w * r).sum() for w, r in zip(weights, result))

    diffs = [net.blobs[f'b{i}'].diff for i in range(len(bottoms))]
    diffs += [blob.diff for blob in net.params.get('layer', ())][: len(params)]
    for i, diff in enumerate(diffs):
        if i not in fixed:
            assert_close(diff, differences(total, inputs, i), slope, f'gradient {i}')
    return net


def differences(total, inputs, which, step=1e-5):
    """The gradient of total(inputs) along inputs[which], by central differences."""
    gradient = np.zeros(inputs[which].shape)
    for place in np.ndindex(gradient.shape):
        ends = []
        for sign in (step, -step):
            moved = [a.copy() for a in inputs]
            moved[which][place] += sign
            ends.append(total(moved))
        gradient[place] = (ends[0] - ends[1]) / (2 * step)
    return gradient


X = draw(2, 3, 4, 5)
