"""The files that the pages' commands name, small."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import caffe_port as caffe
from nets import voc_fcn8s, voc_fcn32s
from solve.samples import own_data, trees
from tests.docs.pages import ROOT
from tests.solve.feeding import random_classifier

# What a page's FILE and FOLDER stand for here, and numbers that a run of two iterations has.
STAND_INS = {
    ' FILE ': ' net.caffemodel ',
    ' WEIGHTS PICTURE ': ' fcn32s.caffemodel street.jpg ',
    ' FOLDER...': ' output/voc_fcn32s',
    'train_iter_4000': 'train_iter_2',
}
_SOLVER = """
net_param {
  layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 2 dim: 3 } } }
  layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
          inner_product_param { num_output: 2 } }
  layer { name: "loss" type: "EuclideanLoss" bottom: "fc" bottom: "fc" top: "loss" }
}
base_lr: 0.01 lr_policy: "fixed" max_iter: 2 snapshot_prefix: "snap"
"""


def write_materials(folder: Path) -> None:
    """Write all but the files of the page on Caffe's tools."""
    drawn = folder / 'drawn'
    places = trees.draw_dataset('voc', drawn, train=2, val=1, size=(80, 80))
    (folder / 'SBD').mkdir()
    shutil.copytree(places['sbdd_dir'], folder / 'SBD/dataset')
    shutil.copytree(places['voc_dir'], folder / 'VOC2011')
    shutil.rmtree(drawn)
    random_classifier(folder / 'vgg16-fcn.caffemodel')
    net = caffe.Net(voc_fcn8s.fcn('deploy', width=2, fc=8), caffe.TEST)
    for name in ('fcn8s-heavy-pascal.caffemodel', 'net.caffemodel', 'net.pth'):
        net.save(folder / name)
    caffe.Net(voc_fcn32s.fcn('deploy', width=2, fc=8), caffe.TEST).save(
        folder / 'fcn32s.caffemodel'
    )
    (folder / 'deploy.prototxt').write_text(str(voc_fcn8s.fcn('deploy', width=2, fc=8)))
    (folder / 'solver.prototxt').write_text(_SOLVER)
    _write_own_data(folder)
    write_old_formats(folder)


def write_old_formats(folder: Path) -> None:
    for suffix in ('prototxt', 'caffemodel'):
        shutil.copy(ROOT / f'tests/golden/formats/legacy_v1.{suffix}', folder / f'old.{suffix}')
    (folder / 'old_solver.prototxt').write_text('net: "x" solver_type: ADAM')


def _write_own_data(folder: Path) -> None:
    """Draw photos and masks; lay some of them out as Cityscapes is."""
    drawn = own_data.draw_pairs(folder / 'drawn', 5, size=(80, 80))
    (drawn / 'images').rename(folder / 'photos')
    (drawn / 'labels').rename(folder / 'masks')
    (drawn / 'classes.txt').rename(folder / 'classes.txt')
    drawn.rmdir()
    photos = sorted((folder / 'photos').iterdir())
    shutil.copy(photos[0], folder / 'street.jpg')
    for number, split in enumerate(('train', 'val')):
        lines = []
        for kind, top in (('leftImg8bit', 'leftImg8bit'), ('gtFine_labelIds', 'gtFine')):
            name = f'aachen/aachen_00000{number}_000019_{kind}.png'
            path = folder / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (60, 80) if top == 'gtFine' else (60, 80, 3)
            values = np.random.RandomState(number).randint(0, 34, shape)
            Image.fromarray(values.astype(np.uint8)).save(path)
            lines.append(name)
        (folder / f'{split}.txt').write_text(' '.join(lines) + '\n')


def write_what_the_tools_need(folder: Path) -> None:
    """Write the files that docs/caffe-tools.md begins with."""
    (folder / 'images').mkdir()
    random = np.random.RandomState(0)
    for name in ('train', 'test'):
        lines = []
        for i in range(6):
            pixels = (random.randint(0, 99, (8, 8)) + 150 * (i % 2)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / 'images' / f'{name}{i}.png')
            lines.append(f'{name}{i}.png {i % 2}\n')
        (folder / 'images' / f'{name}.txt').write_text(''.join(lines))
    (folder / 'train_val.prototxt').write_text(
        ''.join(
            'layer { name: "d" type: "Data" top: "data" top: "label" '
            f'include {{ phase: {phase} }} data_param {{ source: "{name}_lmdb" '
            'backend: LMDB batch_size: 2 } '
            'transform_param { mean_file: "mean.binaryproto" scale: 0.01 } }'
            for phase, name in (('TRAIN', 'train'), ('TEST', 'test'))
        )
        + 'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { '
        'num_output: 2 weight_filler { type: "xavier" } } }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
    )
    (folder / 'solver.prototxt').write_text(
        'net: "train_val.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 40 snapshot: 20 '
        'display: 20 snapshot_prefix: "snap"'
    )
    write_old_formats(folder)
