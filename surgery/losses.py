"""The pixel loss with the options that the papers tried and the release left out.

A registered module of Python layers; Caffe has none of these. Without options PixelLoss is
SoftmaxWithLoss with ignore_label 255.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from caffe_port import Blob, Layer
from caffe_port.errors import CaffeError

VOID = 255
_OPTIONS = {'normalize', 'seed', 'keep', 'cells', 'weights', 'ratio'}


class PixelLoss(Layer):
    """Take the softmax loss of the pixels that are labelled and kept.

    Bottoms: scores N x C x H x W, label N x 1 x H x W, 255 for void. Top: the loss.
    param_str, all optional:
    normalize: divide by the number of pixels that count, else by N, as SoftmaxWithLoss.
    keep, cells, seed: each cell of the coarse score, (stride, start) in pixels, keeps its
    loss with probability `keep`, drawn from `seed` (CVPR 2015, section 4.3, patch sampling).
    weights: one factor per class for the loss of its pixels; the divisor stays the number.
    ratio: keep at most so many background pixels, of class 0, for each other pixel, at random.

    Raises CaffeError for an unknown option, and a value that makes no sense.
    """

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        try:
            given = ast.literal_eval(self.param_str or '{}')
        except (ValueError, SyntaxError) as error:
            raise CaffeError(f'PixelLoss: param_str must be a dict literal: {error}') from error
        if not isinstance(given, Mapping) or not set(given) <= _OPTIONS:
            raise CaffeError(
                f'PixelLoss: options {given!r}, expected {", ".join(sorted(_OPTIONS))}'
            )
        if len(bottom) != 2 or len(top) != 1:
            raise CaffeError('PixelLoss: scores and label in and the loss out expected')
        self.normalize = bool(given.get('normalize', False))
        self.keep = float(given.get('keep', 1))
        self.stride, self.start = given.get('cells', (1, 0))
        self.weights, self.ratio = given.get('weights'), given.get('ratio')
        if not 0 < self.keep <= 1:
            raise CaffeError(f'PixelLoss: keep {self.keep}: expected more than 0 and at most 1')
        if self.weights is not None and len(self.weights) != bottom[0].channels:
            raise CaffeError(
                f'PixelLoss: {len(self.weights)} weights for {bottom[0].channels} classes'
            )
        if self.ratio is not None and self.ratio <= 0:
            raise CaffeError(f'PixelLoss: ratio {self.ratio}: expected more than 0')
        self._random = random.Random(given.get('seed'))

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].reshape()

    def state(self) -> list:
        """Return the state of the random stream, as JSON can hold it."""
        version, words, gauss = self._random.getstate()
        return [version, list(words), gauss]

    def set_state(self, state: list) -> None:
        """Go on from a state(); raise CaffeError if it is malformed."""
        try:
            version, words, gauss = state
            self._random.setstate((version, tuple(words), gauss))
        except (TypeError, ValueError, OverflowError) as error:
            raise CaffeError(f'PixelLoss: not a state of its stream: {error}') from error

    def _draw(self) -> np.random.RandomState:
        return np.random.RandomState(self._random.getrandbits(32))

    def choose(self, label: np.ndarray) -> np.ndarray:
        """Return which pixels of labels N x 1 x H x W count: N x H x W bool."""
        chosen = label[:, 0] != VOID
        if self.keep < 1:
            down, across = (
                (np.arange(side) + self.start) // self.stride for side in label.shape[2:]
            )
            cells = self._draw().rand(len(label), down[-1] + 1, across[-1] + 1) < self.keep
            chosen &= cells[:, down[:, np.newaxis], across]
        if self.ratio is not None:
            ground = chosen & (label[:, 0] == 0)
            others = int(chosen.sum() - ground.sum())
            places = np.flatnonzero(ground)
            spare = max(len(places) - int(self.ratio * others), 0)
            chosen.flat[self._draw().permutation(places)[:spare]] = False
        return chosen

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        scores = bottom[0].tensor.detach()
        chosen = torch.from_numpy(self.choose(np.asarray(bottom[1].data))).to(scores.device)
        label = bottom[1].tensor.detach()[:, 0].long()
        factors = chosen.to(scores.dtype)
        if self.weights is not None:
            weights = torch.tensor(self.weights, dtype=scores.dtype, device=scores.device)
            factors = factors * weights[label.where(chosen, 0)]
        count = max(int(chosen.sum()), 1) if self.normalize else max(len(scores), 1)
        self._kept = label.where(chosen, 0), factors / count
        losses = F.cross_entropy(scores, self._kept[0], reduction='none')
        top[0].tensor = (losses * self._kept[1]).sum()

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        given = top[0].diff_tensor
        if propagate_down[0] and given is not None:
            label, factors = self._kept
            gradient = F.softmax(bottom[0].tensor.detach(), 1)
            gradient.scatter_add_(1, label[:, None], -torch.ones_like(factors)[:, None])
            bottom[0].diff_tensor = gradient * (factors * given)[:, None]
