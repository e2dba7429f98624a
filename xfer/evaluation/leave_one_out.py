"""What each image does to the answers: a ridge regression without it, for every image in turn.

The regression is a linear head with squared loss: one output a class, its target 1 for a class that
an image has and 0 for the others, a squared penalty on the weights and none on the bias. Its
answers without an image follow from those with it by one division (Allen, 1974; Cook and Weisberg,
1982, chapter 2), so that n fits cost as much as one; without a whole group from a system of as many
equations as the group has images, or directions. Features are standardised once, with all images in
it, and the penalty is chosen once, by the least squared error of the images left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[Any]
    Floats = npt.NDArray[np.float64]

PENALTIES = tuple(10 ** (2 - i / 2) for i in range(13))
"""Those that are tried, each times the number of images."""
BLOCK = 1 << 22
"""Numbers that are worked on at a time (32 MiB in double precision)."""
_CONSTANT = 1e-6  # of the mean: a feature that varies less is constant
_FLAT = 1e-12  # of the largest spread: along an axis below it nothing varies
_BESIDE = 0.5
"""What a column of those that share a deviation weighs on the mean, of what another does."""


@dataclass(frozen=True)
class Coordinates:
    """Standardised features along their principal axes, float64 (n, r) a block at a time.

    ``squares`` float64 (r,) is the sum of squares along each axis; ``whole`` the coordinates of all
    images where there are fewer of them than features, or they are one block; else they are turned
    anew for each block. ``shared`` is how many of the last columns share one deviation.
    """

    features: Matrix
    mean: Floats
    std: Floats
    axes: Floats
    squares: Floats
    whole: Floats | None
    shared: int = 0

    def of(self, rows: Any) -> Floats:
        """The coordinates of some images, float64 (m, r)."""
        if self.whole is not None:
            return np.asarray(self.whole[rows])
        return np.asarray(_standard(self.features[rows], self.mean, self.std) @ self.axes)

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Which images, and their coordinates."""
        for part in blocks(*self.features.shape):
            yield part, self.of(part)


