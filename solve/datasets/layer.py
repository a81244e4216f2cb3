"""The data layer that all data sets share: it orders the images and reads one ahead."""

from __future__ import annotations

import ast
import logging
import math
import random
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port import TRAIN, Layer, parallel
from caffe_port.errors import CaffeError
from solve.datasets.images import VOID, plain_name

LOG = logging.getLogger('caffe_port')
_REQUIRED = object()
# Python's parser takes some 500 times the length of a literal; official ones have 150 characters.
_LONGEST_PARAM_STR = 64 * 2**10


@dataclass(frozen=True)
class Params:
    """The values of a layer's param_str; each getter raises CaffeError for a wrong type."""

    layer: str
    values: dict

    @classmethod
    def parse(cls, layer: str, text: str) -> Params:
        """Read a dict literal without running it: a prototxt is data.

        Raises CaffeError if it is another expression, or longer than 64 KiB.
        """
        if len(text) > _LONGEST_PARAM_STR:
            raise CaffeError(
                f'{layer}: param_str has {len(text)} characters, at most {_LONGEST_PARAM_STR} '
                'expected'
            )
        try:
            values = ast.literal_eval(text.strip())
        except Exception as error:  # the parser's own limits raise several kinds
            raise CaffeError(
                f'{layer}: param_str must be a dict literal: {error}; got {text[:200]!r}'
            ) from error
        if not isinstance(values, dict):
            raise CaffeError(f'{layer}: param_str must be a dict literal, got {text[:200]!r}')
        return cls(layer, values)

    def get(self, key: str, types: tuple[type, ...], what: str, default: Any = _REQUIRED) -> Any:
        """Return the value of `key`, which must be of one of `types` or be `default`."""
        if key not in self.values:
            if default is _REQUIRED:
                raise CaffeError(f"{self.layer}: param_str lacks '{key}' ({what})")
            return default
        value = self.values[key]
        # Not isinstance, which takes a bool for an int.
        if type(value) not in types and (default is _REQUIRED or value is not default):
            raise CaffeError(
                f"{self.layer}: param_str: '{key}' must be {what}, got {repr(value)[:80]}"
            )
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        return self.get(key, (str,), 'a string', default)

    def mean(self, default: tuple[float, ...], key: str = 'mean') -> tuple[float, ...]:
        """Return as many finite numbers as `default` has."""
        mean = self.get(key, (tuple, list), f'{len(default)} numbers', default)
        if len(mean) != len(default) or not all(
            type(value) in (int, float) and math.isfinite(value) for value in mean
        ):
            raise CaffeError(
                f"{self.layer}: param_str: '{key}' must be {len(default)} numbers, "
                f'got {repr(mean)[:80]}'
            )
        return tuple(map(float, mean))


class Order:
    """The order of `count` images: drawn at random from `seed`, or one after the other.

    Draws as Python 2's random.randint, which the release used; Python 3's gives other
    numbers.
    """

    def __init__(self, count: int, drawn: bool, seed: int | None):
        self._count = count
        self._random = random.Random(seed) if drawn else None
        self._share = 0, 1  # this rank, number of ranks
        self._share_out(self._after(-1))

    def _after(self, pick: int) -> int:
        if self._random:
            return int(self._random.random() * self._count)
        return (pick + 1) % self._count

    def _share_out(self, pick: int) -> None:
        """Give each rank one pick, rank 0 `pick`; `index` is this rank's."""
        self._first = pick, self._random and self._random.getstate()[1]
        rank, ranks = self._share
        picks = [pick]
        while len(picks) < ranks:
            picks.append(self._after(picks[-1]))
        self.index, self._last = picks[rank], picks[-1]

    def advance(self) -> None:
        """Move on to this rank's next image."""
        self._share_out(self._after(self._last))

    def share(self, rank: int, ranks: int) -> None:
        """Take every `ranks`-th pick from the current one on, beginning with the rank-th."""
        self._share = rank, ranks
        self.set_state(self.state())

    def state(self) -> dict:
        """Return the place in the order, as JSON can hold it, for any number of ranks."""
        index, words = self._first
        return {'count': self._count, 'index': index, 'random': words and list(words)}

    def set_state(self, state: dict) -> None:
        """Go on from a state().

        Raises CaffeError, and changes nothing, if it is malformed or of another order.
        """
        where = 'state of the data order'
        try:
            count, index, words = state['count'], state['index'], state['random']
        except (TypeError, KeyError) as error:
            raise CaffeError(f'{where}: count, index and random expected') from error
        if count != self._count or (words is None) != (self._random is None):
            raise CaffeError(
                f'{where}: of {count} images, {"in order" if words is None else "drawn"}; the '
                f'layer has {self._count}, {"drawn" if self._random else "in order"}'
            )
        if type(index) is not int or not 0 <= index < self._count:
            raise CaffeError(f'{where}: index {index} of {count} images')
        if self._random:
            try:
                self._random.setstate((3, tuple(words), None))
            except (TypeError, ValueError, OverflowError) as error:
                raise CaffeError(f'{where}: not a state of the generator: {error}') from error
        self._share_out(index)


