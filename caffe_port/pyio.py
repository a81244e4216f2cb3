"""caffe.io: images, and arrays to and from protobuf messages.

The file is not named io.py: a script in this folder would import it in place of the
standard library's io.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image

from caffe_port.errors import CaffeError
from caffe_port.proto import caffe_pb2

# The weights of linear RGB in luminance by ITU-R BT.709, as in skimage's rgb2gray.
LUMINANCE = np.array([0.2125, 0.7154, 0.0721])


def load_image(filename: str | os.PathLike, color: bool = True) -> np.ndarray:
    """Read an image: H x W x 3 (H x W x 1 if not color) float32, RGB, from 0 to 1.

    Grey images of 16 bits keep all bits; without `color`, colours become their luminance.

    Raises CaffeError if the file is missing or not an image.
    """
    try:
        with Image.open(filename) as image:
            pixels = _pixels(image)
    except Exception as error:  # on a broken file decoders raise anything
        raise CaffeError(f'{filename}: not read as an image: {error}') from error
    if color:
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    elif pixels.shape[2] == 3:
        pixels = (pixels @ LUMINANCE)[..., np.newaxis]
    return np.ascontiguousarray(pixels, np.float32)


def _pixels(image: Image.Image) -> np.ndarray:
    """Return pixels from 0 to 1: H x W x 3, or H x W x 1 of a grey image; drop alpha."""
    # Older versions of Pillow open 16-bit PNG files, and no others, in mode I.
    if image.mode.startswith('I;16') or (image.mode, image.format) == ('I', 'PNG'):
        return np.asarray(image, np.float64)[..., np.newaxis] / 65535
    mode = 'L' if image.mode in ('1', 'L') else 'RGB'
    return np.atleast_3d(np.asarray(image.convert(mode), np.float64)) / 255


def resize_image(im: np.ndarray, new_dims: Sequence[int], interp_order: int = 1) -> np.ndarray:
    """Resize an H x W x K image to `new_dims` (height, width) by splines of an order.

    As in pycaffe, an image of 1 or 3 channels keeps its range, and its outermost pixels keep
    their outer edges in place; an image of other channels keeps their centres in place.
    Returns float32.
    """
    from scipy import ndimage  # a third of a second that `import caffe_port` need not take

    factors = (new_dims[0] / im.shape[0], new_dims[1] / im.shape[1], 1)
    order: Any = interp_order
    if im.shape[-1] not in (1, 3):
        return ndimage.zoom(im, factors, order=order).astype(np.float32)
    im = im.astype(np.float32)
    resized = ndimage.zoom(im, factors, order=order, mode='mirror', grid_mode=True)
    return resized.clip(im.min(), im.max())


class Transformer:
    """Turn images into a net's input blobs, and back.

    `inputs` maps each input blob to its shape, such as {'data': (1, 3, 227, 227)}.
    preprocess resizes, then applies those of these that are set, in this order: transpose,
    channel swap, raw scale, mean, input scale; deprocess undoes them.

    Raises CaffeError for an input that is not among `inputs`, and for settings that do
    not fit its shape.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]):
        self.inputs = {name: tuple(shape) for name, shape in inputs.items()}
        self.transpose: dict[str, tuple[int, ...]] = {}
        self.channel_swap: dict[str, tuple[int, ...]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            raise CaffeError(f'{in_} is not one of the net inputs: {", ".join(self.inputs)}')
        return self.inputs[in_]

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """Turn an H x W x K image into the input blob's K x H x W, float32."""
        height_width = self._shape(in_)[2:]
        image = data.astype(np.float32, copy=False)
        if image.shape[:2] != height_width:
            image = resize_image(image, height_width)
        if in_ in self.transpose:
            image = image.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            image = image[self.channel_swap[in_], :, :]
        if in_ in self.raw_scale:
            image = image * np.float32(self.raw_scale[in_])
        if in_ in self.mean:
            image = image - self.mean[in_]
        if in_ in self.input_scale:
            image = image * np.float32(self.input_scale[in_])
        return image

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """Turn a blob of one image back into the H x W x K image, at the blob's size."""
        self._shape(in_)
        image = np.array(data, np.float32).squeeze()
        if in_ in self.input_scale:
            image = image / np.float32(self.input_scale[in_])
        if in_ in self.mean:
            image = image + self.mean[in_]
        if in_ in self.raw_scale:
            image = image / np.float32(self.raw_scale[in_])
        if in_ in self.channel_swap:
            image = image[np.argsort(self.channel_swap[in_]), :, :]
        if in_ in self.transpose:
            image = image.transpose(np.argsort(self.transpose[in_]))
        return image

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of axes, such as (2, 0, 1) for H x W x K to K x H x W."""
        if len(order) != len(self._shape(in_)) - 1:
            raise CaffeError(
                f'{in_}: transpose of {len(order)} axes, the input has '
                f'{len(self.inputs[in_]) - 1} besides the batch'
            )
        self.transpose[in_] = tuple(order)

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of channels, such as (2, 1, 0) for RGB to BGR."""
        if len(order) != self._shape(in_)[1]:
            raise CaffeError(
                f'{in_}: channel swap of {len(order)} channels, the input has {self.inputs[in_][1]}'
            )
        self.channel_swap[in_] = tuple(order)

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Multiply by `scale` before the mean, such as 255 for images from 0 to 1."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """Subtract `mean`: one number per channel, or K x H x W as the input has."""
        shape = self._shape(in_)
        if mean.ndim == 1 and mean.shape[0] in (1, shape[1]):
            mean = mean[:, np.newaxis, np.newaxis]
        elif mean.ndim == 2:
            mean = mean[np.newaxis]
        if mean.ndim != 3 or mean.shape not in ((1, 1, 1), (shape[1], 1, 1), shape[1:]):
            raise CaffeError(
                f'{in_}: mean of shape {mean.shape}, expected {shape[1:]} or {shape[1]} numbers'
            )
        self.mean[in_] = mean.astype(np.float32)

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Multiply by `scale` after the mean."""
        self._shape(in_)
        self.input_scale[in_] = scale


def oversample(images: Sequence[np.ndarray], crop_dims: Sequence[int]) -> np.ndarray:
    """Cut the four corners and the centre of each H x W x K image, and their mirrors.

    Returns 10 N x h x w x K float32: per image five crops, then the five mirrored.
    """
    (height, width), (h, w) = images[0].shape[:2], crop_dims
    places = [
        (0, 0),
        (0, width - w),
        (height - h, 0),
        (height - h, width - w),
        ((height - h) // 2, (width - w) // 2),
    ]
    crops = []
    for image in images:
        five = [image[y : y + h, x : x + w] for y, x in places]
        crops += five + [crop[:, ::-1] for crop in five]
    return np.array(crops, np.float32)


def blobproto_to_array(blob: caffe_pb2.BlobProto, return_diff: bool = False) -> np.ndarray:
    """Return the data (or diff) of a BlobProto as a float array.

    The legacy num, channels, height and width give 4 axes and, as in Caffe, come before
    `shape`. Without either it is a scalar. Raises CaffeError for another count.
    """
    double = blob.double_diff if return_diff else blob.double_data
    values = np.array(double if len(double) else (blob.diff if return_diff else blob.data))
    legacy = any(blob.HasField(field) for field in ('num', 'channels', 'height', 'width'))
    if legacy:
        shape: tuple[int, ...] = (blob.num, blob.channels, blob.height, blob.width)
    else:
        shape = tuple(blob.shape.dim)
    if any(dim < 0 for dim in shape) or values.size != math.prod(shape):
        raise CaffeError(f'BlobProto: {values.size} values for shape {shape}')
    return values.reshape(shape)


def array_to_blobproto(arr: np.ndarray, diff: np.ndarray | None = None) -> caffe_pb2.BlobProto:
    """Return an array (and its gradient) as a BlobProto."""
    blob = caffe_pb2.BlobProto()
    blob.shape.dim.extend(arr.shape)
    blob.data.extend(arr.astype(float).flat)
    if diff is not None:
        blob.diff.extend(diff.astype(float).flat)
    return blob


def arraylist_to_blobprotovector_str(arraylist: Sequence[np.ndarray]) -> bytes:
    """Return arrays as a serialized BlobProtoVector."""
    vector = caffe_pb2.BlobProtoVector()
    vector.blobs.extend(array_to_blobproto(array) for array in arraylist)
    return vector.SerializeToString()


def blobprotovector_str_to_arraylist(string: bytes) -> list[np.ndarray]:
    """Return the arrays of a serialized BlobProtoVector; CaffeError if it is not one."""
    try:
        blobs = caffe_pb2.BlobProtoVector.FromString(string).blobs
    except DecodeError as error:
        raise CaffeError(f'{len(string)} bytes are not a BlobProtoVector: {error}') from error
    return [blobproto_to_array(blob) for blob in blobs]


def array_to_datum(arr: np.ndarray, label: int | None = None) -> caffe_pb2.Datum:
    """Return a K x H x W array as a Datum: uint8 as bytes, others as float_data.

    Raises CaffeError for another number of axes.
    """
    if arr.ndim != 3:
        raise CaffeError(f'array_to_datum: 3 axes expected, the array has shape {arr.shape}')
    datum = caffe_pb2.Datum(channels=arr.shape[0], height=arr.shape[1], width=arr.shape[2])
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.astype(float).flat)
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: caffe_pb2.Datum) -> np.ndarray:
    """Return the K x H x W array of a Datum: uint8, or float if it has float_data."""
    values = (
        np.frombuffer(datum.data, np.uint8)
        if len(datum.data)
        else np.array(datum.float_data).astype(float)
    )
    shape = datum.channels, datum.height, datum.width
    if min(shape) < 0 or values.size != math.prod(shape):
        raise CaffeError(f'Datum: {values.size} values for shape {shape}')
    return values.reshape(shape)
