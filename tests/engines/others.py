"""The engines of others: each is imported, and loads the files, in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tests.engines.names import NET, ONNX, PICTURE, WEIGHTS, Run


def opencv(folder: Path) -> Run:
    import cv2

    cv2.setNumThreads(int(os.environ['OMP_NUM_THREADS']))
    net = cv2.dnn.readNetFromCaffe(str(folder / NET), str(folder / WEIGHTS))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    picture = np.load(folder / PICTURE)

    def run() -> np.ndarray:
        net.setInput(picture, 'data')
        return net.forward('score')

    return run


def onnxruntime(folder: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ['OMP_NUM_THREADS'])
    session = onnxruntime.InferenceSession(
        str(folder / ONNX), options, providers=['CPUExecutionProvider']
    )
    picture = np.load(folder / PICTURE)
    return lambda: session.run(None, {'data': picture})[0]


def openvino(folder: Path) -> Run:
    import openvino

    core = openvino.Core()
    hints = {
        'INFERENCE_NUM_THREADS': int(os.environ['OMP_NUM_THREADS']),
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': 'f32',
    }
    model = core.compile_model(core.read_model(str(folder / ONNX)), 'CPU', hints)
    picture = np.load(folder / PICTURE)
    return lambda: next(iter(model([picture]).values()))


def pycaffe(folder: Path) -> Run:
    import caffe

    net = caffe.Net(str(folder / NET), str(folder / WEIGHTS), caffe.TEST)
    net.blobs['data'].data[...] = np.load(folder / PICTURE)
    return lambda: net.forward()['score']
