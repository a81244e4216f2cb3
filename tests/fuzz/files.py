"""Whole files of every kind that a stranger may hand over, made from a seed."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random

import h5py
import numpy as np
import scipy.io
import torch
from PIL import Image

from caffe_port.files import caffemodel, weights
from caffe_port.proto.caffe_pb2 import BlobProto, NetParameter, V1LayerParameter
from nets import siftflow_fcn16s, voc_fcn8s, voc_fcn_alexnet
from tests.vectors import GOLDEN

NARROW = dict(width=2, fc=4)
LAYERS = GOLDEN / 'layers'
Make = Callable[[Random, Path], None]


def nets() -> list[NetParameter]:
    return [
        voc_fcn8s.fcn('deploy', **NARROW),
        siftflow_fcn16s.fcn('deploy', **NARROW),
        voc_fcn_alexnet.fcn('deploy', width=4, fc=4),
    ]


def arrays(rng: Random) -> dict[str, list[np.ndarray]]:
    """A few layers' blobs, of all numbers of axes, some of them empty or odd."""
    numbers = np.random.RandomState(rng.randrange(2**32))
    made = {}
    for i in range(rng.randrange(1, 5)):
        shapes = [
            tuple(rng.choice((0, 1, 2, 3, 7)) for _ in range(rng.randrange(5)))
            for _ in range(rng.randrange(1, 4))
        ]
        made[f'layer{i}'] = [
            np.array(numbers.standard_normal(shape), np.float32) for shape in shapes
        ]
    return made


def net_of(blobs: dict[str, list[np.ndarray]]) -> NetParameter:
    return NetParameter(layer=[dict(name=name, type='Convolution') for name in blobs])


def model(rng: Random, path: Path) -> None:
    blobs = arrays(rng)
    caffemodel.write(path, net_of(blobs), blobs)


def old_model(rng: Random, path: Path) -> None:
    """A .caffemodel of the first or the second format, as protobuf writes it."""
    if rng.random() < 0.3:
        path.write_bytes((GOLDEN / 'formats/legacy_v1.caffemodel').read_bytes())
        return
    net = NetParameter(name='old')
    for name, blobs in arrays(rng).items():
        layer = net.layers.add()
        target = layer
        if rng.random() < 0.5:
            target = layer.layer
            target.type = rng.choice(('conv', 'innerproduct', 'relu'))
        else:
            layer.type = rng.choice((V1LayerParameter.CONVOLUTION, V1LayerParameter.INNER_PRODUCT))
        target.name = name
        for blob in blobs:
            stored = target.blobs.add(num=1, channels=1, height=1, width=blob.size)
            (stored.data if rng.random() < 0.7 else stored.double_data).extend(blob.flat)
    path.write_bytes(net.SerializeToString())


def state(rng: Random, path: Path) -> None:
    history = [array for blobs in arrays(rng).values() for array in blobs]
    caffemodel.write_state(path, rng.randrange(100), 'x.caffemodel', history, 0)


def mean(rng: Random, path: Path) -> None:
    blob = BlobProto(num=1, channels=3, height=4, width=5, data=range(60))
    path.write_bytes(blob.SerializeToString())


def hdf5_model(rng: Random, path: Path) -> None:
    """What Caffe writes, or what h5py can do that Caffe does not."""
    with h5py.File(path, 'w') as file:
        group = file.create_group(rng.choice(('data', 'data', 'data', 'diff')))
        for name, blobs in arrays(rng).items():
            layer = group.create_group(name)
            for i, blob in enumerate(blobs):
                odd = rng.random()
                if odd < 0.7 or not blob.size or not blob.ndim:
                    layer.create_dataset(str(i), data=blob)
                elif odd < 0.75:
                    layer.create_dataset(str(i), data=blob, compression='gzip')
                elif odd < 0.8:
                    layer.create_dataset(str(i), (1 << 28,), 'f4', chunks=(1,))
                elif odd < 0.85:
                    layer[str(i)] = h5py.SoftLink(rng.choice(('/', '/data', '/nowhere', '.')))
                elif odd < 0.9:
                    layer[str(i)] = h5py.ExternalLink(rng.choice(('x.h5', str(path))), '/data')
                elif odd < 0.95:
                    layer.create_dataset(str(i), (1 << 40,), 'f4')
                else:
                    layer[str(i)] = file['/']


def hdf5_state(rng: Random, path: Path) -> None:
    history = [array for blobs in arrays(rng).values() for array in blobs]
    caffemodel.write_state_hdf5(path, rng.randrange(100), 'x.caffemodel.h5', history, 0)


