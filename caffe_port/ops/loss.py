"""Losses and measures."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.errors import CaffeError
from caffe_port.files import caffemodel
from caffe_port.ops.base import Op, Shape, axis_of, indices
from caffe_port.proto.caffe_pb2 import HingeLossParameter, LossParameter

# -log of the smallest normal float32, at which Caffe's loss clamps a probability.
LARGEST_NLL = -math.log(1.17549435e-38)
# The bound at which InfogainLoss and MultinomialLogisticLoss clamp it.
LEAST_PROBABILITY = 1e-20


def normalization_of(param: LossParameter, fallback: int = LossParameter.VALID) -> int:
    """Return the mode of a loss_param, from `normalization` or the legacy `normalize`."""
    if param.HasField('normalization') or not param.HasField('normalize'):
        return param.normalization if param.HasField('normalization') else fallback
    return LossParameter.VALID if param.normalize else LossParameter.BATCH_SIZE


def divisor(mode: int, full: int, batch: int, valid: Tensor | int) -> Tensor | int:
    """Return the number that divides a loss in a normalization mode; at least 1."""
    if mode == LossParameter.VALID:
        return valid.clamp(min=1) if isinstance(valid, Tensor) else max(valid, 1)
    if mode == LossParameter.NONE:
        return 1
    return max(full if mode == LossParameter.FULL else batch, 1)


def labels_along(labels: Tensor, scores: Tensor, axis: int) -> Tensor:
    """Return the labels as whole numbers, in the scores' shape without `axis`.

    Raises CaffeError unless there is one label per position.
    """
    rest = _positions(tuple(labels.shape), tuple(scores.shape), axis)
    return labels.detach().reshape(rest).long()


def _positions(labels: Shape, scores: Shape, axis: int) -> Shape:
    """Return the scores' shape without `axis`; raise CaffeError unless each place has a label."""
    rest = scores[:axis] + scores[axis + 1 :]
    count, expected = math.prod(labels), math.prod(rest)
    if count != expected:
        raise CaffeError(f'{labels} labels for scores {scores}: {count}, expected {expected}')
    return rest


