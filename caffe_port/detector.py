"""Detector: pycaffe's net that classifies windows of images.

Source of names and behaviour: pycaffe's detector.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from caffe_port import pyio
from caffe_port.classifier import ImageNet
from caffe_port.errors import CaffeError


class Detector(ImageNet):
    """A net that classifies windows of images, as R-CNN does.

    `context_pad` is how many pixels of the net's input surround a window on each side;
    what lies outside the image is the mean.
    """

    def __init__(
        self,
        model_file: str | os.PathLike,
        pretrained_file: str | os.PathLike,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ):
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def configure_crop(self, context_pad: int | None) -> None:
        """Set how much context a window gets, and the image mean that fills what is missing."""
        name = self.inputs[0]
        size = self.blobs[name].shape[2:]
        self.context_pad = context_pad or 0
        if 2 * self.context_pad >= min(size):
            raise CaffeError(
                f'context_pad {context_pad}: expected less than half of the input, '
                f'{size[0]} x {size[1]}'
            )
        self.crop_mean = np.zeros((*size, self.blobs[name].channels), np.float32)
        if self.context_pad and name in self.transformer.mean:
            # The mean as an image in the units of load_image: before scale, swap and transpose.
            mean = np.broadcast_to(self.transformer.mean[name], self.blobs[name].shape[1:])
            raw = mean / np.float32(self.transformer.raw_scale.get(name, 1))
            if name in self.transformer.channel_swap:
                raw = raw[np.argsort(self.transformer.channel_swap[name])]
            self.crop_mean = raw.transpose(np.argsort(self.transformer.transpose[name]))

    def detect_windows(
        self, images_windows: Iterable[tuple[str | os.PathLike, Sequence]]
    ) -> list[dict]:
        """Classify windows (ymin, xmin, ymax, xmax) of image files, pairs (file, windows).

        Returns a dict for each window: window, prediction (the first output), filename.
        """
        crops, where = [], []
        for filename, windows in images_windows:
            image = pyio.load_image(filename)
            for window in windows:
                crops.append(self.crop(image, np.asarray(window)))
                where.append((window, filename))
        if not crops:
            return []
        predictions = self._predict(crops)
        predictions = predictions.reshape(
            len(crops), *(side for side in predictions.shape[1:] if side != 1)
        )
        return [
            {'window': window, 'prediction': prediction, 'filename': filename}
            for (window, filename), prediction in zip(where, predictions)
        ]

    def crop(self, im: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Cut a window (ymin, xmin, ymax, xmax) with its context, resized to the input."""
        top, left, bottom, right = (int(round(float(edge))) for edge in window)
        size = self.blobs[self.inputs[0]].shape[2:]
        if not self.context_pad:
            return pyio.resize_image(self._cut(im, top, left, bottom, right), size)
        # The window is to fill the input less its context: the context grows with the window.
        inner = np.array(size) - 2 * self.context_pad
        scale = np.array(size) / inner
        centre = np.array([(top + bottom) / 2, (left + right) / 2])
        half = np.array([bottom - top, right - left]) / 2 * scale
        (first_row, first_column) = np.round(centre - half).astype(int)
        (last_row, last_column) = np.round(centre + half).astype(int)
        inside = (
            slice(max(first_row, 0), min(last_row, im.shape[0])),
            slice(max(first_column, 0), min(last_column, im.shape[1])),
        )
        part = self._cut(im, inside[0].start, inside[1].start, inside[0].stop, inside[1].stop)
        # Where the part lies in the input, which the window's whole context would fill.
        whole = np.array([last_row - first_row, last_column - first_column])
        start = np.round(
            np.array([inside[0].start - first_row, inside[1].start - first_column]) * size / whole
        ).astype(int)
        stop = np.minimum(start + np.round(np.array(part.shape[:2]) * size / whole), size)
        height, width = np.maximum((stop - start).astype(int), 1).tolist()
        crop = self.crop_mean.copy()
        crop[start[0] : start[0] + height, start[1] : start[1] + width] = pyio.resize_image(
            part, (height, width)
        )
        return crop

    @staticmethod
    def _cut(im: np.ndarray, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        part = im[max(top, 0) : bottom, max(left, 0) : right]
        if not part.size:
            raise CaffeError(
                f'window {top}, {left}, {bottom}, {right}: expected ymin, xmin, ymax, xmax '
                f'within an image of {im.shape[0]} x {im.shape[1]}'
            )
        return part
