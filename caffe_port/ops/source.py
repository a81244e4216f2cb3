"""Layers that read batches from files while the net computes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from caffe_port import rng
from caffe_port.errors import CaffeError
from caffe_port.ops.base import Op, Shape
from caffe_port.ops.transform import Transform

T = TypeVar('T')
# As many batches are read ahead at most, whatever a prototxt asks for.
MAX_AHEAD = 16


class Ahead(Generic[T]):
    """Calls `produce` in a background thread, up to `depth` results ahead.

    The thread ends whenever enough is ready, and no process waits for it at its end.
    """

    def __init__(self, produce: Callable[[], T], depth: int):
        self._produce, self._depth = produce, depth
        self._ready: deque[Future[T]] = deque()
        self._changed = threading.Condition()
        self._running = self._stopped = False

    def next(self) -> T:
        """Return the next result, or raise what `produce` has raised; begin another."""
        with self._changed:
            self._begin()
            self._changed.wait_for(lambda: self._ready)
            made = self._ready.popleft()
            if not made.exception():
                self._begin()
        return made.result()

    def first(self) -> T | None:
        """Return the result that `next` will return, if one is ready or being made."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or not self._running)
            made = self._ready[0] if self._ready else None
        return None if made is None or made.exception() else made.result()

    def stop(self) -> None:
        """Forget what is ready, and wait for the thread to end."""
        with self._changed:
            self._stopped = True
            self._changed.wait_for(lambda: not self._running)
            self._ready.clear()
            self._stopped = False

    def _begin(self) -> None:
        if not self._running and len(self._ready) < self._depth:
            self._running = True
            threading.Thread(target=self._run, name='read ahead', daemon=True).start()

    def _run(self) -> None:
        going_on = True
        while going_on:
            made: Future[T] = Future()
            try:
                made.set_result(self._produce())
            except BaseException as error:
                made.set_exception(error)
            with self._changed:
                self._ready.append(made)
                enough = len(self._ready) >= self._depth
                going_on = not (enough or self._stopped or made.exception())
                self._running = going_on
                self._changed.notify_all()


class Source(Op, abstract=True):
    """Base of layers whose tops come from files, read ahead of the net.

    A subclass defines `setup`, which opens the files, sets `shapes`, those of the next tops,
    and calls `begin`; `read`, which returns the next batch, an array per top; and `position`
    and `go_to`, which return and set the position of that batch. All but `setup` may run in a
    background thread, one at a time.

    state() is the place of the batch that the next forward will give, whatever has been read
    ahead: a resumed run goes on from there.
    """

    bottoms = (0, 0)
    shapes: list[Shape]

    def read(self) -> tuple[np.ndarray, ...]:
        raise NotImplementedError

    def position(self) -> dict:
        raise NotImplementedError

    def go_to(self, position: dict) -> None:
        raise NotImplementedError

    def begin(self, depth: int) -> None:
        """Read up to `depth` batches ahead, from the first forward on."""
        self._depth = min(max(depth, 1), MAX_AHEAD)
        self._ahead = Ahead(self._next, self._depth)

    def _next(self) -> tuple[dict, tuple[np.ndarray, ...]]:
        position = self.position()
        try:
            return position, self.read()
        except BaseException:
            self.go_to(position)
            raise

    def _top_shapes(self) -> list[Shape]:
        return self.shapes

    top_shapes = _top_shapes

    def forward(self) -> tuple[Tensor, ...]:
        _, arrays = self._ahead.next()
        self.shapes = [array.shape for array in arrays]
        return tuple(torch.from_numpy(array).to(self.device) for array in arrays)

    def state(self) -> dict:
        """Return the place of the next batch, as plain values that JSON can hold."""
        first = self._ahead.first()
        return self.position() if first is None else first[0]

    def set_state(self, state: dict) -> None:
        """Go on from a state() of a layer with the same files.

        Raises CaffeError, and changes nothing, if it does not fit.
        """
        before = self.state()
        self._ahead.stop()
        try:
            self.go_to(state)
        except (LookupError, TypeError, ValueError) as error:
            self.go_to(before)
            raise CaffeError(f'state of {self.param.name}: does not fit: {error}') from error

    def __getstate__(self) -> dict:
        # A thread cannot be copied or pickled: the copy begins at the same batch.
        self.set_state(self.state())
        return {**self.__dict__, '_ahead': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.begin(self._depth)


class ImageSource(Source, abstract=True):
    """Base of sources of images with labels, which transform_param transforms.

    As in Caffe the host stream gives: the seed of the transform, what `open` draws, the seed
    of the transform anew, and that of the thread, which draws nothing from it.
    """

    tops = (2, 2)

    def setup(self) -> None:
        self.transform = Transform(self.param.transform_param, self.phase)
        self.open()
        self.transform.seed()
        rng.draw_words(1)
        self.begin(self.param.data_param.prefetch)

    def open(self) -> None:
        raise NotImplementedError

    def batch_of(self, count: int, load: Callable[[], tuple[np.ndarray, float, str]]) -> Any:
        """Return `count` transformed images and their labels, each from load().

        load() returns an image, channels x H x W, its label and its name for errors. The first
        image decides the shape of all.
        """
        labels = np.empty(count, np.float32)
        data = np.empty(0, np.float32)
        for i in range(count):
            image, labels[i], where = load()
            if not i:
                data = np.empty((count, *self.transform.shape(image, where)), np.float32)
            self.transform(image, data[i], where)
        return data, labels
