"""Classifier: pycaffe's net that takes images as they are.

Source of names and behaviour: pycaffe's classifier.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np

from caffe_port import pyio
from caffe_port.mode import TEST
from caffe_port.net import Net


class ImageNet(Net):
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


class Classifier(ImageNet):
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
