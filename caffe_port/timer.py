"""pycaffe's Timer."""

from __future__ import annotations

import time

import torch

from caffe_port import mode


class Timer:
    """Measure the time between start() and stop(), in milliseconds: `ms`.

    Both wait for the GPU first, if nets compute on one.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._spent = 0.0

    def start(self) -> None:
        """Begin to measure, unless it has begun already."""
        if self._started is None:
            self._started = _now()

    def stop(self) -> None:
        """End the measurement, if it has begun."""
        if self._started is not None:
            self._spent, self._started = _now() - self._started, None

    @property
    def ms(self) -> float:
        """The time of the last measurement; reading it ends one under way, as in Caffe."""
        self.stop()
        return self._spent


def _now() -> float:
    """Return milliseconds, once the GPU is done."""
    if mode.device().type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() * 1000
