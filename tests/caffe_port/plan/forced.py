"""Nets small enough for a test, computed by plan as large ones are."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

import caffe_port as caffe
from caffe_port.plan import faster, lines, planner, products, steps, stretches, switch

NETS = [
    'voc_fcn32s',
    'voc_fcn16s',
    'voc_fcn8s',
    'voc_fcn8s_atonce',
    'voc_fcn_alexnet',
    'nyud_fcn32s_color',
    'nyud_fcn32s_color_d',
    'nyud_fcn32s_hha',
    'nyud_fcn32s_color_hha',
    'siftflow_fcn32s',
    'siftflow_fcn16s',
    'siftflow_fcn8s',
    'pascalcontext_fcn32s',
    'pascalcontext_fcn16s',
    'pascalcontext_fcn8s',
]


# Fewer scores may all be small, so that their rounding is large beside the largest.
CLASSES = 16


def force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn plans on for one test, and let every line apply whatever it saves."""
    monkeypatch.setattr(switch, '_on', True)
    monkeypatch.setattr(planner, 'LEAST', 0)
    monkeypatch.setattr(faster, 'LEAST', 0)
    monkeypatch.setattr(stretches, 'LEAST', 0)
    monkeypatch.setattr(stretches, 'LEAST_PER_VALUE', 0)
    for which in 'BOTTOM', 'WEIGHT':
        monkeypatch.setattr(steps, f'LEAST_FOR_{which}', 4)
    monkeypatch.setattr(lines, 'LEAST_CHANNELS', 4)
    monkeypatch.setattr(products, 'LEAST_WEIGHTS', 16 * 32 * 49)


def drawn(name: str, split: str = 'deploy', phase: int = caffe.TEST, **widths: int) -> caffe.Net:
    """Return a narrow net of an experiment, of few classes, its weights drawn.

    Its upsampling is bilinear.
    """
    widths = {'width': 4, 'fc': 16, **widths}
    param = importlib.import_module(f'nets.{name}').fcn(split, **widths)
    for layer in param.layer:
        if 'score' in layer.name and layer.HasField('convolution_param'):
            classes = min(layer.convolution_param.num_output, CLASSES)
            layer.convolution_param.num_output = classes
    if split != 'deploy':
        data = param.layer[0]
        data.type = 'Input'
        data.ClearField('python_param')
        for top in data.top:
            channels = 1 if top in ('label', 'sem', 'geo', 'depth') else 3
            data.input_param.shape.add().dim.extend((1, channels, 8, 8))
    net = caffe.Net(param, phase)
    redraw(net)
    return net


def bilinear(size: int) -> np.ndarray:
    """Return the kernel from its definition: a triangle of half-width `factor` on each axis."""
    factor = (size + 1) // 2
    line = 1 - np.abs(np.arange(size) - (size - 1) / 2) / factor
    return np.outer(line, line)


def redraw(net: caffe.Net, seed: int = 0) -> None:
    """Draw weights anew, by host arrays, as pycaffe's users do."""
    rng = np.random.RandomState(seed)
    for name, (weight, *rest) in net.params.items():
        if 'up' in name:
            diagonal = range(weight.shape[0])
            weight.data[...] = 0
            weight.data[diagonal, diagonal] = bilinear(weight.shape[2])
        elif 'scale' not in name:
            weight.data[...] = rng.randn(*weight.shape) * np.sqrt(2 / weight.data[0].size)
            for bias in rest:
                bias.data[...] = rng.randn(*bias.shape) * 0.1


def images(net: caffe.Net, size: tuple[int, int], batch: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    return {
        name: 50 * torch.randn(batch, net.blobs[name].channels, *size, generator=generator)
        for name in net.inputs
    }


def assert_near(found, expected, tolerance: float = 1e-5, what: str = '') -> None:
    """Hold tensors or arrays against each other, relative to the largest value expected."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape, what
    apart = float((found.detach() - expected.detach()).abs().max())
    scale = float(expected.detach().abs().max())
    assert apart <= tolerance * scale, f'{what}: {apart:.3g} apart at scale {scale:.3g}'
