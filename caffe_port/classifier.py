"""Classifier and Detector: pycaffe's nets that preprocess images themselves.

Source of names and behaviour: pycaffe's classifier.py and detector.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from caffe_port import pyio
from caffe_port.errors import CaffeError
from caffe_port.mode import TEST
from caffe_port.net import Net


class _ImageNet(Net):
    """A net in phase TEST with a Transformer for its first input."""

    def __init__(
        self,
        model_file: str | os.PathLike,
        pretrained_file: str | os.PathLike,
        mean: np.ndarray | None,
        input_scale: float | None,
        raw_scale: float | None,
        channel_swap: Sequence[int] | None,
    ):
        super().__init__(model_file, TEST, weights=pretrained_file)
        name = self.inputs[0]
        self.transformer = pyio.Transformer({name: self.blobs[name].shape})
        self.transformer.set_transpose(name, (2, 0, 1))
        if mean is not None:
            self.transformer.set_mean(name, mean)
        if input_scale is not None:
            self.transformer.set_input_scale(name, input_scale)
        if raw_scale is not None:
            self.transformer.set_raw_scale(name, raw_scale)
        if channel_swap is not None:
            self.transformer.set_channel_swap(name, channel_swap)

    def _predict(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return the first output for images (H x W x K each), N x its other dims."""
        name = self.inputs[0]
        inputs = np.array(
            [self.transformer.preprocess(name, image) for image in images], np.float32
        )
        return self.forward_all(**{name: inputs})[self.outputs[0]]


class Classifier(_ImageNet):
    """A net that classifies images of any size, on the centre or averaged over ten crops.

    `image_dims` (height, width) is what images are resized to before crops of the
    net's input size are cut; by default they are of that size. The other arguments are
    the Transformer's settings.
    """

    def __init__(
        self,
        model_file: str | os.PathLike,
        pretrained_file: str | os.PathLike,
        image_dims: Sequence[int] | None = None,
        mean: np.ndarray | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ):
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = self.crop_dims if image_dims is None else np.array(image_dims)

    def predict(self, inputs: Iterable[np.ndarray], oversample: bool = True) -> np.ndarray:
        """Return the class probabilities of images (H x W x K, as load_image reads them), N x C.

        With `oversample` they are the means over the four corners, the centre and their
        mirrors; else those of the centre.
        """
        size = tuple(int(side) for side in self.image_dims)
        images = [pyio.resize_image(image, size) for image in inputs]
        if not oversample:
            top, left = ((self.image_dims - self.crop_dims) // 2).tolist()
            height, width = self.crop_dims.tolist()
            return self._predict(
                [image[top : top + height, left : left + width] for image in images]
            )
        predictions = self._predict(list(pyio.oversample(images, self.crop_dims.tolist())))
        return predictions.reshape(len(images), 10, -1).mean(1)


class Detector(_ImageNet):
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
        """Set the context around windows, and the mean that fills pixels outside the image."""
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
