"""Pictures of labels and predictions: colours, errors, palette PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from caffe_port.errors import replacing
from solve.datasets.images import VOID
from solve.datasets.voc import palette
from solve.run.metrics import Scores, fast_hist

_VOID_COLOURS = (236, 236, 236), (168, 168, 168)
_RIGHT, _WRONG = (225, 225, 225), (200, 30, 40)


def to_picture(blob: np.ndarray, mean: Sequence[float]) -> np.ndarray:
    """Add the mean to what a net sees: C x H x W, BGR, becomes H x W x 3 uint8, RGB.

    One channel becomes H x W.
    """
    if len(blob) == 1:
        return blob[0] + mean[0]
    bgr = blob.transpose(1, 2, 0) + np.asarray(mean)
    return bgr[..., ::-1].clip(0, 255).astype(np.uint8)


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """Give class indices (H x W) VOC's colours, void a hatch: H x W x 3 uint8, RGB."""
    return _hatch_void(palette()[labels.astype(np.uint8)], labels)


def colour_errors(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Show where a prediction (H x W) is wrong: red, elsewhere grey, void a hatch.

    H x W x 3 uint8, RGB.
    """
    wrong = (label != prediction)[..., np.newaxis]
    return _hatch_void(np.where(wrong, _WRONG, _RIGHT).astype(np.uint8), label)


def _hatch_void(rgb: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Draw diagonal stripes where the labels are void; their width follows the size."""
    period = max(4, 2 * round(min(labels.shape) / 60))
    y, x = np.indices(labels.shape)
    stripes = np.asarray(_VOID_COLOURS, np.uint8)[((x + y) % period < period / 3).astype(int)]
    return np.where((labels == VOID)[..., np.newaxis], stripes, rgb)


def save_labels(labels: np.ndarray, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write class indices (H x W) as a palette PNG in VOC's colours, with `text` in it."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette().tobytes())
    save_picture(image, path, text)


def save_picture(image: Image.Image, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write a picture as a PNG, with `text` in it."""
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    with replacing(path) as temporary:
        image.save(temporary, format='PNG', pnginfo=info)


@dataclass
class Labelled:
    """Labels (H x W) to show in a panel: in colours, with the classes' names beneath the row.

    For a prediction, `truth` is the label it is compared with; its IU is shown below it.
    With `errors`, it is shown where the prediction is wrong.
    """

    labels: np.ndarray
    names: Sequence[str]
    truth: np.ndarray | None = None
    errors: bool = False

    def picture(self) -> np.ndarray:
        if self.errors and self.truth is not None:
            return colour_errors(self.truth, self.labels)
        return colour_labels(self.labels)

    def caption(self) -> str:
        if self.truth is None:
            return ''
        known = self.truth != VOID
        if not known.any():
            return 'all void'
        if self.errors:
            return f'{100 * (self.truth != self.labels)[known].mean():.1f} % wrong'
        hist = fast_hist(
            self.truth.ravel().astype(np.int64),
            self.labels.ravel().astype(np.int64),
            len(self.names),
        )
        return f'mean IU {100 * Scores(hist).mean_iu:.1f} %'