class SoftmaxWithLoss(Op):
    """Take the multinomial logistic loss of the softmax over an axis, as
    softmax_loss_layer.cpp.

    Bottoms: scores N x C x ..., labels with one integer per position. Tops: the loss,
    a scalar, and if there are two the probabilities, without gradient. The loss clamps a
    probability at 1.17549435e-38, its gradient does not. If all labels are ignored it is 0.
    """

    bottoms, tops = (2, 2), (1, 2)
    loss = True
    forceable = (True, False)

    def setup(self, shape: Shape, labels: Shape) -> None:
        p = self.param
        self.axis = axis_of(p.softmax_param.axis, len(shape), 'softmax axis')
        self.ignore = p.loss_param.ignore_label if p.loss_param.HasField('ignore_label') else None
        self.mode = normalization_of(p.loss_param)

    def top_shapes(self, scores: Shape, labels: Shape) -> list[Shape]:
        _positions(labels, scores, self.axis)
        return [(), scores][: self.top_count]

    def forward(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        log_prob = F.log_softmax(scores, self.axis)
        target = labels_along(labels, scores, self.axis)
        positions = target.numel()
        valid = target != self.ignore if self.ignore is not None else None
        if valid is not None:
            target = target.where(valid, 0)
        nll = -log_prob.gather(self.axis, target.unsqueeze(self.axis))
        # The clamp changes the value but not the gradient.
        nll = nll + (nll.clamp(max=LARGEST_NLL) - nll).detach()
        count: Tensor | int = positions
        if valid is not None:
            nll, count = nll * valid.unsqueeze(self.axis), valid.sum()
        batch = math.prod(scores.shape[: self.axis])
        loss = nll.sum() / divisor(self.mode, positions, batch, count)
        return (loss,) if self.top_count == 1 else (loss, log_prob.detach().exp())


class MultinomialLogisticLoss(Op):
    """Take -log of the label's probability, mean over the batch, as
    multinomial_logistic_loss_layer.cpp; a probability is clamped at 1e-20.

    Bottoms: probabilities N x C (with 1 x 1), labels N.
    """

    bottoms = (2, 2)
    loss = True
    forceable = (True, False)

    def forward(self, prob: Tensor, labels: Tensor) -> Tensor:
        self.require(
            labels.numel() == prob.shape[0],
            f'{labels.numel()} labels for a batch of {prob.shape[0]}',
        )
        true = prob.flatten(1).gather(1, labels.detach().reshape(-1, 1).long())
        # The gradient is 1 / the clamped value, below the clamp too.
        true = true + (true.clamp(min=LEAST_PROBABILITY) - true).detach()
        return -true.log().sum() / prob.shape[0]


class InfogainLoss(Op):
    """Sum -H[label, k] log p_k over the classes k, with p the softmax of the scores over
    an axis, as infogain_loss_layer.cpp; the identity H gives SoftmaxWithLoss.

    Bottoms: scores N x C x ..., labels with one integer per position, and H (C x C) unless
    the .binaryproto `source` holds it. Tops: the loss, a scalar, and if there are two the
    probabilities, without gradient. The loss clamps a probability at 1e-20, its gradient
    does not.
    """

    bottoms, tops = (2, 3), (1, 2)
    loss = True
    forceable = (True, False)

    def setup(self, shape: Shape, labels: Shape, *matrix: Shape) -> None:
        p, given = self.param.infogain_loss_param, self.param.loss_param
        self.axis = axis_of(p.axis, len(shape))
        self.require(
            not given.HasField('normalize'),
            'normalize does not go with InfogainLoss: give normalization',
        )
        self.ignore = given.ignore_label if given.HasField('ignore_label') else None
        self.mode = normalization_of(given)
        if not matrix:
            self.require(
                p.HasField('source'),
                'the matrix must be the third bottom, or in the file that source names',
            )
            self.register_buffer(
                'matrix',
                torch.from_numpy(caffemodel.read_blob(p.source)).to(self.device),
                persistent=False,
            )

    def forward(self, scores: Tensor, labels: Tensor, *matrix: Tensor) -> tuple[Tensor, ...]:
        classes = scores.shape[self.axis]
        (gains,) = matrix or (self.matrix,)
        self.require(
            gains.numel() == classes**2,
            f'matrix {tuple(gains.shape)} for {classes} classes, expected {classes} x {classes}',
        )
        target = labels_along(labels, scores, self.axis)
        valid = (
            target != self.ignore
            if self.ignore is not None
            else torch.ones_like(target, dtype=torch.bool)
        )
        target = indices(target.where(valid, 0), classes, 'label')
        log_prob = F.log_softmax(scores, self.axis)
        seen = log_prob.clamp(min=math.log(LEAST_PROBABILITY))
        seen = (log_prob + (seen - log_prob).detach()).movedim(self.axis, -1)
        losses = -(F.embedding(target, gains.detach().reshape(classes, classes)) * seen).sum(-1)
        batch = math.prod(scores.shape[: self.axis])
        loss = (losses * valid).sum() / divisor(self.mode, target.numel(), batch, valid.sum())
        return (loss,) if self.top_count == 1 else (loss, log_prob.detach().exp())


class HingeLoss(Op):
    """Sum max(0, 1 - s x), or with norm L2 its squares, over the batch size, where s is 1 for
    the score of the label and -1 for the others, as hinge_loss_layer.cpp.

    Bottoms: scores N x C (with 1 x 1), labels N.
    """

    bottoms = (2, 2)
    loss = True
    forceable = (True, False)

    def setup(self, shape: Shape, labels: Shape) -> None:
        self.squared = self.param.hinge_loss_param.norm == HingeLossParameter.L2

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        self.require(
            labels.numel() == scores.shape[0],
            f'{labels.numel()} labels for a batch of {scores.shape[0]}',
        )
        rows = scores.flatten(1)
        true = indices(labels.reshape(-1, 1), rows.shape[1], 'label')
        gaps = F.relu(1 + torch.ones_like(rows).scatter(1, true, -1) * rows)
        return (gaps * gaps if self.squared else gaps).sum() / scores.shape[0]


class ContrastiveLoss(Op):
    """Take half the mean over pairs of a loss in their distance d, as
    contrastive_loss_layer.cpp.

    It is d ** 2 for a pair that is alike, and else max(0, margin - d) ** 2, or with
    legacy_version max(0, margin - d ** 2). Bottoms: two blobs N x C (with 1 x 1), and N
    labels, not 0 where a pair is alike. The gradient divides by d + 1e-4 in place of d.
    """

    bottoms = (3, 3)
    loss = True
    forceable = (True, True, False)

    def setup(self, *shapes: Shape) -> None:
        p = self.param.contrastive_loss_param
        self.margin, self.legacy = p.margin, p.legacy_version

    def forward(self, one: Tensor, other: Tensor, labels: Tensor) -> Tensor:
        self.require(
            one.shape[:2] == other.shape[:2]
            and one.shape[2:].numel() == other.shape[2:].numel() == 1,
            f'{tuple(one.shape)} and {tuple(other.shape)} must be N x C both',
        )
        self.require(
            labels.numel() == one.shape[0], f'{labels.numel()} labels for {one.shape[0]} pairs'
        )
        squares = (one.flatten(1) - other.flatten(1)).square().sum(1)
        d2, alike = squares.detach(), labels.detach().flatten().trunc() != 0
        gap = (self.margin - (d2 if self.legacy else d2.sqrt())).clamp(min=0)
        value, slope = (gap, -gap.sign()) if self.legacy else (gap * gap, -gap / (d2.sqrt() + 1e-4))
        # Its value, and its derivative along the squared distance, which is finite at 0.
        losses = value.where(~alike, d2) + slope.where(~alike, 1) * (squares - d2)
        return losses.sum() / (2 * one.shape[0])


class EuclideanLoss(Op):
    """Sum squared differences over twice the batch size, as euclidean_loss_layer.cpp."""

    bottoms = (2, 2)
    loss = True

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        self.require(
            one.shape[1:].numel() == other.shape[1:].numel()
            and one.dim() > 0
            and one.shape[0] == other.shape[0],
            f'bottoms differ: {tuple(one.shape)} and {tuple(other.shape)}',
        )
        return (one.flatten() - other.flatten()).square().sum() / (2 * one.shape[0])


class SigmoidCrossEntropyLoss(Op):
    """Take the cross-entropy of sigmoid(x) against targets in [0, 1], as
    sigmoid_cross_entropy_loss_layer.cpp; by default it is divided by the batch size.

    Targets whose integer part is ignore_label do not count.
    """

    bottoms = (2, 2)
    loss = True
    forceable = (True, False)

    def setup(self, shape: Shape, targets: Shape) -> None:
        p = self.param.loss_param
        self.ignore = p.ignore_label if p.HasField('ignore_label') else None
        self.mode = normalization_of(p, LossParameter.BATCH_SIZE)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        self.require(
            scores.numel() == targets.numel(),
            f'bottoms differ: {tuple(scores.shape)} and {tuple(targets.shape)}',
        )
        targets = targets.detach().reshape(scores.shape)
        losses = F.binary_cross_entropy_with_logits(scores, targets, reduction='none')
        count: Tensor | int = scores.numel()
        if self.ignore is not None:
            valid = targets.trunc() != self.ignore
            losses, count = losses.where(valid, 0.0), valid.sum()
        return losses.sum() / divisor(self.mode, scores.numel(), scores.shape[0], count)


class Accuracy(Op):
    """Give the part of labels among the top_k best scores, as accuracy_layer.cpp.

    A score equal to the label's counts as better. The second top holds the part per
    class, 0 for a class without labels. There is no gradient.
    """

    bottoms, tops = (2, 2), (1, 2)
    forceable = (False,)

    def setup(self, shape: Shape, labels: Shape) -> None:
        p = self.param.accuracy_param
        self.axis = axis_of(p.axis, len(shape))
        self.ignore = p.ignore_label if p.HasField('ignore_label') else None
        self.top_k = p.top_k
        self.require(
            1 <= p.top_k <= shape[self.axis], f'top_k {p.top_k} must be 1 to {shape[self.axis]}'
        )

    def forward(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        rows = scores.detach().movedim(self.axis, -1)
        classes = rows.shape[-1]
        rows, target = rows.reshape(-1, classes), labels.detach().reshape(-1).long()
        self.require(len(rows) == len(target), f'{len(target)} labels for {len(rows)} positions')
        valid = (
            (target != self.ignore)
            if self.ignore is not None
            else torch.ones_like(target, dtype=torch.bool)
        )
        target = target.where(valid, 0)
        better = (rows >= rows.gather(1, target[:, None])).sum(1) - 1
        right = ((better < self.top_k) & valid).to(scores.dtype)
        tops = [right.sum() / valid.sum().clamp(min=1)]
        if self.top_count == 2:
            valid = valid.to(scores.dtype)
            per_class = torch.zeros(2, classes, dtype=scores.dtype, device=scores.device)
            per_class[0].index_add_(0, target, right)
            per_class[1].index_add_(0, target, valid)
            tops.append(per_class[0] / per_class[1].clamp(min=1))
        return tuple(tops)
