"""What the benchmark of engines calls its contenders and files; imports no engine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Computes the scores, 1 x 21 x H x W.
Run = Callable[[], np.ndarray]
# Of the matrices whose product shows the arithmetic that a device can do.
SIDES = {'cpu': 2048, 'gpu': 8192}
NET, WEIGHTS, ONNX, PICTURE = 'deploy.prototxt', 'fcn8s.caffemodel', 'fcn8s.onnx', 'picture.npy'


class Contender(NamedTuple):
    """An engine: the module and function that load the files and return a Run."""

    module: str
    function: str
    arguments: dict[str, Any] = {}
    needs: str | None = None  # a package, without which it is left out
    precision: str = 'fp32'
    on: Sequence[str] = ('cpu', 'gpu')


def _other(function: str, needs: str) -> Contender:
    return Contender('others', function, needs=needs, on=('cpu',))


def _in(precision: str, function: str, on: Sequence[str] = ('cpu', 'gpu')) -> Contender:
    return Contender('ours', function, {'precision': precision}, precision=precision, on=on)


INFERENCE = {
    'ours': Contender('ours', 'by_module'),
    'ours, no plan': Contender('ours', 'by_module', {'plan': False}, on=('cpu',)),
    'ours, tf32': _in('tf32', 'by_module', on=('gpu',)),
    'ours, bf16': _in('bf16', 'by_module'),
    'ours, fp16': _in('fp16', 'by_module'),
    'PyTorch module': Contender('ours', 'by_plain_module'),
    'OpenCV dnn': _other('opencv', 'cv2'),
    'ONNX Runtime': _other('onnxruntime', 'onnxruntime'),
    'OpenVINO': _other('openvino', 'openvino'),
    'pycaffe': _other('pycaffe', 'caffe'),
}
TRAINING = {
    'ours': Contender('ours', 'train'),
    'ours, recompute': Contender('ours', 'train', {'recompute': True}, on=('cpu',)),
    'ours, no plan': Contender('ours', 'train', {'plan': False}, on=('cpu',)),
    'ours, tf32': _in('tf32', 'train', on=('gpu',)),
    'ours, bf16': _in('bf16', 'train'),
    'PyTorch module': Contender('ours', 'train_plain_module'),
}
FACES = {'net.module': Contender('ours', 'by_module'), 'Net.forward': Contender('ours', 'by_face')}
RATE = {
    'fp32': Contender('ours', 'multiply'),
    **{each: _in(each, 'multiply', on=('gpu',)) for each in ('tf32', 'bf16', 'fp16')},
}
KINDS = {'infer': INFERENCE, 'train': TRAINING, 'face': FACES, 'rate': RATE}


def load(kind: str, name: str, folder: Path, device: str) -> Run:
    """Import an engine and let it load the files of a folder; device is 'cpu' or 'gpu'."""
    contender = KINDS[kind][name]
    module = importlib.import_module(f'tests.engines.{contender.module}')
    if device == 'gpu':
        module.use_gpu()
    return getattr(module, contender.function)(folder, **contender.arguments)
