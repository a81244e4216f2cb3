"""PASCAL VOC segmentation, and its extension SBD that the official nets train on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from caffe_port.errors import CaffeError
from nets.data import VOC_MEAN_BGR
from solve.datasets.images import bgr_blob, label_blob, read_label_png, read_list, read_rgb
from solve.datasets.labels import read_mat
from solve.datasets.layer import Params, SegDataLayer
from solve.datasets.masking import mask_image, read_mask_option

CLASSES = tuple(
    'background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse '
    'motorbike person pottedplant sheep sofa train tvmonitor'.split()
)
MEAN = VOC_MEAN_BGR
SEG11VALID_IMAGES = 736
# The default folders in the project, by the argument of the nets that names them.
PLACES = {'sbdd_dir': 'data/sbdd/dataset', 'voc_dir': 'data/pascal/VOC2011'}


def palette() -> np.ndarray:
    """Return VOC's colour map, for writing labels and predictions: 256 x 3 uint8, RGB.

    The bits of an index, three at a time, are the bits of red, green and blue from
    the highest down.
    """
    index, channel = np.arange(256)[:, np.newaxis], np.arange(3)
    bits = [(index >> (3 * group + channel) & 1) << (7 - group) for group in range(3)]
    return np.sum(bits, 0).astype(np.uint8)


def segmentation_list(voc_dir: str | os.PathLike, split: str) -> Path:
    """Return the path of the list of a segmentation split of VOC."""
    return Path(voc_dir, 'ImageSets', 'Segmentation', f'{split}.txt')


def seg11valid(
    voc_dir: str | os.PathLike,
    sbdd_dir: str | os.PathLike,
    expected: int | None = SEG11VALID_IMAGES,
) -> list[str]:
    """Return the ids that the official nets are scored on: VOC 2011's val without SBD's train.

    In the order of val.txt.

    Raises CaffeError if there are not `expected` of them, as with another year's val;
    None allows any number but 0.
    """
    val, train = segmentation_list(voc_dir, 'val'), Path(sbdd_dir, 'train.txt')
    in_val, in_train = read_list(val), read_list(train)
    trained_on = set(in_train)
    left = [name for name in in_val if name not in trained_on]
    if not left or (expected is not None and len(left) != expected):
        raise CaffeError(
            f'seg11valid: {val} ({len(in_val)} images) without those of {train} '
            f'({len(in_train)} images) leaves {len(left)} images, '
            f'{expected or "some"} expected (VOC 2011 and the official SBD train list '
            f'leave {SEG11VALID_IMAGES})'
        )
    return left


def remarks(voc_dir: str | os.PathLike, **_: object) -> list[str]:
    """Return lines on differences from the published data, which may be intended."""
    path = segmentation_list(voc_dir, 'seg11valid')
    count = len(read_list(path)) if path.is_file() else SEG11VALID_IMAGES
    if count == SEG11VALID_IMAGES:
        return []
    return [
        f'{path} has {count} images, the official list {SEG11VALID_IMAGES}: scores will not '
        'compare with published ones'
    ]


class SBDDSegDataLayer(SegDataLayer):
    """Feed images and labels of SBD.

    Tops: data, 1 x 3 x H x W float32, BGR minus mean; label, 1 x 1 x H x W float32,
    0..20 and 255 for void. param_str: sbdd_dir, split, mean, seed, randomize,
    and mask: 'foreground', 'background' or 'shape' (see solve.datasets.masking).
    """

    def open(self, params: Params) -> list[str]:
        self._folder = Path(params.text('sbdd_dir'))
        self._mean = params.mean(MEAN)
        self._mask = read_mask_option(params)
        return read_list(self._folder / f'{self.split}.txt')

    def files(self, name: str) -> list[Path]:
        return [self._folder / 'img' / f'{name}.jpg', self._folder / 'cls' / f'{name}.mat']

    def load(self, name: str) -> tuple[np.ndarray, ...]:
        image, path = self.files(name)
        rgb = read_rgb(image)
        labels = read_mat(path, 'GTcls', 'Segmentation')
        label = label_blob(labels, len(CLASSES), path, rgb)
        return mask_image(bgr_blob(rgb, self._mean), label, self._mask), label


class VOCSegDataLayer(SegDataLayer):
    """Feed images and labels of VOC.

    Tops as SBDDSegDataLayer's. param_str: voc_dir, split, mean, seed, randomize,
    mask. The list of split seg11valid is VOC's seg11valid.txt if there is one. If not, it is
    made from VOC's val and SBD's train list: param_str then needs 'sbdd_dir', and
    'expected' is the number of images there must be (None: any).
    """

    def open(self, params: Params) -> list[str]:
        self._folder = Path(params.text('voc_dir'))
        self._mean = params.mean(MEAN)
        self._mask = read_mask_option(params)
        path = segmentation_list(self._folder, self.split)
        if self.split != 'seg11valid' or path.is_file():
            return read_list(path)
        if 'sbdd_dir' not in params.values:
            raise CaffeError(
                f'{path}: no such file; write it, or give param_str '
                "'sbdd_dir', SBD's folder, to make it from val.txt"
            )
        expected = params.get(
            'expected', (int, type(None)), 'a number of images or None', SEG11VALID_IMAGES
        )
        return seg11valid(self._folder, params.text('sbdd_dir'), expected)

    def files(self, name: str) -> list[Path]:
        labels = self._folder / 'SegmentationClass' / f'{name}.png'
        return [self._folder / 'JPEGImages' / f'{name}.jpg', labels]

    def load(self, name: str) -> tuple[np.ndarray, ...]:
        image, path = self.files(name)
        rgb = read_rgb(image)
        label = label_blob(read_label_png(path), len(CLASSES), path, rgb)
        return mask_image(bgr_blob(rgb, self._mean), label, self._mask), label
