"""The data layer all data sets share: the order of images, and one read ahead."""

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
from typing import Any, ClassVar

import numpy as np

from caffe_port import TRAIN, Layer, parallel
from caffe_port.errors import CaffeError
from solve.datasets.images import plain_name

LOG = logging.getLogger('caffe_port')
_REQUIRED = object()


@dataclass(frozen=True)
class Params:
    """What a layer's param_str says; each getter raises CaffeError for a wrong type."""

    layer: str
    values: dict

    @classmethod
    def parse(cls, layer: str, text: str) -> Params:
        """Read a Python literal, never running it: a prototxt is data."""
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
        """The value of `key`, which must be of one of `types` or equal `default`."""
        if key not in self.values:
            if default is _REQUIRED:
                raise CaffeError(f"{self.layer}: param_str lacks '{key}' ({what})")
            return default
        value = self.values[key]
        # A bool is an int to isinstance; to a reader it is not.
        if type(value) not in types and (default is _REQUIRED or value is not default):
            raise CaffeError(
                f"{self.layer}: param_str: '{key}' must be {what}, got {repr(value)[:80]}"
            )
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        return self.get(key, (str,), 'a string', default)

    def mean(self, default: tuple[float, ...], key: str = 'mean') -> tuple[float, ...]:
        """As many finite numbers as `default` has."""
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
    """Which of `count` images comes next: drawn at random from `seed`, or in order.

    Drawing is Python 2's random.randint, the release's: Python 3's gives other numbers.
    """

    def __init__(self, count: int, drawn: bool, seed: int | None):
        self._count = count
        self._random = random.Random(seed) if drawn else None
        self._share = 0, 1  # this rank, of how many
        self._share_out(self._after(-1))

    def _after(self, pick: int) -> int:
        return (
            int(self._random.random() * self._count) if self._random else ((pick + 1) % self._count)
        )

    def _share_out(self, pick: int) -> None:
        """Give each rank a pick, from `pick` on: `index` is this rank's."""
        self._first = pick, self._random and self._random.getstate()[1]
        rank, ranks = self._share
        picks = [pick]
        while len(picks) < ranks:
            picks.append(self._after(picks[-1]))
        self.index, self._last = picks[rank], picks[-1]

    def advance(self) -> None:
        """Go on to the next image, or of many ranks' to this rank's next."""
        self._share_out(self._after(self._last))

    def share(self, rank: int, ranks: int) -> None:
        """From the current images on take every `ranks`-th pick, beginning with the rank-th."""
        self._share = rank, ranks
        self.set_state(self.state())

    def state(self) -> dict:
        """What JSON can hold to go on from here, whatever the number of ranks."""
        index, words = self._first
        return {'count': self._count, 'index': index, 'random': words and list(words)}

    def set_state(self, state: dict) -> None:
        """Go on from a state(); raises CaffeError, and stays, if it is not this order's."""
        try:
            count, index, words = state['count'], state['index'], state['random']
        except (TypeError, KeyError) as error:
            raise CaffeError('state of the data order: count, index and random expected') from error
        if count != self._count or (words is None) != (self._random is None):
            raise CaffeError(
                f'state of the data order: of {count} images, '
                f'{"in order" if words is None else "drawn"}; the layer has '
                f'{self._count}, {"drawn" if self._random else "in order"}'
            )
        if type(index) is not int or not 0 <= index < self._count:
            raise CaffeError(f'state of the data order: index {index} of {count} images')
        if self._random:
            try:
                self._random.setstate((3, tuple(words), None))
            except (TypeError, ValueError, OverflowError) as error:
                raise CaffeError(
                    f'state of the data order: not a state of the generator: {error}'
                ) from error
        self._share_out(index)


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
    has 'randomize': False; all others run in order and then begin anew. Of many ranks
    that train each takes its share of that order, as in Caffe. While the net works on an
    image, the next is read.

    `current` is the id of the image that is in the tops. An image that cannot be read
    raises its CaffeError; with `skip_bad` the next one takes its place, of many ranks this
    rank's next, and `skipped` says why, by id.
    """

    top_names: ClassVar[tuple[str, ...]] = ('data', 'label')
    current: str | None = None
    skip_bad: bool = False

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
            raise CaffeError(
                f'{layer}: {len(self.top_names)} tops ({", ".join(self.top_names)}) '
                f'and no bottom expected, got {len(top)} and {len(bottom)}'
            )
        drawn = 'train' in self.split and bool(
            params.get('randomize', (bool, int), 'True or False', True)
        )
        seed = params.get('seed', (int,), 'a whole number', None)
        if drawn and seed is None:  # ranks must share one order
            seed = parallel.first(lambda: secrets.randbits(64))
        self._order = Order(len(self.ids), drawn, seed)
        self._now: tuple[np.ndarray, ...] | None = None
        self._ahead: Future | None = None
        self.skipped: dict[str, str] = {}
        if parallel.solver_count() > 1 and self.phase == TRAIN:
            self._share(parallel.solver_rank(), parallel.solver_count())

    def reshape(self, bottom, top) -> None:
        """Have the current image and give the tops its size."""
        while self._now is None:
            name = self.ids[self._order.index]
            ahead, self._ahead = self._ahead, None
            try:
                self._now = ahead.result() if ahead else self.load(name)
                self.current = name
            except CaffeError as error:
                self._skip(name, error)
        for blob, array in zip(top, self._now):
            blob.reshape(*array.shape)

    def forward(self, bottom, top) -> None:
        """Copy the image to the tops, pick the next and begin to read it."""
        for blob, array in zip(top, self._now):
            blob.data[...] = array
        self._now = None
        self._order.advance()
        self._ahead = start(self.load, self.ids[self._order.index])

    def _skip(self, name: str, error: CaffeError) -> None:
        """Go on to the next image, if that is wanted and there may be one."""
        if not self.skip_bad or {*self.skipped, name} == set(self.ids):
            raise error
        if name not in self.skipped:
            LOG.warning('Skipped: %s', error)
        self.skipped[name] = str(error)
        self._order.advance()

    def backward(self, top, propagate_down, bottom) -> None:
        """Data has no gradient."""

    def _share(self, rank: int, ranks: int) -> None:
        self._order.share(rank, ranks)
        self._now = self._ahead = None

    @contextmanager
    def shared(self, rank: int, ranks: int, count: int) -> Iterator[None]:
        """Feed the rank-th of every `ranks` images; afterwards go on behind the next `count`.

        For layers that feed every image, as they do to test.
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
        """The place in the data order, as plain values that JSON can hold."""
        return {**self._order.state(), 'skipped': dict(self.skipped)}

    def set_state(self, state: dict) -> None:
        """Go on from a state() of a layer with the same images.

        Raises CaffeError, and changes nothing, if it is of another list or malformed.
        """
        skipped = state.get('skipped', {}) if isinstance(state, dict) else {}
        if not isinstance(skipped, dict):
            raise CaffeError(f'state of the data order: skipped is {skipped!r}, not a dict')
        self._order.set_state(state)
        self.skipped = dict(skipped)
        self._now = self._ahead = None

    def __getstate__(self) -> dict:
        # Lets nets be copied and pickled: a thread cannot be, and the copy reads for itself.
        return {**self.__dict__, '_ahead': None}
