"""Shared by the tests of score.py and infer.py: narrow nets of random weights, run as commands."""

import sys

import numpy as np

import caffe_port as caffe
import surgery
from solve.run import options

NARROW = dict(width=2, fc=8)


def save_random(param, path, seed=0):
    """Fill a net with random weights, so that it predicts several classes, and save it."""
    net, rng = caffe.Net(param, caffe.TEST), np.random.RandomState(seed)
    for blobs in net.params.values():
        for blob in blobs:
            fan_in = max(blob.count // blob.shape[0], 1)
            blob.data[...] = rng.randn(*blob.shape) * np.sqrt(2 / fan_in)
    # Divided by about a pixel's size, so that scores are small and no loss is clamped.
    next(iter(net.params.values()))[0].data[...] /= 60
    surgery.interp(net, [name for name in net.params if 'up' in name])
    net.save(path)
    return path


def call(monkeypatch, main, *arguments):
    """Run a command in this process, on the CPU; return its exit status."""
    monkeypatch.setattr(sys, 'argv', ['command', *map(str, arguments)])
    monkeypatch.setattr(options, 'choose_device', lambda gpu: None)
    try:
        main()
    except SystemExit as exit:
        return exit.code
    return 0
