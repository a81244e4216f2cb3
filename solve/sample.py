"""The sample's beginning: data drawn on the spot, and a narrow VGG16 trained to classify it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import caffe_port as caffe
from caffe_port.proto.caffe_pb2 import SolverParameter
from nets import vgg16
from solve.datasets import sample, voc
from solve.progress import progress

# Those whose sample is known to learn.
EXPERIMENTS = ('voc_fcn32s',)
# A VGG16 of an eighth of the width, so that two CPU cores see it through in minutes.
# Of so few units dropout takes a fifth: with a half the classifier was slower to learn.
NARROW = dict(width=8, fc=512, drop=0.2)
# The smallest image whose pool5 is 7 x 7, as fc6 wants it; Caffe's pooling rounds up.
SIZE = 193
SCENES, BATCH, ROUNDS = 300, 8, 130
# msra keeps a signal's size through a layer. Pixels are about 60 and scores should be about
# 1, so each of the 16 layers takes its share, which also balances the layers' gradients.
GAIN = 60 ** (-1 / 16)
SEED = 1337
WEIGHTS = 'vgg16-narrow.caffemodel'
CLASSIFIER = dict(base_lr=0.01, lr_policy='poly', power=1, momentum=0.9, weight_decay=0.0005,
                  clip_gradients=4, max_iter=ROUNDS, average_loss=20)
# In place of the published constants. The loss is a sum over some 30,000 pixels, hence the
# small rate; gradients are clipped as the score layer, starting at 0, overshoots otherwise.
FCN = dict(base_lr=3e-7, lr_policy='poly', power=1, momentum=0.9, clip_gradients=130000,
           max_iter=500, snapshot=100)


def is_in(folder: Path) -> bool:
    """Whether a run of the sample has left its data in `folder`."""
    return (folder / 'data').is_dir() and (folder / WEIGHTS).is_file()


def prepare(folder: Path, seed: int = SEED) -> dict[str, Any]:
    """Draw the sample into `folder` and train its classifier.

    Returns what a Job needs: weights, net, constants, iterations and step.
    """
    data = sample.draw(folder / 'data')
    chosen = voc.seg11valid(data.voc_dir, data.sbdd_dir, expected=None)
    voc.segmentation_list(data.voc_dir, 'seg11valid').write_text('\n'.join(chosen) + '\n')
    weights = folder / WEIGHTS
    if not weights.exists():  # else an earlier run, now to be resumed, has trained it
        train_classifier(weights, seed)
    return dict(weights=[weights], iterations=FCN['max_iter'], step=FCN['snapshot'],
                net=dict(sbdd_dir=str(data.sbdd_dir), voc_dir=str(data.voc_dir), **NARROW),
                constants=dict(random_seed=seed, **FCN))


def train_classifier(weights: Path, seed: int = SEED) -> None:
    """Train a narrow VGG16 to name the object in the middle and save it as a caffemodel."""
    caffe.set_random_seed(seed)
    windows = sample.Windows(SCENES, SIZE, seed)
    param = SolverParameter(**CLASSIFIER)
    param.train_net_param.CopyFrom(vgg16.classifier(
        len(voc.CLASSES), size=SIZE, split='train', batch=BATCH,
        weight_filler=dict(type='msra'), **NARROW))
    solver = caffe.SGDSolver(param)
    for weight, _ in solver.net.params.values():
        weight.data[...] *= GAIN
    with progress(range(ROUNDS), desc='narrow VGG16 classifier', leave=False) as bar:
        for _ in bar:
            (solver.net.blobs['data'].data[...],
             solver.net.blobs['label'].data[...]) = windows.batch(BATCH)
            solver.step(1)
    solver.net.save(weights)
    print(f'Classifier trained: loss {solver.smoothed_loss:.3f}, saved to {weights}')
