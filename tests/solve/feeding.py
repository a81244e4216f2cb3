"""Small data sets on disk, one of each kind, and layers run on them as nets run them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image

import caffe_port as caffe
from caffe_port import Blob
from nets import vgg16
from solve.datasets import nyud, pascalcontext, siftflow, voc
from tests.vectors import FACTS

GIF = b'GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;'
BROKEN = {
    'empty': lambda whole: b'',
    'truncated': lambda whole: whole[: len(whole) * 3 // 5],
    'head only': lambda whole: whole[:20],
    'random': lambda whole: np.random.RandomState(0).bytes(len(whole)),
    'of another kind': lambda whole: GIF,
}


def make(layer_class, count, /, **params):
    """Set up a layer of `count` tops as a net does: setup, then one reshape."""
    layer, blobs = layer_class(), [Blob() for _ in range(count)]
    layer.param_str = repr(params)
    layer.setup([], blobs)
    layer.reshape([], blobs)
    return layer, blobs


def step(layer, blobs):
    """Run one forward pass; return the id that was fed."""
    layer.reshape([], blobs)
    layer.forward([], blobs)
    return layer.current


def fed(layer, blobs, count):
    return [step(layer, blobs) for _ in range(count)]


def fed_whole(layer_class, count, **params):
    """Yield the tops of every image of a split, in order."""
    layer, blobs = make(layer_class, count, randomize=False, seed=1, **params)
    for _ in layer.ids:
        step(layer, blobs)
        yield [blob.data[0].copy() for blob in blobs]


def noise(name, *shape):
    """Return uint8 noise, the same for the same id."""
    seed = sum(map(ord, name))
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def facts(data_set):
    return json.loads((FACTS / 'datasets.json').read_text())[data_set]


def official_params(module, layer):
    """param_str and number of tops of every official layer of a kind."""
    nets = json.loads((FACTS / 'official_nets.json').read_text())
    return [
        (dict(found['python_param']['param_str']), len(found['top']))
        for net in nets.values()
        for phase in ('train_net', 'test_net')
        for found in net[phase]
        if found['type'] == 'Python'
        and (found['python_param']['module'], found['python_param']['layer']) == (module, layer)
    ]


# Data sets on disk.

IDS = ['2008_000003', '2008_000001', '2010_000007']
# Height and width. No two are equal, so that a shape identifies its image; the numbers of all
# labels fit in.
SIZES = dict(zip(IDS, [(20, 25), (23, 21), (24, 22)]))


def save_picture(path, pixels):
    Image.fromarray(pixels).save(path)


def save_palette(path, labels):
    image = Image.fromarray(labels)
    image.putpalette(voc.palette().tobytes())
    image.save(path)


def save_sbd(path, labels):
    """As SBD's files: more fields than the labels, sparse matrices in cells among them."""
    boundaries = np.empty((20, 1), object)
    boundaries[:] = [[scipy.sparse.csc_matrix(np.eye(3))]] * 20
    present = np.array([[1], [20]], np.uint8)
    truth = {'Boundaries': boundaries, 'Segmentation': labels, 'CategoriesPresent': present}
    scipy.io.savemat(path, {'GTcls': truth}, do_compression=True)


def mat_saver(variable):
    return lambda path, labels: scipy.io.savemat(path, {'other': 'text', variable: labels})


class Label(NamedTuple):
    """How a data set stores labels: the class of every number, their type, how they are saved."""

    classes: dict[int, int]
    dtype: type
    save: Callable


class Kind(NamedTuple):
    """A kind of data set: `tops` are the tops by their names in the facts' layout."""

    layer: type
    release: str
    facts: str
    places: dict[str, str]
    splits: tuple[str, str]
    tops: dict[str, str]
    labels: dict[str, Label]


def from_one(classes):
    return {0: 255, **{number: number - 1 for number in range(1, classes + 1)}}


def context_classes():
    known, renamed = facts('pascalcontext'), facts('pascalcontext')['renamings']
    numbers = {renamed.get(name, name): i for i, name in enumerate(known['classes']) if i}
    names = [name.replace(' ', '') for name in known['annotated_classes']]
    return {0: 0, **{number: numbers.get(name, 0) for number, name in enumerate(names, 1)}}


