"""Load the weights to start from into a net."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import surgery
from caffe_port import Net
from caffe_port.errors import CaffeError
from caffe_port.files import weights
from caffe_port.files.stored import StoredBlob


@dataclass(frozen=True)
class FileBlob:
    """A blob in a file as surgery sees one; reads its values each time they are asked for."""

    stored: StoredBlob

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape)

    @property
    def data(self) -> np.ndarray:
        return self.stored.array()


def read_params(path: Path) -> SimpleNamespace:
    """Read a weight file as surgery sees a net: `params`, blobs by layer."""
    layers = [layer for layer in weights.read_layers(path) if layer.blobs]
    return SimpleNamespace(
        params={layer.name: [FileBlob(blob) for blob in layer.blobs] for layer in layers}
    )


def load_start(net: Net, path: Path, suffix: str = '') -> None:
    """Copy weights from a file that fits, or transplant them from a classifier's.

    Fully connected layers of the classifier become convolutions (fc6 4096 x 25088
    to 4096 x 512 x 7 x 7); layers that the net does not have are dropped. The net's
    layers have the file's names with `suffix` behind them.

    Raises CaffeError if the file has no layer of the net, or one of another count.
    """
    source = read_params(path)
    known = [name for name in source.params if name + suffix in net.params]
    if not known:
        raise CaffeError(
            f'{path}: no layer of this net in it; it has '
            + (', '.join(source.params) or 'no weights at all')
        )
    fits = not suffix and all(
        stored.shape == blob.shape
        for name in known
        for stored, blob in zip(source.params[name], net.params[name])
    )
    if fits:
        net.copy_from(path)
        return
    try:
        surgery.transplant(net, source, suffix)
    except CaffeError as error:
        raise CaffeError(f'{path}: {error}') from error
