"""Write a run's log as TensorBoard's event files; needs tensorboard."""

from __future__ import annotations

import math
from pathlib import Path

from caffe_port.files.stored import import_library


def require() -> None:
    """Raise CaffeError, with what to install, where tensorboard is not installed."""
    import_library('tensorboard', '--tensorboard', 'tensorboard')


class Events:
    """Write numbers to the folder `tensorboard` of a run that begins at iteration `start`.

    TensorBoard hides what an earlier run has written beyond `start`.

    Raises CaffeError where tensorboard is not installed.
    """

    def __init__(self, folder: Path, start: int):
        require()
        module = import_library('torch.utils.tensorboard', '--tensorboard', 'tensorboard')
        self._writer = module.SummaryWriter(str(folder / 'tensorboard'), purge_step=start)

    def add(self, iteration: int, values: dict[str, float]) -> None:
        """Add the finite ones of `values`, by name."""
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
