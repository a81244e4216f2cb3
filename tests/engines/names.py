"""What the benchmark of engines calls its contenders and files; imports no engine."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Computes the scores, 1 x 21 x H x W.
Run = Callable[[], np.ndarray]
NET, WEIGHTS, ONNX, PICTURE = 'deploy.prototxt', 'fcn8s.caffemodel', 'fcn8s.onnx', 'picture.npy'


class Contender(NamedTuple):
    """An engine: the module and function that load the files and return a Run."""

    module: str
    function: str
    arguments: dict[str, Any] = {}
    needs: str | None = None  # a package, without which it is left out
    precision: str | None = None  # one of 16 bits, which few CPUs have instructions for


def _other(function: str, needs: str) -> Contender:
    return Contender('others', function, needs=needs)


def _in_16_bits(function: str, precision: str) -> Contender:
    return Contender('ours', function, {'precision': precision}, precision=precision)


INFERENCE = {
    'ours': Contender('ours', 'by_module'),
    'ours, no plan': Contender('ours', 'by_module', {'plan': False}),
    'ours, bf16': _in_16_bits('by_module', 'bf16'),
    'ours, fp16': _in_16_bits('by_module', 'fp16'),
    'PyTorch module': Contender('ours', 'by_plain_module'),
    'OpenCV dnn': _other('opencv', 'cv2'),
    'ONNX Runtime': _other('onnxruntime', 'onnxruntime'),
    'OpenVINO': _other('openvino', 'openvino'),
    'pycaffe': _other('pycaffe', 'caffe'),
}
TRAINING = {
    'ours': Contender('ours', 'train'),
    'ours, no plan': Contender('ours', 'train', {'plan': False}),
    'ours, bf16': _in_16_bits('train', 'bf16'),
    'PyTorch module': Contender('ours', 'train_plain_module'),
}
FACES = {'net.module': Contender('ours', 'by_module'), 'Net.forward': Contender('ours', 'by_face')}
RATE = {'rate': Contender('ours', 'multiply')}
KINDS = {'infer': INFERENCE, 'train': TRAINING, 'face': FACES, 'rate': RATE}


def load(kind: str, name: str, folder: Path) -> Run:
    """Import an engine and let it load the files of a folder."""
    contender = KINDS[kind][name]
    module = importlib.import_module(f'tests.engines.{contender.module}')
    return getattr(module, contender.function)(folder, **contender.arguments)
