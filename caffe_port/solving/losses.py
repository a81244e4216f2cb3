"""Keep the losses of a run until they are checked for NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_port import mode, parallel
from caffe_port.errors import CaffeError


@dataclass
class Pass:
    """A forward of a net: its loss, and the names of its images if the data layers know them."""

    images: str
    loss: Tensor


class Unchecked:
    """The losses since the last check.

    A check waits for the GPU, so it runs seldom.
    """

    def __init__(self) -> None:
        self._iterations: list[tuple[int, list[Pass], Tensor]] = []

    def __len__(self) -> int:
        return len(self._iterations)

    def add(self, iteration: int, passes: list[Pass], mean: Tensor) -> None:
        """Add an iteration's passes, and the mean of their losses over passes and ranks."""
        self._iterations.append((iteration, passes, mean))

    def check(self, where: str, largest_change: Callable[[], str]) -> None:
        """Raise CaffeError if a loss since the last check is NaN or infinite on any rank.

        The message names solver `where`, iteration and images.
        """
        iterations, self._iterations = self._iterations, []
        if not iterations:
            return
        # The device may have changed meanwhile.
        means = torch.stack([mean.to(mode.device()) for *_, mean in iterations]).tolist()
        for (iteration, passes, _), mean in zip(iterations, means):
            if math.isfinite(mean):
                continue
            worst = min(passes, key=lambda one: math.isfinite(one.loss))
            on = f' on image {worst.images}' if worst.images else ''
            if parallel.solver_count() > 1:
                on += f' (rank {parallel.solver_rank()})'
            of_ranks = parallel.gather((float(worst.loss), on))
            loss, on = min(of_ranks, key=lambda of_rank: math.isfinite(of_rank[0]))
            raise CaffeError(
                f'{where}: iteration {iteration}: the loss is {loss}{on}; {largest_change()}; '
                'resume from the last snapshot with a smaller base_lr, or look at the image'
            )
