"""SIFT Flow: outdoor scenes, each with 33 semantic and 3 geometric classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_port.errors import CaffeError
from solve.datasets.images import VOID, bgr_blob, label_blob, read_list, read_rgb
from solve.datasets.labels import read_mat, recode, void_first
from solve.datasets.layer import Params, SegDataLayer

SEMANTIC = tuple(
    'awning balcony bird boat bridge building bus car cow crosswalk desert door fence field grass '
    'moon mountain person plant pole river road rock sand sea sidewalk sign sky staircase '
    'streetlight sun tree window'.split()
)
GEOMETRIC = ('sky', 'horizontal', 'vertical')
MEAN = (114.578, 115.294, 108.353)
# The default folders in the project, by the argument of the nets that names them.
PLACES = {'siftflow_dir': 'data/sift-flow'}
# These two images lack annotations.
UNLABELLED = ('highway_bost181', 'street_urb506')

# The name of the folder of images, and of those of both kinds of labels.
SCENES = 'spatial_envelope_256x256_static_8outdoorcategories'


def read_semantic(path: Path) -> np.ndarray:
    """Read labels, stored 1..33 with 0 for void, as 0..32 and 255: uint8, H x W."""
    classes = len(SEMANTIC)
    return recode(read_mat(path, 'S'), void_first(classes), path, f'0 (void) or 1..{classes}')


def read_geometric(path: Path) -> np.ndarray:
    """Read labels, stored 1..3 with -1, or 0, for void, as 0..2 and 255: uint8, H x W."""
    table = {-1: VOID, **void_first(len(GEOMETRIC))}
    return recode(read_mat(path, 'S'), table, path, f'-1 or 0 (void) or 1..{len(GEOMETRIC)}')


class SIFTFlowSegDataLayer(SegDataLayer):
    """Feed images of SIFT Flow with both their labels.

    Tops, float32: data, 1 x 3 x H x W, BGR minus mean; sem, 1 x 1 x H x W, 0..32 and geo,
    1 x 1 x H x W, 0..2, both with 255 for void. param_str: siftflow_dir, split, mean, seed,
    randomize. Leaves the two images without annotations out of every split.
    """

    top_names = ('data', 'sem', 'geo')

    def open(self, params: Params) -> list[str]:
        self._folder = Path(params.text('siftflow_dir'))
        self._mean = params.mean(MEAN)
        path = self._folder / f'{self.split}.txt'
        ids = [name for name in read_list(path) if name not in UNLABELLED]
        if not ids:
            raise CaffeError(
                f'{path}: no images but {" and ".join(UNLABELLED)}, which have no labels'
            )
        return ids

    def files(self, name: str) -> list[Path]:
        folders = [self._folder / kind / SCENES for kind in ('SemanticLabels', 'GeoLabels')]
        image = self._folder / 'Images' / SCENES / f'{name}.jpg'
        return [image, *(folder / f'{name}.mat' for folder in folders)]

    def load(self, name: str) -> tuple[np.ndarray, ...]:
        image, sem, geo = self.files(name)
        rgb = read_rgb(image)
        return (
            bgr_blob(rgb, self._mean),
            label_blob(read_semantic(sem), len(SEMANTIC), sem, rgb),
            label_blob(read_geometric(geo), len(GEOMETRIC), geo, rgb),
        )
