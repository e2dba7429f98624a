"""Losses of several labels an image: each class is a yes or no of its own.

Labels are 1, 0 or -1 for unknown, (n, classes), or of images that were mixed the share of the image
that has the label; what is unknown has no part in a loss, which is the mean over the others.
"""

from __future__ import annotations

from collections.abc import Callable

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
        z, known, has = logits.float(), labels >= 0, labels.clamp(min=0).float()
        share = z.sigmoid()
        lacks = (1 - share + self.margin).clamp(max=1)
        with torch.no_grad():
            missed, wrongly = (1 - share).pow(self.positive), (1 - lacks).pow(self.negative)
        yes, no = missed * logsigmoid(z), wrongly * lacks.clamp(min=1e-8).log()
        return _mean(-torch.lerp(no, yes, has), known)


def mixed(
    mix: Callable[..., tuple[Tensor, Tensor]], images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Images (n, 3, h, w) mixed by ``mix``, and of each label the share of the mixed image that has
    it, float32 (n, classes); -1 where it is unknown of a part of the image."""
    has, known = (labels == 1), (labels >= 0)
    images, shares = mix(images, torch.cat([has, known], dim=1).float())
    parts, sure = shares.chunk(2, dim=1)
    return images, torch.where(sure > 1 - _ROUNDING, parts, -1.0)


_ROUNDING = 1e-6  # of two shares that add up to 1


def _mean(losses: Tensor, known: Tensor) -> Tensor:
    """The mean of the known ones; 0 of none, with a gradient of 0."""
    total = torch.where(known, losses, torch.zeros_like(losses)).sum()
    return total / known.sum().clamp(min=1)
