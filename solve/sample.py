"""The sample's beginning: data drawn on the spot, and a narrow VGG16 trained to classify it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import caffe_port as caffe
from caffe_port.proto.caffe_pb2 import SolverParameter
from nets import vgg16
from solve.datasets import sample, voc
from solve.progress import progress

# A VGG16 of an eighth of the width, so that two CPU cores see it through in minutes.
WIDTH, FC = 8, 128
# The smallest image whose pool5 is 7 x 7, as fc6 wants it; Caffe's pooling rounds up.
SIZE = 193
BATCH, ROUNDS = 8, 200
SEED = 1337


def prepare(folder: Path) -> dict[str, Any]:
    """Draw the sample into `folder` and train its classifier.

    Returns what a Job needs: weights, net, constants and step.
    """
    data = sample.draw(folder / 'data')
    chosen = voc.seg11valid(data.voc_dir, data.sbdd_dir, expected=None)
    voc.segmentation_list(data.voc_dir, 'seg11valid').write_text('\n'.join(chosen) + '\n')
    weights = folder / 'vgg16-narrow.caffemodel'
    train_classifier(weights)
    return dict(
        weights=weights, step=200,
        net=dict(sbdd_dir=str(data.sbdd_dir), voc_dir=str(data.voc_dir), width=WIDTH, fc=FC),
        constants=dict(base_lr=1e-8, max_iter=400, snapshot=200, random_seed=SEED))


def train_classifier(weights: Path) -> None:
    """Train a narrow VGG16 on drawn pictures of one object and save it as a caffemodel."""
    caffe.set_random_seed(SEED)
    images, labels = sample.draw_classification(300, SIZE, SEED)
    param = SolverParameter(base_lr=0.001, lr_policy='fixed', momentum=0.9, weight_decay=0.0005,
                            max_iter=ROUNDS, average_loss=20)
    param.train_net_param.CopyFrom(vgg16.classifier(
        len(voc.CLASSES), WIDTH, FC, SIZE, 'train', batch=BATCH, weight_filler=dict(type='msra')))
    solver = caffe.SGDSolver(param)
    # Images are not scaled to unit variance; the last layer makes up for it.
    solver.net.params['fc8'][0].data[...] /= 60
    rng = np.random.RandomState(SEED)
    with progress(range(ROUNDS), desc='narrow VGG16 classifier', leave=False) as bar:
        for _ in bar:
            chosen = rng.choice(len(images), BATCH, replace=False)
            solver.net.blobs['data'].data[...] = images[chosen]
            solver.net.blobs['label'].data[...] = labels[chosen]
            solver.step(1)
    solver.net.save(weights)
    print(f'Classifier trained: loss {solver.smoothed_loss:.3f}, saved to {weights}')
