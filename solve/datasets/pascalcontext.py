"""PASCAL-Context: VOC 2010's images with a label for every pixel, 59 classes and background."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_port.errors import CaffeError
from solve.datasets.images import bgr_blob, label_blob, read_list, read_rgb
from solve.datasets.labels import read_mat, recode
from solve.datasets.layer import Params, SegDataLayer

CLASSES = tuple(
    'background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse '
    'motorbike person pottedplant sheep sofa train tvmonitor bag bed bench book building cabinet '
    'ceiling clothes computer cup door fence floor flower food grass ground keyboard light '
    'mountain mouse curtain platform sign plate road rock shelves sidewalk sky snow bedcloth track '
    'tree truck wall water window wood'.split()
)
MEAN = (104.007, 116.669, 122.679)
# The default folders in the project, by the argument of the nets that names them.
PLACES = {'voc_dir': 'data/pascal', 'context_dir': 'data/pascal-context'}
# What labels.txt calls the classes that it knows by another name.
ANNOTATED_AS = {'diningtable': 'table', 'bedcloth': 'bedclothes', 'clothes': 'cloth'}
_LARGEST = 65535  # LabelMap holds 16-bit numbers


def read_names(path: Path) -> dict[int, str]:
    """Read lines 'number: name', and remove the spaces in names.

    Raises CaffeError if the file is missing, a line is of another form, or a number
    comes twice.
    """
    names: dict[int, str] = {}
    for line in read_list(path):
        number, _, name = line.replace(' ', '').partition(':')
        if not (number.isdecimal() and 1 <= int(number) <= _LARGEST and name):
            raise CaffeError(
                f"{path}: 'number: name' expected, the number from 1 to {_LARGEST}; "
                f'got {line[:80]!r}'
            )
        if int(number) in names:
            raise CaffeError(f'{path}: number {number} is both {names[int(number)]} and {name}')
        names[int(number)] = name
    return names


def read_table(context_dir: Path) -> dict[int, int]:
    """Return the class, 0..59, of every number that a LabelMap may hold.

    A number whose name in labels.txt is one of the 59 classes becomes that class, every
    other one 0; so does 0, which has no name.

    Raises CaffeError if labels.txt lacks a class, or if 59_labels.txt differs from
    CLASSES, whose numbers are those of weights and scores.
    """
    wanted = {number: ANNOTATED_AS.get(name, name) for number, name in enumerate(CLASSES) if number}
    path = context_dir / '59_labels.txt'
    found = {number: ANNOTATED_AS.get(name, name) for number, name in read_names(path).items()}
    for number in sorted({*wanted, *found}):
        if found.get(number) != wanted.get(number):
            raise CaffeError(
                f'{path}: number {number} is {found.get(number)}, {wanted.get(number)} expected'
            )
    path = context_dir / 'labels.txt'
    annotated = read_names(path)
    missing = [name for name in wanted.values() if name not in annotated.values()]
    if missing:
        raise CaffeError(f'{path}: lacks {", ".join(missing)} of the {len(wanted)} classes')
    classes = {name: number for number, name in wanted.items()}
    return {0: 0, **{number: classes.get(name, 0) for number, name in annotated.items()}}


class PASCALContextSegDataLayer(SegDataLayer):
    """Feed images of VOC 2010 and their PASCAL-Context labels.

    Tops: data, 1 x 3 x H x W float32, BGR minus mean; label, 1 x 1 x H x W float32, 0..59;
    nothing is void. param_str: voc_dir (the folder that holds VOC2010), context_dir,
    split, mean, seed, randomize.
    """

    def open(self, params: Params) -> list[str]:
        self._voc = Path(params.text('voc_dir')) / 'VOC2010'
        self._context = Path(params.text('context_dir'))
        self._mean = params.mean(MEAN)
        self._table = read_table(self._context)
        return read_list(self._voc / 'ImageSets' / 'Main' / f'{self.split}.txt')

    def files(self, name: str) -> list[Path]:
        labels = self._context / 'trainval' / f'{name}.mat'
        return [self._voc / 'JPEGImages' / f'{name}.jpg', labels]

    def load(self, name: str) -> tuple[np.ndarray, ...]:
        image, path = self.files(name)
        rgb = read_rgb(image)
        stored = read_mat(path, 'LabelMap')
        labels = recode(stored, self._table, path, 'a number of labels.txt, or 0,')
        return bgr_blob(rgb, self._mean), label_blob(labels, len(CLASSES), path, rgb)
