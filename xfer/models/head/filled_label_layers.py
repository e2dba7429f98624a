"""Heads that are filled with training features where an image has several labels. Imports torch.

Labels are int64 (n, classes) of 1, 0 and -1 for unknown. Each class is a yes or no of its own, of
which logits are the log-odds; a label that is unknown takes no part in it.
"""

from __future__ import annotations

import torch

from xfer.models.head.filled_layers import FilledHead, NearestImages, Sizes, best_scale


class NearestLabels(NearestImages):
    """The ``k`` nearest training images vote on each label, those that it is known of."""

    shares: torch.Tensor

    def __init__(self, sizes: Sizes, images: int, k: int, distance: str) -> None:
        super().__init__(sizes, images, k, distance)
        self.register_buffer("labels", torch.zeros(images, sizes.classes, dtype=torch.int64))
        self.register_buffer("shares", torch.full((sizes.classes,), 0.5))

    def votes(self, distances: torch.Tensor) -> torch.Tensor:
        """The log-odds of each label: of yes among the votes and one more, which says yes to the
        share of all training images that have the label."""
        nearest = distances.topk(self.k, dim=1, largest=False).indices
        labels = self.labels[nearest]
        yes, no = ((labels == side).float().sum(dim=1) for side in (1, 0))
        return (yes + self.shares).log() - (no + 1 - self.shares).log()

    def fill(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See the base. The share of yes counts the image itself as well: that of the others alone
        would rank those that have a label below those that have it not."""
        yes, no = ((labels == side).float().sum(dim=0) for side in (1, 0))
        self.shares.copy_((yes + 1) / (yes + no + 2))
        return super().fill(features, labels)

    def without_alone(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See the base."""
        return alone_on_a_side(logits, labels)


class NearestLabelMeans(FilledHead):
    """Whether the mean of the images with a label is nearer than that of those without it."""

    means: torch.Tensor
    scale: torch.Tensor

    def __init__(self, sizes: Sizes, distance: str) -> None:
        super().__init__(sizes, distance)
        # Those without the label, then those with it.
        self.register_buffer("means", torch.zeros(2, sizes.classes, sizes.inputs))
        self.register_buffer("scale", torch.zeros(sizes.classes))

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        """See the base."""
        squares = (self.means**2).sum(dim=2)
        apart = 2 * x @ (self.means[1] - self.means[0]).T + squares[0] - squares[1]
        return self.scale * apart

    def fill(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See the base. A label that all known images have, or none, has no second mean: its
        probability is 0.5 of every image."""
        x = self.scaled(features).double()
        lengths, squares = (x**2).sum(dim=1, keepdim=True), []
        for side in (0, 1):
            inside = labels == side
            counts = inside.sum(dim=0)
            means = inside.double().T @ x / counts.clamp(min=1)[:, None]
            self.means[side].copy_(means)
            away = lengths - 2 * x @ means.T + (means**2).sum(dim=1)
            # Without one of n images, the mean of the others is n / (n - 1) times as far from it.
            further = (counts / (counts - 1).clamp(min=1)) ** 2
            squares.append(torch.where(inside, away * further, away))
        both, apart = torch.stack(squares, dim=2), squares[0] - squares[1]
        judged = (labels >= 0) & alone_on_a_side(apart.clone(), labels).isfinite()
        for c, truth in enumerate(labels.T):
            if (truth == 0).any() and (truth == 1).any():
                some = judged[:, c]
                self.scale[c] = best_scale(both[some, c], truth[some])
        return alone_on_a_side((self.scale * apart).float(), labels)


def alone_on_a_side(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``logits`` (n, classes) with NaN for the label of an image that no other has, or that every
    other has."""
    for side in (0, 1):
        inside = labels == side
        logits[inside & (inside.sum(dim=0) < 2)] = torch.nan
    return logits