def tensors(rng: Random) -> dict:
    return {
        f'{name}.{part}': torch.from_numpy(blob)
        for name, blobs in arrays(rng).items()
        for part, blob in zip(('weight', 'bias', '2'), blobs)
    }


def torch_file(rng: Random, path: Path) -> None:
    """A state_dict, a checkpoint around one, or what only looks like one."""
    content: object = OrderedDict(tensors(rng))
    kind = rng.random()
    if kind < 0.1:
        content = {'state_dict': content, 'epoch': 3}
    elif kind < 0.15:
        content = [content]
    elif kind < 0.2:
        content = {'a.weight': torch.zeros(1).expand(1 << 28)}
    elif kind < 0.25:
        content = {'a.weight': torch.zeros(2, 2).to_sparse()}
    torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.85)


def torch_pickle(rng: Random, path: Path) -> None:
    """A zip as torch.save makes it, around a pickle of small programs that ask for much."""
    programs = (
        b'\x80\x02}q\x00.',
        # bytearray of four thousand million, a list doubled over and over, deep nesting.
        b'\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.',
        b'\x80\x02]' + b'(hh' * 3 + b'.',
        b'\x80\x02' + b'(' * 5000 + b't' * 5000 + b'.',
        b'\x80\x02' + b'}' * 3000 + b'.',
        b'\x80\x04\x96\xff\xff\xff\xff\x00\x00\x00\x00.',
        pickle.dumps({'a': 2**100000}, 2),
        b'\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.',
    )
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', rng.choice(programs))
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/data/0', bytes(16))


def safetensors_file(rng: Random, path: Path) -> None:
    weights.write(path, stored(rng, path))


def npz(rng: Random, path: Path) -> None:
    named = {key: tensor.numpy() for key, tensor in tensors(rng).items()}
    if rng.random() < 0.2:
        named['a.weight'] = np.array([{}, 1], object) if rng.random() < 0.5 else np.arange(3)
    (np.savez_compressed if rng.random() < 0.3 else np.savez)(path.with_suffix('.npz'), **named)
    if path.suffix != '.npz':
        path.with_suffix('.npz').rename(path)


def stored(rng: Random, path: Path) -> list:
    """Layers as weights.write takes them, by way of a .caffemodel."""
    beside = path.with_suffix('.source.caffemodel')
    model(rng, beside)
    return weights.read(beside)


def prototxt(rng: Random, path: Path) -> None:
    texts = [str(net) for net in nets()]
    texts.append((GOLDEN / 'formats/legacy_v1.prototxt').read_text())
    with np.load(rng.choice(sorted(LAYERS.iterdir()))) as vector:
        texts += [str(vector['prototxt'])] * 3
    path.write_text(rng.choice(texts))


def solver(rng: Random, path: Path) -> None:
    net = 'layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 } } }'
    path.write_text(
        f'net_param {{ {net} }} base_lr: 0.1 lr_policy: "{rng.choice(("fixed", "step", "poly"))}" '
        'gamma: 0.5 stepsize: 2 power: 1 max_iter: 4 momentum: 0.9 weight_decay: 0.1 '
        'snapshot: 0 test_iter: 1 test_interval: 2 random_seed: 3 type: "SGD"\n'
    )


def memory(rng: Random, path: Path) -> None:
    words = list(np.random.RandomState(1).get_state()[1].tolist())
    streams = dict(key=words, position=624, has_gauss=0, gauss=0.0, device_seed=3, devices={})
    path.write_text(
        json.dumps(
            dict(
                iter=4,
                type='SGD',
                streams=streams,
                streams_of_other_ranks=[],
                layers={},
                layers_of_other_ranks=[],
                losses=[0.5, 0.25],
                notes={'best': {'iteration': 4, 'mean_iu': 0.5}},
            )
        )
    )


def mat(rng: Random, path: Path) -> None:
    labels = np.random.RandomState(rng.randrange(2**32)).randint(0, 21, (9, 11)).astype(np.uint8)
    content = {'GTcls': {'Segmentation': labels}} if rng.random() < 0.5 else {'S': labels}
    scipy.io.savemat(path, content, do_compression=rng.random() < 0.5)


def picture(rng: Random, path: Path) -> None:
    pixels = np.random.RandomState(rng.randrange(2**32)).randint(0, 255, (9, 11, 3), np.uint8)
    image = Image.fromarray(pixels)
    if rng.random() < 0.5:
        image = image.convert(rng.choice(('L', 'P', '1')))
    out = io.BytesIO()
    image.convert('RGB' if path.suffix == '.jpg' else image.mode).save(
        out, 'JPEG' if path.suffix == '.jpg' else 'PNG'
    )
    path.write_bytes(out.getvalue())