KINDS = {
    'sbd': Kind(
        voc.SBDDSegDataLayer, 'voc_layers', 'sbd', {'sbdd_dir': 'sbd'}, ('train', 'val'),
        dict(data='image', label='label'),
        dict(label=Label({i: i for i in range(21)}, np.uint8, save_sbd)),
    ),
    'voc': Kind(
        voc.VOCSegDataLayer, 'voc_layers', 'voc', {'voc_dir': 'voc'}, ('train', 'val'),
        dict(data='image', label='label'),
        dict(label=Label({i: i for i in (*range(21), 255)}, np.uint8, save_palette)),
    ),
    'nyud': Kind(
        nyud.NYUDSegDataLayer, 'nyud_layers', 'nyud', {'nyud_dir': 'nyud'}, ('trainval', 'test'),
        {top: top for top in ('color', 'depth', 'hha', 'label')},
        dict(label=Label(from_one(40), np.uint8, mat_saver('segmentation'))),
    ),
    'siftflow': Kind(
        siftflow.SIFTFlowSegDataLayer, 'siftflow_layers', 'siftflow', {'siftflow_dir': 'sift'},
        ('trainval', 'test'), dict(data='image', sem='semantic', geo='geometric'),
        dict(sem=Label(from_one(33), np.uint8, mat_saver('S')),
             geo=Label({-1: 255, **from_one(3)}, np.int16, mat_saver('S'))),
    ),
    'pascalcontext': Kind(
        pascalcontext.PASCALContextSegDataLayer, 'pascalcontext_layers', 'pascalcontext',
        {'voc_dir': 'pascal', 'context_dir': 'context'}, ('train', 'val'),
        dict(data='image', label='label'),
        dict(label=Label(context_classes(), np.uint16, mat_saver('LabelMap'))),
    ),
}  # fmt: skip


class Tree:
    """A data set of a kind, drawn below a folder: three images, each of its own size."""

    def __init__(self, kind: str, root: Path):
        self.kind = KINDS[kind]
        self.params: dict[str, Any] = {
            name: str(root / folder) for name, folder in self.kind.places.items()
        }
        for name, (height, width) in SIZES.items():
            for top, key in self.kind.tops.items():
                path = self.path(key, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if top in self.kind.labels:
                    self.kind.labels[top].save(path, self.stored(top, name))
                elif top == 'depth':
                    save_picture(path, self.depth(name))
                else:
                    save_picture(path, noise(name + top, height, width, 3))
        for split in self.kind.splits:
            path = self.path('split', split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('\n'.join(IDS) + '\n')
        if kind == 'nyud':
            self.params['tops'] = [*self.kind.tops]
        if kind == 'pascalcontext':
            known = facts(kind)
            for file, names in (
                ('labels.txt', known['annotated_classes']),
                ('59_labels.txt', known['classes'][1:]),
            ):
                lines = [f'{number}: {name}\n' for number, name in enumerate(names, 1)]
                (root / 'context' / file).write_text(''.join(lines))

    def path(self, key: str, name: str) -> Path:
        """Where the facts put a kind of file; for the list of a split, key is 'split'."""
        pattern = re.split(', | \\(', facts(self.kind.facts)['layout'][key])[0]
        pattern = re.sub('<(id|split)>', name, pattern)
        return Path(re.sub('<(.*?)>', lambda match: self.params[match[1]], pattern))

    def stored(self, top: str, name: str) -> np.ndarray:
        """Labels that hold every number there is, shifted by image."""
        label = self.kind.labels[top]
        numbers = np.resize(sorted(label.classes), SIZES[name]).astype(label.dtype)
        return np.roll(numbers, IDS.index(name))

    def depth(self, name: str) -> np.ndarray:
        return 1 + noise(name, *SIZES[name]).astype(np.uint16) * 257 // 2

    def make(self, split: str | None = None, **changes):
        """The layer, on the split in order if no other is given, and its tops."""
        params = dict(self.params, split=split or self.kind.splits[1], seed=1337) | changes
        return make(self.kind.layer, len(params.get('tops', self.kind.tops)), **params)


def random_classifier(path: Path, width: int = 2, fc: int = 8) -> Path:
    """Save a narrow VGG16 classifier of random weights."""
    random, net = (
        np.random.RandomState(3),
        caffe.Net(vgg16.classifier(21, width, fc, size=193, batch=1), caffe.TEST),
    )
    for weight, _ in net.params.values():
        fan_in = np.prod(weight.shape[1:])
        weight.data[...] = random.randn(*weight.shape) * np.sqrt(2 / fan_in)
    net.save(path)
    return path