def load_in_thread(load: Callable[[str], Any], name: str) -> Future:
    """Call load(name) in a daemon thread, so that the process can end before it returns."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(load(name))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f'load {name}', daemon=True).start()
    return future


class SegDataLayer(Layer):
    """Feed one image and its labels at a time, at the image's own size.

    A subclass lists the images in `open` and reads one in `load`. Splits with 'train' in
    the name are drawn at random from `seed`, unless param_str has 'randomize': False; all
    others run in order, over and over. In training each rank takes its share of that
    order, as in Caffe. While the net works on an image, a thread reads the next.

    `current` is the id of the image in the tops. An image that cannot be read raises its
    CaffeError; with `skip_bad` this rank's next image takes its place, and `skipped`
    keeps the error by id. `all_void` has the ids met whose labels are all void.
    """

    top_names: tuple[str, ...] = ('data', 'label')
    current: str | None = None
    skip_bad: bool = False

    def open(self, params: Params) -> list[str]:
        """Keep what `load` needs of `params` and return the ids of the split."""
        raise NotImplementedError

    def load(self, name: str) -> tuple[np.ndarray, ...]:
        """Return the tops for image `name`, float32. May run in another thread."""
        raise NotImplementedError

    def files(self, name: str) -> list[Path]:
        """Return the files that `load` reads for image `name`; none if not known."""
        return []

    def setup(self, bottom, top) -> None:
        layer = type(self).__name__
        params = Params.parse(layer, self.param_str)
        self.split = plain_name(params.text('split'), f"{layer}: param_str: 'split'")
        self.ids = self.open(params)
        if bottom or len(top) != len(self.top_names):
            raise CaffeError(
                f'{layer}: {len(self.top_names)} tops ({", ".join(self.top_names)}) '
                f'and no bottom expected, got {len(top)} and {len(bottom)}'
            )
        drawn = 'train' in self.split and bool(
            params.get('randomize', (bool, int), 'True or False', True)
        )
        seed = params.get('seed', (int,), 'a whole number', None)
        if drawn and seed is None:  # ranks must share one order
            seed = parallel.call_on_first(lambda: secrets.randbits(64))
        self._order = Order(len(self.ids), drawn, seed)
        self._now: tuple[np.ndarray, ...] | None = None
        self._ahead: Future | None = None
        self.skipped: dict[str, str] = {}
        self.all_void: dict[str, None] = {}
        if parallel.solver_count() > 1 and self.phase == TRAIN:
            self._share(parallel.solver_rank(), parallel.solver_count())

    def reshape(self, bottom, top) -> None:
        """Read the current image, unless it is read, and give the tops its size."""
        for blob, array in zip(top, self._read()):
            blob.reshape(*array.shape)

    def _read(self) -> tuple[np.ndarray, ...]:
        while self._now is None:
            name = self.ids[self._order.index]
            ahead, self._ahead = self._ahead, None
            try:
                self._now = ahead.result() if ahead else self.load(name)
                self.current = name
            except CaffeError as error:
                self._skip(name, error)
        return self._now

    def forward(self, bottom, top) -> None:
        """Copy the image to the tops, pick the next one and start to read it."""
        for blob, array in zip(top, self._read()):
            blob.data[...] = array
            if array.flat[0] == VOID and (array == VOID).all():
                self.all_void.setdefault(str(self.current))
        self._now = None
        self._order.advance()
        self._ahead = load_in_thread(self.load, self.ids[self._order.index])

    def _skip(self, name: str, error: CaffeError) -> None:
        """Move on to the next image; raise `error` without skip_bad or if none is left."""
        if not self.skip_bad or {*self.skipped, name} == set(self.ids):
            raise error
        if name not in self.skipped:
            LOG.warning('Skipped: %s', error)
        self.skipped[name] = str(error)
        self._order.advance()

    def backward(self, top, propagate_down, bottom) -> None:
        """Do nothing: data has no gradient."""

    def _share(self, rank: int, ranks: int) -> None:
        self._order.share(rank, ranks)
        self._now = self._ahead = None

    @contextmanager
    def shared(self, rank: int, ranks: int, count: int) -> Iterator[None]:
        """Feed the rank-th of every `ranks` images; on leaving, skip the `count` fed by all.

        For testing, where the layer feeds every image.
        """
        before = self.state()
        self._share(rank, ranks)
        try:
            yield
        finally:
            self._share(0, 1)
            self.set_state(before)
            for _ in range(count):
                self._order.advance()

    def state(self) -> dict:
        """Return the place in the data order, as JSON can hold it."""
        return {**self._order.state(), 'skipped': dict(self.skipped)}

    def set_state(self, state: dict) -> None:
        """Go on from a state() of a layer with the same images.

        Raises CaffeError, and changes nothing, if it is malformed or of another list.
        """
        skipped = state.get('skipped', {}) if isinstance(state, dict) else {}
        if not isinstance(skipped, dict):
            raise CaffeError(f'state of the data order: skipped is {skipped!r}, not a dict')
        self._order.set_state(state)
        self.skipped = dict(skipped)
        self._now = self._ahead = None

    def __getstate__(self) -> dict:
        # A thread cannot be copied or pickled; the copy of a layer reads the image again.
        return {**self.__dict__, '_ahead': None}
