"""The data layer all data sets share: the order of images, and one read ahead."""

from __future__ import annotations

import ast
import math
import random
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Callable, ClassVar

import numpy as np

from caffe_port import Layer
from caffe_port.errors import CaffeError
from solve.datasets.images import plain_name

_REQUIRED = object()


@dataclass(frozen=True)
class Params:
    """What a layer's param_str says; each getter raises CaffeError for a wrong type."""

    layer: str
    values: dict

    @classmethod
    def parse(cls, layer: str, text: str) -> 'Params':
        """Read a Python literal, never running it: a prototxt is data."""
        try:
            values = ast.literal_eval(text.strip())
        except Exception as error:  # the parser's own limits raise several kinds
            raise CaffeError(f'{layer}: param_str must be a dict literal: {error}; '
                             f'got {text[:200]!r}') from error
        if not isinstance(values, dict):
            raise CaffeError(f'{layer}: param_str must be a dict literal, got {text[:200]!r}')
        return cls(layer, values)

    def get(self, key: str, types: tuple[type, ...], what: str, default: Any = _REQUIRED) -> Any:
        """The value of `key`, which must be of one of `types` or equal `default`."""
        if key not in self.values:
            if default is _REQUIRED:
                raise CaffeError(f"{self.layer}: param_str lacks '{key}' ({what})")
            return default
        value = self.values[key]
        # A bool is an int to isinstance; to a reader it is not.
        if type(value) not in types and (default is _REQUIRED or value is not default):
            raise CaffeError(f"{self.layer}: param_str: '{key}' must be {what}, "
                             f'got {repr(value)[:80]}')
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        return self.get(key, (str,), 'a string', default)

    def mean(self, default: tuple[float, ...], key: str = 'mean') -> tuple[float, ...]:
        """As many finite numbers as `default` has."""
        mean = self.get(key, (tuple, list), f'{len(default)} numbers', default)
        if len(mean) != len(default) or not all(
                type(value) in (int, float) and math.isfinite(value) for value in mean):
            raise CaffeError(f"{self.layer}: param_str: '{key}' must be {len(default)} numbers, "
                             f'got {repr(mean)[:80]}')
        return tuple(map(float, mean))


class Order:
    """Which of `count` images comes next: drawn at random from `seed`, or in order.

    Drawing is Python 2's random.randint, the release's: Python 3's gives other numbers.
    """

    def __init__(self, count: int, drawn: bool, seed: int | None):
        self._count = count
        self._random = random.Random(seed) if drawn else None
        self.index = self._draw(self._random) if self._random else 0

    def _draw(self, source: random.Random) -> int:
        return int(source.random() * self._count)

    def advance(self) -> None:
        self.index = (self._draw(self._random) if self._random
                      else (self.index + 1) % self._count)

    def state(self) -> dict:
        """What JSON can hold to go on from here."""
        return {'count': self._count, 'index': self.index,
                'random': list(self._random.getstate()[1]) if self._random else None}

    def set_state(self, state: dict) -> None:
        """Go on from a state(); raises CaffeError, and stays, if it is not this order's."""
        try:
            count, index, words = state['count'], state['index'], state['random']
        except (TypeError, KeyError) as error:
            raise CaffeError('state of the data order: count, index and random expected') from error
        if count != self._count or (words is None) != (self._random is None):
            raise CaffeError(f'state of the data order: of {count} images, '
                             f'{"in order" if words is None else "drawn"}; the layer has '
                             f'{self._count}, {"drawn" if self._random else "in order"}')
        if type(index) is not int or not 0 <= index < self._count:
            raise CaffeError(f'state of the data order: index {index} of {count} images')
        if self._random:
            try:
                self._random.setstate((3, tuple(words), None))
            except (TypeError, ValueError, OverflowError) as error:
                raise CaffeError('state of the data order: not a state of the generator: '
                                 f'{error}') from error
        self.index = index


def start(load: Callable[[str], Any], name: str) -> Future:
    """Call load(name) in a thread of its own, one that no process waits for at its end."""
    future = Future()

    def run() -> None:
        try:
            future.set_result(load(name))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f'load {name}', daemon=True).start()
    return future


class SegDataLayer(Layer):
    """Feeds one image and its labels at a time, at the image's own size.

    A subclass says in `open` which images there are and in `load` what the tops get.
    Splits with 'train' in the name are drawn at random from `seed`, unless param_str
    has 'randomize': False; all others run in order and then begin anew. While the net
    works on an image, the next is read.

    `current` is the id of the image that is in the tops.
    """

    top_names: ClassVar[tuple[str, ...]] = ('data', 'label')
    current: str | None = None

    def open(self, params: Params) -> list[str]:
        """Take what `load` needs from `params` and return the ids of the split."""
        raise NotImplementedError

    def load(self, name: str) -> tuple[np.ndarray, ...]:
        """Return the tops for image `name`, float32; may run in another thread."""
        raise NotImplementedError

    def setup(self, bottom, top) -> None:
        layer = type(self).__name__
        params = Params.parse(layer, self.param_str)
        self.split = plain_name(params.text('split'), f"{layer}: param_str: 'split'")
        self.ids = self.open(params)
        if bottom or len(top) != len(self.top_names):
            raise CaffeError(f'{layer}: {len(self.top_names)} tops ({", ".join(self.top_names)}) '
                             f'and no bottom expected, got {len(top)} and {len(bottom)}')
        drawn = bool(params.get('randomize', (bool, int), 'True or False', True))
        self._order = Order(len(self.ids), drawn and 'train' in self.split,
                            params.get('seed', (int,), 'a whole number', None))
        self._now: tuple[np.ndarray, ...] | None = None
        self._ahead: Future | None = None

    def reshape(self, bottom, top) -> None:
        """Have the current image and give the tops its size."""
        if self._now is None:
            name = self.ids[self._order.index]
            ahead, self._ahead = self._ahead, None
            self._now = ahead.result() if ahead else self.load(name)
            self.current = name
        for blob, array in zip(top, self._now):
            blob.reshape(*array.shape)

    def forward(self, bottom, top) -> None:
        """Copy the image to the tops, pick the next and begin to read it."""
        for blob, array in zip(top, self._now):
            blob.data[...] = array
        self._now = None
        self._order.advance()
        self._ahead = start(self.load, self.ids[self._order.index])

    def backward(self, top, propagate_down, bottom) -> None:
        """Data has no gradient."""

    def state(self) -> dict:
        """The place in the data order, as plain values that JSON can hold."""
        return self._order.state()

    def set_state(self, state: dict) -> None:
        """Go on from a state() of a layer with the same images.

        Raises CaffeError, and changes nothing, if it is of another list or malformed.
        """
        self._order.set_state(state)
        self._now = self._ahead = None

    def __getstate__(self) -> dict:
        # Lets nets be copied and pickled: a thread cannot be, and the copy reads for itself.
        return {**self.__dict__, '_ahead': None}
