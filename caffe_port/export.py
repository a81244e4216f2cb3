"""Export a net with its weights for other engines: ONNX, or PyTorch's exported program."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from caffe_port.errors import CaffeError, replacing
from caffe_port.files.stored import import_library, translate_errors
from caffe_port.net import Net
from caffe_port.ops.base import Shape
from caffe_port.verify import NamedTensors, compare, draw_inputs

EXPORT_SUFFIXES = ('.onnx', '.pt2')
# Sides that are tried as the least of the images that a net takes, smallest first.
_LEAST_SIDES = (32, 64, 128, 256)
# Larger than any pooling stride, so that a program traced at one size cannot fit the other by
# chance.
_STEP = 32


def is_export(path: str | os.PathLike) -> bool:
    """Say whether the suffix of a path is one of EXPORT_SUFFIXES."""
    return os.fspath(path).endswith(EXPORT_SUFFIXES)


def check_libraries(path: str | os.PathLike, verify: bool) -> None:
    """Raise CaffeError if a library needed to write or verify the file `path` is missing."""
    if os.fspath(path).endswith('.onnx'):
        import_library('onnxscript', path, 'onnx')
        if verify:
            import_library('onnxruntime', path, 'onnx')


def export(net: Net, path: str | os.PathLike) -> int | None:
    """Write a net as .onnx or .pt2; inputs and outputs have their blobs' names.

    Height and width of the images are dynamic, where the layers permit, and the batch has the
    net's size. A .pt2 takes the inputs by position and returns a dict.

    Returns the least side of the images, or None if sizes are fixed. Raises CaffeError if
    PyTorch cannot export the net.
    """
    shapes = _shapes(net)
    least = next((side for side in _LEAST_SIDES if _takes(net, _squares(shapes, side))), None)
    if least is not None and _takes(net, _widen(shapes)):
        shapes = _widen(shapes)
    else:
        least = None
    example = tuple(torch.zeros(shape) for shape in shapes.values())
    dynamic = None
    if least is not None:
        height, width = (torch.export.Dim(name, min=least) for name in ('height', 'width'))
        dynamic = (tuple({2: height, 3: width} for _ in example),)
    training = net.module.training
    try:
        with translate_errors(path, 'cannot be exported'), _quiet(), replacing(path) as temporary:
            program = torch.export.export(net.module.eval(), example, dynamic_shapes=dynamic)
            if os.fspath(path).endswith('.pt2'):
                with open(temporary, 'wb') as out:
                    torch.export.save(program, out)
            else:
                onnx = torch.onnx.export(
                    program,
                    dynamo=True,
                    verbose=False,
                    dynamic_shapes=dynamic,  # for the names of the axes
                    input_names=net.inputs,
                    output_names=net.outputs,
                )
                if onnx is None:
                    raise CaffeError(f'{path}: PyTorch made no ONNX program')
                onnx.save(temporary, external_data=False)
    finally:
        net.module.train(training)
    return least


def verify_export(net: Net, path: str | os.PathLike, least: int | None) -> Iterator[str]:
    """Run a file of `export` and the net on the same images; yield the findings.

    The images are of the net's size and, where sizes are dynamic, of two others.
    Raises CaffeError if outputs differ by more than whole nets may.
    """
    shapes = _shapes(net)
    sizes = [shapes]
    if least is not None:
        sizes = [_squares(shapes, least), _widen(_squares(shapes, least + 9)), shapes]
    run = _runner(net, path)
    for each in sizes:
        inputs = draw_inputs(each)
        with torch.no_grad():
            expected = net.module(**inputs)
        with translate_errors(path, 'cannot be run'):
            found = run(inputs)
        high, wide = next(iter(each.values()))[2:] if least is not None else (None, None)
        yield from compare(f'{high} x {wide}' if high else 'as exported', expected, found)
        for name in expected:
            if expected[name].dim() == 4 and expected[name].shape[1] > 1:
                same = expected[name].argmax(1) == found[name].argmax(1)
                yield f'verify: argmax of {name}: {int(same.sum())} of {same.numel()} pixels agree'


def _runner(net: Net, path: str | os.PathLike):
    """Return a function that runs the file on inputs by name."""
    if os.fspath(path).endswith('.pt2'):
        with translate_errors(path, 'cannot be loaded'), _quiet():
            module = torch.export.load(os.fspath(path)).module()

        def run_program(inputs: NamedTensors) -> NamedTensors:
            with torch.no_grad():
                return module(*inputs.values())

        return run_program
    runtime = import_library('onnxruntime', path, 'onnx')
    with translate_errors(path, 'cannot be loaded'):
        session = runtime.InferenceSession(os.fspath(path), providers=['CPUExecutionProvider'])

    def run_onnx(inputs: NamedTensors) -> NamedTensors:
        arrays: dict[str, np.ndarray] = {name: value.numpy() for name, value in inputs.items()}
        found = session.run(net.outputs, arrays)
        return {name: torch.from_numpy(array) for name, array in zip(net.outputs, found)}

    return run_onnx


def _shapes(net: Net) -> dict[str, Shape]:
    if not net.inputs:
        raise CaffeError(f'net "{net.name}" has no inputs to export: take a deploy net')
    return {name: net.module.shapes[name] for name in net.inputs}


def _squares(shapes: dict[str, Shape], side: int) -> dict[str, Shape]:
    return {name: (*shape[:2], side, side) for name, shape in shapes.items()}


def _widen(shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Return the shapes for images of another width."""
    return {name: (*shape[:3], shape[3] + _STEP) for name, shape in shapes.items()}


def _takes(net: Net, shapes: dict[str, Shape]) -> bool:
    """Say whether images of these sizes can pass through the net."""
    if any(len(net.module.shapes[name]) != 4 for name in shapes):
        return False
    try:
        found = net.module.infer_shapes(shapes)
    except CaffeError:
        return False
    return all(min(shape, default=1) > 0 for shape in found.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' own messages."""
    log = logging.getLogger('torch.onnx')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        log.setLevel(level)