def blocks(count: int, width: int) -> Iterator[slice]:
    """The rows of a matrix (count, width) in parts of at most ``BLOCK`` numbers."""
    size = max(1, BLOCK // max(1, width))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def coordinates(features: Matrix, shared: int = 0) -> Coordinates:
    """Turn features (n, d) to the principal axes of their standardised values.

    A feature that is constant counts for nothing; where all of them are, r is 0. The last
    ``shared`` have one deviation, so that the more one of them varies the more it counts; they
    weigh half of what as many others do, and at most half of what all others do.
    """
    count, width = features.shape
    mean, std = _moments(features, shared)
    squares, vectors = np.linalg.eigh(_products(features, mean, std))
    varies = squares > max(float(squares.max(initial=0)), 0.0) * _FLAT
    squares, vectors = squares[varies][::-1], vectors[:, varies][:, ::-1]
    if count <= width:
        whole = vectors * np.sqrt(squares)
        return Coordinates(features, mean, std, np.empty((width, 0)), squares, whole, shared)
    turned = Coordinates(features, mean, std, vectors, squares, None, shared)
    parts = list(blocks(count, width))
    return replace(turned, whole=turned.of(parts[0])) if len(parts) == 1 else turned


def _moments(features: Matrix, shared: int = 0) -> tuple[Floats, Floats]:
    """Mean of each feature and what it is divided by, float64 (d,): its standard deviation, or of
    the last ``shared`` one for all; infinite where a feature is constant, so that it comes to
    nothing."""
    count, width = features.shape
    parts = list(blocks(count, width))
    mean = sum((np.asarray(features[p], np.float64).sum(axis=0) for p in parts), np.zeros(width))
    mean = mean / max(1, count)
    square = np.zeros(width)
    for part in parts:
        square += ((np.asarray(features[part], np.float64) - mean) ** 2).sum(axis=0)
    std = np.sqrt(square / max(1, count))
    divisor = np.where(std <= _CONSTANT * np.abs(mean), np.inf, std)
    if shared:
        weight = _BESIDE * min(shared, int(np.isfinite(divisor[:-shared]).sum()))
        total = float((std[-shared:] ** 2).sum())
        divisor[-shared:] = (total / weight) ** 0.5 if total and weight else np.inf
    return mean, divisor


def _standard(rows: Matrix, mean: Floats, std: Floats) -> Floats:
    return np.asarray((np.asarray(rows, np.float64) - mean) / std)


def _products(features: Matrix, mean: Floats, std: Floats) -> Floats:
    """The products of standardised features: of each image with each, (n, n), or, where there are
    fewer of these, of each feature with each, (d, d)."""
    count, width = features.shape
    if count <= width:
        z = _standard(features, mean, std)
        return np.asarray(z @ z.T)
    gram = np.zeros((width, width))
    for part in blocks(count, width):
        z = _standard(features[part], mean, std)
        gram += z.T @ z
    return gram


@dataclass(frozen=True)
class LeftOut:
    """The regression on all images, and what it would be without each.

    ``answers`` float64 (n, classes) are those of the fit on all images; ``apart`` float64
    (n, classes) how far each image's target is from the answer of the fit without it, and
    ``unseen`` from that of the fit without its group, the same where nothing is grouped; ``effect``
    float64 (n,) the root mean square, over all images, of how far their answers move when it is
    left out; ``penalty`` the strength that was chosen.
    """

    at: Coordinates
    penalty: float
    answers: Floats
    apart: Floats
    unseen: Floats
    effect: Floats

    def held_out(self, labels: npt.NDArray[np.int64]) -> Floats:
        """The answer to each image of the fit without it and its group, float64 (n, classes), for
        the ``labels`` that were fitted."""
        held = -self.unseen
        if labels.ndim == 2:
            held += labels
        else:
            held[np.arange(len(labels)), labels] += 1
        return held

    def without(self, image: int) -> Floats:
        """The answers to all images of the fit without one of them, float64 (n, classes)."""
        return np.asarray(self.answers - np.outer(self._shares([image]), self.apart[image]))

    def _shares(self, images: Sequence[int]) -> Floats:
        """What the target of each of some images has in the answer to each image, (n, images)."""
        weights = self.at.of(list(images)) / (self.at.squares + self.penalty)
        parts = [z @ weights.T for _, z in self.at.blocks()]
        return np.asarray(np.concatenate(parts) + 1 / len(self.answers))

    @property
    def effects(self) -> Floats:
        """The same as ``effect`` in the answers for each class, float64 (n, classes)."""
        norm = np.sqrt((self.apart**2).sum(axis=1, keepdims=True))
        return np.asarray(self.effect[:, None] * np.abs(self.apart) / np.where(norm, norm, 1.0))

    def changed(self, images: Sequence[int]) -> list[int]:
        """For each of some images: how many others are given another class without it."""
        without = _Without(self.answers, self._shares(images), self.apart[list(images)])
        moved = without.moved(images, lambda answers: answers.argmax(axis=1))
        return [int(others.sum()) for others in moved]


class _Without(NamedTuple):
    """The answers to all images, float64 (n, classes), and of some images what the target of each
    has in them, (n, images), and how far it is from the answer of the fit without it,
    (images, classes)."""

    answers: Floats
    shares: Floats
    apart: Floats

    def moved(
        self, images: Sequence[int], said: Callable[[Floats], npt.NDArray[Any]]
    ) -> Iterator[npt.NDArray[np.bool_]]:
        """For each of the images: whether what is ``said`` of the answers to another image,
        (n, ...), is otherwise without it, bool (n, ...)."""
        before = said(self.answers)
        for image, shares, apart in zip(images, self.shares.T, self.apart, strict=True):
            moved = said(self.answers - np.outer(shares, apart)) != before
            moved[image] = False
            yield moved


def without_some(
    features: Matrix,
    labels: npt.NDArray[np.int64],
    penalty: float,
    images: Sequence[int],
    shared: int = 0,
) -> _Without:
    """The regression whose ``penalty`` has been chosen, on ``features`` (n, d), of which the last
    ``shared`` are as those of :func:`coordinates`, and ``labels`` (n, classes) of 1 and 0, and what
    some of the images do to it: one system of equations, where :func:`leave_one_out` of all images
    takes a decomposition."""
    (count, width), (mean, std) = features.shape, _moments(features, shared)
    share, one = labels.mean(axis=0), (list(images), np.arange(len(images)))
    picked = np.zeros((count, len(images)))
    picked[one] = 1
    right = np.column_stack([labels - share, picked])
    products, parts = _products(features, mean, std), list(blocks(count, width))
    if count <= width:
        fitted = products @ np.linalg.solve(products + penalty * np.eye(count), right)
    else:
        each = (_standard(features[part], mean, std).T @ right[part] for part in parts)
        weights = np.linalg.solve(products + penalty * np.eye(width), sum(each))
        fitted = np.concatenate([_standard(features[part], mean, std) @ weights for part in parts])
    answers, shares = fitted[:, : len(share)] + share, fitted[:, len(share) :] + 1 / count
    apart = (labels - answers)[one[0]] / (1 - shares[one])[:, None]
    return _Without(answers, shares, apart)


def leave_one_out(
    at: Coordinates,
    labels: npt.NDArray[np.int64],
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    groups: npt.NDArray[np.int64] | None = None,
) -> LeftOut:
    """Fit the regression and leave every image out in turn, exactly, and every one of ``groups``,
    int64 (n,), where there are some: images of one may be copies of each other.

    ``labels`` int64 (n,), or (n, classes) of 1 and 0 where an image has several; ``penalties`` are
    times n. Equal to as many fits but for rounding. Takes memory for blocks, for the features of
    the largest group, and for (n, classes) numbers.
    """
    count = len(labels)
    members = [] if groups is None else _several(groups)
    counted = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)
    share = counted / count
    sums = np.zeros((len(at.squares), classes))
    for part, z in at.blocks():
        sums += z.T @ (_targets(labels[part], classes) - share)
    strengths = [count * penalty for penalty in penalties]
    losses = _losses(at, labels, sums, share, strengths, members)
    best = strengths[int(losses.argmin())]
    shrink = 1 / (at.squares + best)
    answers, apart, effect = np.empty((count, classes)), np.empty((count, classes)), np.empty(count)
    for part, z in at.blocks():
        target = _targets(labels[part], classes)
        leverage = 1 / count + z**2 @ shrink
        answers[part], away = _apart(z, sums * shrink[:, None], share, target, leverage)
        apart[part] = away
        spread = 1 / count + z**2 @ (at.squares / (at.squares + best) ** 2)
        effect[part] = np.sqrt(spread / count) * np.sqrt((away**2).sum(axis=1))
    unseen = apart.copy() if members else apart
    for rows in members:
        target = _targets(labels[rows], classes)
        unseen[rows] = _unseen(at, at.of(rows), sums, share, best, target)
    return LeftOut(at, best, answers, apart, unseen, effect)


