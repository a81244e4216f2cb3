"""transform_param: how the images of a data layer are cropped, mirrored, shifted and scaled."""

from __future__ import annotations

import numpy as np

from caffe_port import rng
from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel
from caffe_port.mode import TRAIN
from caffe_port.proto.caffe_pb2 import TransformationParameter

Place = tuple[int, int]


class Transform:
    """Make images into float32 arrays as transform_param says, as data_transformer.cpp.

    Where it mirrors, or crops in TRAIN, it draws from a stream of its own, in Caffe's order:
    for each image whether to mirror, then the row and the column of the crop.
    """

    def __init__(self, param: TransformationParameter, phase: int):
        if param.HasField('mean_file') and param.mean_value:
            raise CaffeError('transform_param: give either mean_file or mean_value, not both')
        if param.force_color and param.force_gray:
            raise CaffeError('transform_param: give either force_color or force_gray, not both')
        self.crop, self.scale, self._phase = param.crop_size, np.float32(param.scale), phase
        self._mirror = param.mirror
        # How to decode images: in colour, in grey or as they are.
        self.color = True if param.force_color else False if param.force_gray else None
        self.mean, self._mean_name = np.array(param.mean_value, np.float32)[:, None, None], ''
        if param.HasField('mean_file'):
            self._mean_name = param.mean_file
            self.mean = _mean_of(param.mean_file)
        self.stream: rng.Stream | None = None
        self.seed()

    def seed(self) -> None:
        """Begin a stream, if any is drawn from."""
        if self._mirror or (self._phase == TRAIN and self.crop):
            self.stream = rng.Stream()

    def shape(self, image: np.ndarray, where: str) -> tuple[int, int, int]:
        """Return the shape that an image, channels x H x W, has afterwards.

        Raises CaffeError, which begins with `where`, if it is too small for the crop.
        """
        if min(image.shape[1:]) < self.crop:
            raise CaffeError(
                f'{where}: crop_size {self.crop} exceeds the image, {format_shape(image.shape)}'
            )
        return image.shape[0], self.crop or image.shape[1], self.crop or image.shape[2]

    def __call__(self, image: np.ndarray, top: np.ndarray, where: str) -> None:
        """Write an image, channels x H x W of any type, to a float32 array.

        Raises CaffeError, which begins with `where`, if image, mean and top do not fit.
        """
        shape = self.shape(image, where)
        if shape != top.shape:
            raise CaffeError(
                f'{where}: expected {format_shape(top.shape)} as the first of the batch has, '
                f'found {format_shape(shape)}'
            )
        mirror = self._mirror and self._draw(2)
        (y, x), (height, width) = self._corner(image), shape[1:]
        part = (slice(None), slice(y, y + height), slice(x, x + width))
        values = top[:, :, ::-1] if mirror else top
        values[...] = image[part]
        if self.mean.size:
            values -= self._mean_for(image, where)[part if self._mean_name else ...]
        if self.scale != 1:
            values *= self.scale

    def _draw(self, bound: int) -> int:
        assert self.stream is not None
        return self.stream.below(bound)

    def _corner(self, image: np.ndarray) -> Place:
        if not self.crop:
            return 0, 0
        rest = [size - self.crop for size in image.shape[1:]]
        if self._phase == TRAIN:
            return self._draw(rest[0] + 1), self._draw(rest[1] + 1)
        return rest[0] // 2, rest[1] // 2

    def _mean_for(self, image: np.ndarray, where: str) -> np.ndarray:
        if self._mean_name and self.mean.shape != image.shape:
            raise CaffeError(
                f'{where}: the image is {format_shape(image.shape)}, the mean in '
                f'{self._mean_name} {format_shape(self.mean.shape)}'
            )
        if len(self.mean) not in (1, len(image)):
            raise CaffeError(
                f'{where}: {len(self.mean)} mean_value for {len(image)} channels, give 1 or all'
            )
        return self.mean

    def state(self) -> list | None:
        """Return the position of the stream, as JSON can hold it."""
        return self.stream.state() if self.stream else None

    def set_state(self, state: list | None) -> None:
        """Go on from a state(); raises CaffeError, and changes nothing, if it does not fit."""
        if (state is None) != (self.stream is None):
            raise CaffeError('a random stream is missing, or there is one too many')
        if self.stream and state is not None:
            self.stream.set_state(state)


def _mean_of(path: str) -> np.ndarray:
    """Return the mean image of a .binaryproto: channels x H x W."""
    mean = caffemodel.read_blob(path)
    if mean.ndim not in (3, 4) or mean.size != np.prod(mean.shape[-3:]):
        raise CaffeError(
            f'{path}: expected a mean of 1 x channels x H x W, found {format_shape(mean.shape)}'
        )
    return mean.reshape(mean.shape[-3:])
