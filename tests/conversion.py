"""What the tests of the converter share: a tiny net, and how the command is run."""

from __future__ import annotations

import os
import pathlib

import numpy as np
import pytest

from caffe_port import convert, prototxt
from caffe_port.files import caffemodel, weights

KINDS = ('.caffemodel', '.caffemodel.h5', '.h5', '.pth', '.ckpt', '.safetensors', '.npz')
TINY = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [1, 2, 6, 6] } } }
layer { name: "a/conv.1" type: "Convolution" bottom: "data" top: "c"
        convolution_param { num_output: 3 kernel_size: 3 } }
layer { name: "fc" type: "InnerProduct" bottom: "c" top: "fc"
        inner_product_param { num_output: 4 } }
"""
# What arithmetic would not leave alone: a signalling nan, -0, the smallest number, infinity.
ODD = np.array([0x7F800001, 0x80000000, 1, 0xFF800000], np.uint32).view(np.float32)


def tiny_weights() -> dict[str, list[np.ndarray]]:
    random = np.random.RandomState(5)
    shapes = {'a/conv.1': [(3, 2, 3, 3), (3,)], 'fc': [(4, 48), (4,)]}
    return {
        name: [random.randn(*shape).astype(np.float32) for shape in each]
        for name, each in shapes.items()
    }


def bits(path) -> dict[str, list[tuple]]:
    return {
        layer.name: [(blob.shape, blob.array().tobytes()) for blob in layer.blobs]
        for layer in weights.read(path)
    }


def bits_of(arrays) -> dict[str, list[tuple]]:
    return {
        name: [(array.shape, array.tobytes()) for array in each] for name, each in arrays.items()
    }


def run(*arguments) -> int:
    return convert.main([str(argument) for argument in arguments])


def refused(capsys, *arguments) -> str:
    """The one line the command ends with; it must leave the folder of DST as it was."""
    folder = pathlib.Path(arguments[1]).parent if len(arguments) > 1 else None
    before = sorted(os.listdir(folder)) if folder and folder.is_dir() else None
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ')
    if before is not None:
        assert sorted(os.listdir(folder)) == before
    return lines[0]


def write_tiny(folder) -> tuple[pathlib.Path, dict[str, list[np.ndarray]]]:
    """A .caffemodel of the tiny net, with odd values in it, and its arrays."""
    arrays = tiny_weights()
    arrays['fc'][1][:] = ODD
    path = folder / 'tiny.caffemodel'
    caffemodel.write(path, prototxt.parse_net(TINY), arrays)
    return path, arrays


def h5py_for(*kinds) -> None:
    if any(kind.endswith('.h5') for kind in kinds):
        pytest.importorskip('h5py', reason='h5py reads HDF5')
