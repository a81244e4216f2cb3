"""The WindowData layer: windows on objects and background, as for training R-CNN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from caffe_port import rng
from caffe_port.blob import format_shape
from caffe_port.errors import CaffeError
from caffe_port.ops import images
from caffe_port.ops.source import ImageSource


class Window(NamedTuple):
    """A window of an image, its corners included."""

    image: int
    label: int
    x1: int
    y1: int
    x2: int
    y2: int


class WindowFile:
    """The windows of a file, by their overlap with an object.

    For each image it holds `# index`, the path, channels, height, width and the number of
    windows, then for each window its class, overlap, x1, y1, x2 and y2, separated by
    whitespace.

    Raises CaffeError, which names the image, for any other content.
    """

    def __init__(self, path: str, foreground: float, background: float):
        self.path, self.images = path, list[str]()
        self.channels = 0
        self.objects, self.background = list[Window](), list[Window]()
        try:
            with open(path, encoding='utf-8', errors='surrogateescape') as file:
                words = iter(file.read().split())
        except OSError as error:
            raise CaffeError(f'{path}: not read: {error.strerror}') from error
        try:
            while (mark := next(words, None)) is not None:
                if mark != '#':
                    raise ValueError(f'expected "#", found "{mark}"')
                self._read_image(words, foreground, background)
        except ValueError as error:
            raise CaffeError(f'{path}: image {len(self.images)}: {error}') from error
        last = max((one.image for one in (*self.objects, *self.background)), default=-1)
        if last >= len(self.images):
            raise CaffeError(f'{path}: image index {last} of {len(self.images)} images')

    def _read_image(self, words: Iterator[str], foreground: float, background: float) -> None:
        index = int(_next(words))
        self.images.append(_next(words))
        self.channels, _, _, count = (int(_next(words)) for _ in range(4))
        for _ in range(count):
            label, overlap = int(_next(words)), float(_next(words))
            x1, y1, x2, y2 = (int(_next(words)) for _ in range(4))
            if overlap >= foreground:
                if label <= 0:
                    raise ValueError(f'class {label} of an object must be positive')
                self.objects.append(Window(index, label, x1, y1, x2, y2))
            elif overlap < background:
                self.background.append(Window(index, 0, x1, y1, x2, y2))


def _next(words: Iterator[str]) -> str:
    word = next(words, None)
    if word is None:
        raise ValueError('the file ends too early')
    return word


class WindowData(ImageSource):
    """Feed windows, warped to crop_size x crop_size, and labels, as window_data_layer.cpp.

    In a batch the windows of background come first, then a part fg_fraction of objects, all
    drawn from a stream of the layer's own. With context_pad, or crop_mode "square", a window
    is grown around its centre, and what is outside the image is 0. As in Caffe the scale is
    window_data_param's; transform_param's is not used.
    """

    def open(self) -> None:
        p, self._crop = self.param.window_data_param, self.param.transform_param.crop_size
        self.require(p.batch_size > 0, 'window_data_param: batch_size must be positive')
        self.require(self._crop > 0, 'transform_param: crop_size must be positive')
        self.require(
            2 * p.context_pad < self._crop,
            f'context_pad {p.context_pad} leaves nothing of crop_size {self._crop}',
        )
        self._stream = rng.Stream()
        self._windows = WindowFile(p.source, p.fg_threshold, p.bg_threshold)
        objects = int(np.float32(p.batch_size) * np.float32(p.fg_fraction))
        self._counts = (
            (self._windows.background, p.batch_size - objects),
            (self._windows.objects, objects),
        )
        for (windows, count), what in zip(self._counts, ('background', 'objects')):
            self.require(
                not count or bool(windows),
                f'{p.source}: {count} windows of {what} in a batch, found none in the file',
            )
        self._cached: dict[str, np.ndarray] = {}
        shape = p.batch_size, self._windows.channels, self._crop, self._crop
        self.shapes = [shape, (p.batch_size,)]

    def read(self) -> tuple[np.ndarray, ...]:
        data, labels = (np.zeros(shape, np.float32) for shape in self.shapes)
        item = 0
        for windows, count in self._counts:
            for _ in range(count):
                window = windows[self._stream.below(len(windows))]
                mirror = bool(self.param.transform_param.mirror and self._stream.below(2))
                self._cut(window, mirror, data[item])
                labels[item] = window.label
                item += 1
        return data, labels

    def _image(self, window: Window) -> tuple[np.ndarray, str]:
        p = self.param.window_data_param
        path = p.root_folder + self._windows.images[window.image]
        if path in self._cached:
            return self._cached[path], path
        image = images.read_image(path)
        if p.cache_images:
            self._cached[path] = image
        return image, path

    def _cut(self, window: Window, mirror: bool, top: np.ndarray) -> None:
        """Warp a window of its image into `top`, channels x crop x crop, which is 0."""
        image, path = self._image(window)
        where = f'{path}: window {window.x1} {window.y1} {window.x2} {window.y2}'
        if image.shape[2] != len(top):
            raise CaffeError(f'{where}: expected {len(top)} channels, found {image.shape[2]}')
        (x1, x2), columns, left = self._extent(window, 0, image.shape[1], mirror)
        (y1, y2), rows, above = self._extent(window, 1, image.shape[0], False)
        if not (0 <= x1 <= x2 < image.shape[1] and 0 <= y1 <= y2 < image.shape[0]):
            raise CaffeError(f'{where}: outside the image, {format_shape(image.shape)}')
        if not (rows and columns):
            return
        part = images.resize(image[y1 : y2 + 1, x1 : x2 + 1], rows, columns)
        values = (part[:, ::-1] if mirror else part).transpose(2, 0, 1).astype(np.float32)
        place = (slice(None), slice(above, above + rows), slice(left, left + columns))
        top[place] = (values - self._mean(place, where)) * np.float32(
            self.param.window_data_param.scale
        )

    def _extent(
        self, window: Window, axis: int, size: int, mirror: bool
    ) -> tuple[tuple[int, int], int, int]:
        """Return along an axis the part of the image, and its length and start in the top."""
        p, crop = self.param.window_data_param, self._crop
        ends = (window.x1, window.x2), (window.y1, window.y2)
        low, high = ends[axis]
        if not p.context_pad and p.crop_mode != 'square':
            return (low, high), crop, 0
        one = np.float32
        halves = [one(b - a + 1) / one(2) for a, b in ends]
        half = max(halves) if p.crop_mode == 'square' else halves[axis]
        reach = half * (one(crop) / one(crop - 2 * p.context_pad))
        centre = one(low) + halves[axis]
        low, high = _round(centre - reach), _round(centre + reach)
        before, after = max(0, -low), max(0, high - size + 1)
        scale = one(crop) / one(high - low + 1)
        low, high = low + before, high - after
        length = _round(one(high - low + 1) * scale)
        start = _round(one(after if mirror else before) * scale)
        return (low, high), min(length, crop - start), start

    def _mean(self, place: tuple[slice, slice, slice], where: str) -> np.ndarray | float:
        """Return the mean at a place of the top, from the middle of a larger mean image."""
        mean = self.transform.mean
        if not mean.size:
            return 0.0
        if not self.param.transform_param.HasField('mean_file'):
            if len(mean) not in (1, self._windows.channels):
                raise CaffeError(
                    f'{where}: {len(mean)} mean_value for {self._windows.channels} channels'
                )
            return mean
        offset = (mean.shape[2] - self._crop) // 2
        _, rows, columns = place
        part = mean[
            :,
            rows.start + offset : rows.stop + offset,
            columns.start + offset : columns.stop + offset,
        ]
        expected = self._windows.channels, rows.stop - rows.start, columns.stop - columns.start
        if offset < 0 or part.shape != expected:
            raise CaffeError(
                f'{where}: the mean {format_shape(mean.shape)} does not cover {self._crop} x '
                f'{self._crop} of {self._windows.channels} channels'
            )
        return part

    def position(self) -> dict:
        return {'stream': self._stream.state()}

    def go_to(self, position: dict) -> None:
        self._stream.set_state(position['stream'])


def _round(value: np.float32) -> int:
    """Round half away from 0, as C does."""
    return int(np.sign(value) * np.floor(np.abs(value) + np.float32(0.5)))
