"""NYUDv2: rooms in color, depth and HHA, and 40 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_port.errors import CaffeError
from solve.datasets.images import bgr_blob, open_picture, read_list, read_rgb
from solve.datasets.labels import read_mat, recode, void_first
from solve.datasets.layer import Params, SegDataLayer

CLASSES = tuple(
    'wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, '
    'blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, '
    'refridgerator, television, paper, towel, shower curtain, box, whiteboard, person, '
    'night stand, toilet, sink, lamp, bathtub, bag, otherstructure, otherfurniture, '
    'otherprop'.split(', ')
)
MEAN = (116.19, 97.203, 92.318)
MEAN_HHA = (132.431, 94.076, 118.477)
MEAN_LOG_DEPTH = 7.844
# The default folders in the project, by the argument of the nets that names them.
PLACES = {'nyud_dir': 'data/nyud'}

# The file of each top in the data set's folder.
FILES = {
    'color': 'data/images/img_{}.png',
    'depth': 'data/depth/img_{}.png',
    'hha': 'data/hha/img_{}.png',
    'label': 'segmentation/img_{}.mat',
}


def read_depth(path: Path) -> np.ndarray:
    """Read the depths of a 16-bit grey PNG as they are stored, in millimetres: uint16, H x W.

    Raises CaffeError if the PNG is missing, broken, of another kind, or has a depth of
    0 ("not measured"), which has no logarithm. The official depths are filled in; the
    release would feed minus infinity there, and the loss would be NaN from then on.
    """
    image = open_picture(path, ('PNG',))
    # The mode is I in older Pillows and I;16 in newer ones; no PNG has more than 16 bits.
    if not image.mode.startswith('I'):
        raise CaffeError(
            f'{path}: PNG of mode {image.mode}, must be grey of 16 bits: '
            'its values are depths in millimetres (are color and depth swapped?)'
        )
    depth = np.asarray(image).astype(np.uint16)
    if not depth.all():
        y, x = np.argwhere(depth == 0)[0]
        raise CaffeError(
            f'{path}: depth 0 at row {y}, column {x}, which has no logarithm; '
            'expected depths that are filled in where nothing was measured'
        )
    return depth


def read_labels(path: Path) -> np.ndarray:
    """Read labels, stored 1..40 with 0 for void, as 0..39 and 255: uint8, H x W."""
    stored, classes = read_mat(path, 'segmentation'), len(CLASSES)
    return recode(stored, void_first(classes), path, f'0 (void) or 1..{classes}')


def depth_blob(depth: np.ndarray) -> np.ndarray:
    """Turn H x W depths into a blob: 1 x 1 x H x W float32, their natural log minus its mean."""
    log = np.log(depth.astype(np.float32))
    return (log - np.float32(MEAN_LOG_DEPTH))[np.newaxis, np.newaxis]


_READ = {'color': read_rgb, 'depth': read_depth, 'hha': read_rgb, 'label': read_labels}
_BLOB = {
    'color': lambda rgb: bgr_blob(rgb, MEAN),
    'depth': depth_blob,
    # Reversed here and again by bgr_blob: HHA's channels stay as stored.
    'hha': lambda hha: bgr_blob(hha[:, :, ::-1], MEAN_HHA),
    'label': lambda labels: labels.astype(np.float32)[np.newaxis, np.newaxis],
}


class NYUDSegDataLayer(SegDataLayer):
    """Feed what param_str's 'tops' names of each room, in that order.

    Tops, float32: color, 1 x 3 x H x W, BGR minus mean; depth, 1 x 1 x H x W, natural log
    of millimetres minus mean; hha, 1 x 3 x H x W, channels as stored, minus mean; label,
    1 x 1 x H x W, 0..39 and 255 for void. param_str: nyud_dir, split, tops, seed, randomize.
    """

    def open(self, params: Params) -> list[str]:
        self._folder = Path(params.text('nyud_dir'))
        tops = params.get('tops', (list, tuple), f'a list of {", ".join(FILES)}')
        if not tops or any(type(top) is not str or top not in FILES for top in tops):
            raise CaffeError(
                f"{params.layer}: param_str: 'tops' must be a list of "
                f'{", ".join(FILES)}; got {repr(tops)[:80]}'
            )
        self.top_names = tuple(tops)
        return read_list(self._folder / f'{self.split}.txt')

    def files(self, name: str) -> list[Path]:
        return [self._folder / FILES[top].format(name) for top in self.top_names]

    def load(self, name: str) -> tuple[np.ndarray, ...]:
        paths = self.files(name)
        read = [_READ[top](path) for top, path in zip(self.top_names, paths)]
        height, width = read[0].shape[:2]
        for path, array in zip(paths, read):
            if array.shape[:2] != (height, width):
                raise CaffeError(
                    f'{path}: {array.shape[0]} x {array.shape[1]} (height x width), '
                    f'{paths[0]} is {height} x {width}'
                )
        return tuple(_BLOB[top](array) for top, array in zip(self.top_names, read))
