"""pycaffe's Timer."""

from __future__ import annotations

import time

import torch

from caffe_port import mode


class Timer:
    """Measure wall time between start() and stop(), with the work of the device in use."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._seconds = 0.0

    def start(self) -> None:
        """Begin to measure; without effect while it runs."""
        if self._began is None:
            self._began = _now()

    def stop(self) -> None:
        """Stop measuring; without effect if it does not run."""
        if self._began is not None:
            self._seconds, self._began = _now() - self._began, None

    @property
    def ms(self) -> float:
        """The milliseconds of the last measurement, which ends now if it runs; 0 before any."""
        self.stop()
        return 1000 * self._seconds


def _now() -> float:
    if mode.device().type == 'cuda':
        torch.cuda.synchronize(mode.device())  # its work goes on after a call returns
    return time.perf_counter()