def _losses(
    at: Coordinates,
    labels: npt.NDArray[np.int64],
    sums: Floats,
    share: Floats,
    strengths: Sequence[float],
    members: Sequence[npt.NDArray[np.int64]],
) -> Floats:
    """The squared error of what is left out, (strengths,): ``members`` are the images of each group
    of several, and every other image is one by itself."""
    losses, classes = np.zeros(len(strengths)), len(share)
    alone = np.ones(len(labels), bool)
    for rows in members:
        alone[rows] = False
        z, target = at.of(rows), _targets(labels[rows], classes)
        for i, strength in enumerate(strengths):
            losses[i] += float((_unseen(at, z, sums, share, strength, target) ** 2).sum())
    shrink = 1 / (at.squares[:, None] + strengths)
    for part, z in at.blocks():
        target = _targets(labels[part], classes)
        leverages = 1 / len(labels) + z**2 @ shrink
        for i in range(len(strengths)):
            away = _apart(z, sums * shrink[:, i, None], share, target, leverages[:, i])[1]
            losses[i] += float((away[alone[part]] ** 2).sum())
    return losses


def _several(groups: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """The images of every group that has more than one."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups.min() - 1))
    ends = np.append(starts[1:], len(order))
    more = ends - starts > 1
    pairs = zip(starts[more].tolist(), ends[more].tolist(), strict=True)
    return [order[start:end] for start, end in pairs]


def _targets(labels: npt.NDArray[np.int64], classes: int) -> Floats:
    """What the regression is fitted to, float64 (n, classes)."""
    return np.asarray(labels if labels.ndim == 2 else np.eye(classes)[labels], np.float64)


def _apart(
    z: Floats, weights: Floats, share: Floats, target: Floats, leverage: Floats
) -> tuple[Floats, Floats]:
    """The answers to a block of images, and how far the targets are from the answers of the fits
    that had not seen them; ``share`` is that of every class, (classes,), and ``leverage`` what the
    target of each image has in its own answer, (n,)."""
    answers = z @ weights + share
    return answers, (target - answers) / (1 - leverage)[:, None]


def _unseen(
    at: Coordinates, z: Floats, sums: Floats, share: Floats, strength: float, target: Floats
) -> Floats:
    """How far the targets of a group are from the answers of the fit without the group."""
    shrink, count = 1 / (at.squares + strength), len(z)
    away = target - z @ (sums * shrink[:, None]) - share
    # The part of the hat matrix that is of the group is this matrix times its transpose.
    hat = np.hstack([z * np.sqrt(shrink), np.full((count, 1), len(at.features) ** -0.5)])
    if count <= hat.shape[1]:
        return np.asarray(np.linalg.solve(np.eye(count) - hat @ hat.T, away))
    small = np.eye(hat.shape[1]) - hat.T @ hat  # Woodbury's identity
    return np.asarray(away + hat @ np.linalg.solve(small, hat.T @ away))
