"""The ImageData layer: image files that a list names."""

from __future__ import annotations

import logging
from collections.abc import MutableSequence
from typing import Any

import numpy as np

from caffe_port import parallel, rng
from caffe_port.errors import CaffeError
from caffe_port.mode import TRAIN
from caffe_port.ops import images
from caffe_port.ops.source import ImageSource

LOG = logging.getLogger('caffe_port')


def shuffle(items: MutableSequence[Any], stream: rng.Stream) -> None:
    """Shuffle in place as Caffe does: Fisher-Yates from the end, by boost's uniform_int.

    For the last i + 1 items left, 2**32 words fall into i + 1 equal buckets; a word outside
    all buckets is drawn anew.
    """
    words = iter(())
    for i in range(len(items) - 1, 0, -1):
        bucket = 2**32 // (i + 1)
        pick = i + 1
        while pick > i:
            word = next(words, None)
            if word is None:
                words = iter(stream.draw_words(i).tolist())
                continue
            pick = word // bucket
        items[i], items[pick] = items[pick], items[i]


def read_entries(path: str) -> list[tuple[str, int]]:
    """Read a list of images: each line is a file name, a space and a label.

    Raises CaffeError, naming the line, for what is no list.
    """
    try:
        with open(path, encoding='utf-8', errors='surrogateescape') as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise CaffeError(f'{path}: not read: {error.strerror}') from error
    entries = []
    for number, line in enumerate(lines, 1):
        name, _, label = line.rstrip().rpartition(' ')
        try:
            entries.append((name.strip(), int(label)))
        except ValueError:
            entries.append(('', 0))
        if line.strip() and not entries[-1][0]:
            raise CaffeError(f'{path}:{number}: expected a file name and a label, found {line!r}')
        if not line.strip():
            entries.pop()
    if not entries:
        raise CaffeError(f'{path}: expected images, found none')
    return entries


class ImageData(ImageSource):
    """Feed image files and labels from a list, as image_data_layer.cpp.

    With shuffle a new order is drawn for every pass. With rand_skip the first pass begins
    up to so many images later. As in Caffe, ranks do not share out a list: in training each
    rank shuffles it in its own way, or without shuffle all feed the same images.
    """

    def open(self) -> None:
        p = self.param.image_data_param
        self.require(p.batch_size > 0, 'image_data_param: batch_size must be positive')
        self.require(
            (p.new_height > 0) == (p.new_width > 0),
            'image_data_param: new_height and new_width go together',
        )
        self._size = (p.new_height, p.new_width) if p.new_height else None
        self._entries, self._passes, self._line = read_entries(p.source), 0, 0
        self._order = list(range(len(self._entries)))
        self._stream = rng.Stream() if p.shuffle else None
        self._first_stream = self._stream and self._stream.state()
        self._shuffle()
        if self.phase == TRAIN and parallel.solver_rank() and not (p.shuffle or p.rand_skip):
            LOG.warning('%s: every rank feeds the same images: use shuffle', self.param.name)
        if p.rand_skip:
            self._line = int(rng.draw_words(1)[0]) % p.rand_skip
            self.require(
                self._line < len(self._entries),
                f'{p.source}: cannot skip {self._line} of {len(self._entries)} images',
            )
        image, _, where = self._image()
        shape = self.transform.shape(image, where)
        self.shapes = [(p.batch_size, *shape), (p.batch_size,)]

    def _shuffle(self) -> None:
        if self._stream:
            shuffle(self._order, self._stream)

    def read(self) -> tuple[np.ndarray, ...]:
        return self.batch_of(self.param.image_data_param.batch_size, self._load)

    def _load(self) -> tuple[np.ndarray, float, str]:
        loaded = self._image()
        self._line += 1
        if self._line == len(self._entries):
            self._line, self._passes = 0, self._passes + 1
            self._shuffle()
        return loaded

    def _image(self) -> tuple[np.ndarray, float, str]:
        p = self.param.image_data_param
        name, label = self._entries[self._order[self._line]]
        path = p.root_folder + name
        return images.read_image(path, p.is_color, self._size).transpose(2, 0, 1), label, path

    def position(self) -> dict:
        return {
            'count': len(self._entries),
            'line': self._line,
            'passes': self._passes,
            'shuffle': self._first_stream,
            'random': self.transform.state(),
        }

    def go_to(self, position: dict) -> None:
        line, passes = int(position['line']), int(position['passes'])
        if position['count'] != len(self._entries) or not 0 <= line < len(self._entries):
            raise CaffeError(
                f'line {line} of {position["count"]}, the list has {len(self._entries)}'
            )
        if (position['shuffle'] is None) != (self._stream is None):
            raise CaffeError('of another shuffle setting than the layer')
        self.transform.set_state(position['random'])
        if self._stream and (passes < self._passes or position['shuffle'] != self._first_stream):
            # An order follows from those before it: shuffle as often again.
            self._stream.set_state(position['shuffle'])
            self._first_stream = position['shuffle']
            self._order, self._passes = list(range(len(self._entries))), -1
        while self._stream and self._passes < passes:
            self._shuffle()
            self._passes += 1
        self._line, self._passes = line, passes
