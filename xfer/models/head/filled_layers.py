"""Heads that are filled with training features in place of being trained. Imports torch.

With several labels an image these are int64 (n, classes) of 1, 0 and -1 for unknown. Each class is
then a yes or no of its own, of which logits are the log-odds; a label that is unknown takes no part
in it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

_BLOCK = 1 << 24  # numbers that are worked on at a time


class Sizes(NamedTuple):
    """Features that enter, classes, and whether they enter as a map (n, c, h, w)."""

    inputs: int
    classes: int
    spatial: bool


class FilledHead(nn.Module):
    """What they have in common: the mean over the positions of a map, length 1 where the distance
    is that of the cosine, and the shape that the network expects of its classifier."""

    def __init__(self, sizes: Sizes, distance: str) -> None:
        super().__init__()
        self.sizes, self.cosine = sizes, distance == "cosine"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c) or (n, c, h, w) to logits (n, classes), or (n, classes, 1, 1) of a map."""
        if not self.sizes.spatial:
            return self.answer(self.scaled(x))
        return self.answer(self.scaled(x.mean((2, 3))))[:, :, None, None]

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """Features (n, c) as distances are measured between them."""
        return F.normalize(x, dim=1) if self.cosine else x

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) of scaled features (n, c)."""
        raise NotImplementedError

    def fill(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Hold training ``features`` float32 (n, c) and ``labels`` int64 (n,), with several labels
        an image (n, classes). Return the logits of each image by all the others, float32
        (n, classes), NaN where its class has no other."""
        raise NotImplementedError


class NearestImages(FilledHead):
    """The ``k`` nearest training images vote."""

    features: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor

    def __init__(self, sizes: Sizes, images: int, k: int, distance: str) -> None:
        super().__init__(sizes, distance)
        self.k = k
        self.register_buffer("features", torch.zeros(images, sizes.inputs))
        self.register_buffer("lengths", torch.zeros(images))
        self.register_buffer("labels", torch.zeros(images, dtype=torch.int64))

    def distances(self, x: torch.Tensor) -> torch.Tensor:
        """Squared distances (n, images), less the squared length of each row of ``x``."""
        return self.lengths - 2 * x @ self.features.T

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        """See the base."""
        return self.votes(self.distances(x))

    def votes(self, distances: torch.Tensor) -> torch.Tensor:
        """The logarithm of each class's share of the votes, one vote more being shared by all."""
        nearest = distances.topk(self.k, dim=1, largest=False).indices
        classes = torch.arange(self.sizes.classes, device=distances.device)
        votes = (self.labels[nearest].unsqueeze(2) == classes).float().sum(dim=1)
        return ((votes + 1 / self.sizes.classes) / (self.k + 1)).log()

    def fill(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See the base."""
        self.features.copy_(self.scaled(features))
        self.lengths.copy_((self.features**2).sum(dim=1))
        self.labels.copy_(labels)
        logits = torch.empty(len(labels), self.sizes.classes)
        step = max(1, _BLOCK // len(labels))
        for start in range(0, len(labels), step):
            at = torch.arange(start, min(start + step, len(labels)))
            distances = self.distances(self.features[at])
            distances[torch.arange(len(at)), at] = torch.inf  # none votes for itself
            logits[at] = self.votes(distances)
        return self.without_alone(logits, labels)

    def without_alone(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``logits`` with NaN where no other image knows the answer."""
        return alone_unknown(logits, labels, self.sizes.classes)


class NearestMean(FilledHead):
    """The class whose mean is nearest."""

    means: torch.Tensor
    scale: torch.Tensor

    def __init__(self, sizes: Sizes, distance: str) -> None:
        super().__init__(sizes, distance)
        self.register_buffer("means", torch.zeros(sizes.classes, sizes.inputs))
        self.register_buffer("scale", torch.ones(()))

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        """See the base."""
        # What is the same for every class is left out of the squared distance.
        return self.scale * (2 * x @ self.means.T - (self.means**2).sum(dim=1))

    def fill(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See the base."""
        x = self.scaled(features).double()
        counts = torch.bincount(labels, minlength=self.sizes.classes).double()
        means = torch.zeros(self.sizes.classes, x.shape[1], dtype=torch.float64)
        means.index_add_(0, labels, x).div_(counts.clamp(min=1)[:, None])
        squares = (x**2).sum(dim=1, keepdim=True) - 2 * x @ means.T + (means**2).sum(dim=1)
        # Without one of n images, the mean of the others is n / (n - 1) times as far from it.
        of = counts[labels]
        further = (of / (of - 1).clamp(min=1)) ** 2
        every = torch.arange(len(labels))
        squares[every, labels] *= further
        scale = best_scale(squares[of > 1], labels[of > 1])
        self.means.copy_(means)
        self.scale.fill_(scale)
        return alone_unknown((-scale * squares).float(), labels, self.sizes.classes)


def best_scale(squares: torch.Tensor, labels: torch.Tensor) -> float:
    """The factor by which the softmax of less squared distances, float64 (n, classes), has the
    least log loss; 1 where there is nothing to tell.

    The targets are those of Platt (1999), as of a calibrated head: images that are all answered
    correctly would ask for a certainty without end.
    """
    from scipy.optimize import minimize_scalar

    count, classes = squares.shape
    typical = float(squares.mean()) if count else 0.0
    if not typical > 0:
        return 1.0
    wrong = 1 / (count + 2)
    targets = torch.full_like(squares, wrong / max(1, classes - 1))
    targets[torch.arange(count), labels] = 1 - wrong

    def loss(exponent: float) -> float:
        return float(F.cross_entropy(-(10**exponent) / typical * squares, targets))

    found = minimize_scalar(loss, bounds=(-2, 5), method="bounded", options={"xatol": 1e-4})
    return float(10**found.x / typical)


def alone_unknown(logits: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """``logits`` with NaN for images that are alone in their class."""
    counts = torch.bincount(labels, minlength=classes)
    logits[counts[labels] < 2] = torch.nan
    return logits


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
