"""Losses of several labels an image: each class is a yes or no of its own.

Labels are 1, 0 or -1 for unknown, (n, classes); what is unknown has no part in a loss, which is the
mean over the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy; a label that an image has weighs ``weights`` (classes,), and
    ``smoothing`` is the share of each target that is moved half-way to the other answer."""

    weights: Tensor

    def __init__(self, weights: list[float], smoothing: float) -> None:
        super().__init__()
        # No part of the state: it follows from the data, as the weights of classes do.
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.smoothing = smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        known = labels >= 0
        target = labels.clamp(min=0).to(logits.dtype)
        target = target * (1 - self.smoothing) + self.smoothing / 2
        each = binary_cross_entropy_with_logits(
            logits, target, reduction="none", pos_weight=self.weights
        )
        return _mean(each, known)


class Asymmetric(nn.Module):
    """The asymmetric loss of E. Ben-Baruch et al. (Asymmetric Loss For Multi-Label
    Classification, 2021, equation 7): ``(1 - p)^positive log(p)`` of a label that an image has and
    ``q^negative log(1 - q)`` of one that it has not, q the probability less ``margin`` and not
    below 0. As in the authors' own code no gradient passes through the factor before a logarithm,
    and q's logarithm is cut off at 1e-8."""

    def __init__(self, positive: float, negative: float, margin: float) -> None:
        super().__init__()
        self.positive, self.negative, self.margin = positive, negative, margin

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See the class."""
        # In float32: 1e-8 is nothing in half precision.
        z, known, has = logits.float(), labels >= 0, labels == 1
        share = z.sigmoid()
        lacks = (1 - share + self.margin).clamp(max=1)
        logarithm = torch.where(has, logsigmoid(z), lacks.clamp(min=1e-8).log())
        with torch.no_grad():
            true = torch.where(has, share, lacks)
            power = torch.where(has, self.positive, self.negative)
            factor = (1 - true).pow(power)
        return _mean(-factor * logarithm, known)


def _mean(losses: Tensor, known: Tensor) -> Tensor:
    """The mean of the known ones; 0 of none, with a gradient of 0."""
    total = torch.where(known, losses, torch.zeros_like(losses)).sum()
    return total / known.sum().clamp(min=1)
