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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True)
class Coordinates:
    """Standardised features along their principal axes, float64 (n, r) a block at a time.

    ``squares`` float64 (r,) is the sum of squares along each axis; ``whole`` the coordinates of all
    images where there are fewer of them than features, else they are turned anew for each block.
    """

    features: Matrix
    mean: Floats
    std: Floats
    axes: Floats
    squares: Floats
    whole: Floats | None

    def of(self, rows: Any) -> Floats:
        """The coordinates of some images, float64 (m, r)."""
        if self.whole is not None:
            return np.asarray(self.whole[rows])
        z = (np.asarray(self.features[rows], np.float64) - self.mean) / self.std
        return np.asarray(z @ self.axes)

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Which images, and their coordinates."""
        for part in blocks(*self.features.shape):
            yield part, self.of(part)


def blocks(count: int, width: int) -> Iterator[slice]:
    """The rows of a matrix (count, width) in parts of at most ``BLOCK`` numbers."""
    size = max(1, BLOCK // max(1, width))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def coordinates(features: Matrix) -> Coordinates:
    """Turn features (n, d) to the principal axes of their standardised values.

    A feature that is constant counts for nothing; where all of them are, r is 0.
    """
    count, width = features.shape
    parts = list(blocks(count, width))
    mean = sum((np.asarray(features[p], np.float64).sum(axis=0) for p in parts), np.zeros(width))
    mean = mean / max(1, count)
    square = np.zeros(width)
    for part in parts:
        square += ((np.asarray(features[part], np.float64) - mean) ** 2).sum(axis=0)
    std = np.sqrt(square / max(1, count))
    constant = std <= _CONSTANT * np.abs(mean)
    std = np.where(constant, np.inf, std)  # so that it comes to nothing
    if count <= width:
        z = (np.asarray(features, np.float64) - mean) / std
        squares, vectors = np.linalg.eigh(z @ z.T)
    else:
        gram = np.zeros((width, width))
        for part in parts:
            z = (np.asarray(features[part], np.float64) - mean) / std
            gram += z.T @ z
        squares, vectors = np.linalg.eigh(gram)
    varies = squares > max(float(squares.max(initial=0)), 0.0) * _FLAT
    squares, vectors = squares[varies][::-1], vectors[:, varies][:, ::-1]
    whole = vectors * np.sqrt(squares) if count <= width else None
    axes = np.empty((width, 0)) if whole is not None else vectors
    return Coordinates(features, mean, std, axes, squares, whole)


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
        moved = self.moved(images, lambda answers: answers.argmax(axis=1))
        return [int(others.sum()) for others in moved]

    def moved(
        self, images: Sequence[int], said: Callable[[Floats], npt.NDArray[Any]]
    ) -> Iterator[npt.NDArray[np.bool_]]:
        """For each of some images: whether what is ``said`` of the answers to another image,
        (n, ...), is otherwise without it, bool (n, ...)."""
        before = said(self.answers)
        for image, shares in zip(images, self._shares(images).T, strict=True):
            moved = said(self.answers - np.outer(shares, self.apart[image])) != before
            moved[image] = False
            yield moved


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
    answers, apart, effect = np.empty((count, classes)), np.empty((count, classes)), np.empty(count)
    for part, z in at.blocks():
        target = _targets(labels[part], classes)
        answers[part], away = _apart(at, z, sums, share, best, target)
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
    for part, z in at.blocks():
        target = _targets(labels[part], classes)
        for i, strength in enumerate(strengths):
            away = _apart(at, z, sums, share, strength, target)[1]
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
    at: Coordinates, z: Floats, sums: Floats, share: Floats, strength: float, target: Floats
) -> tuple[Floats, Floats]:
    """The answers to a block of images, and how far the targets are from the answers of the fits
    that had not seen them; ``share`` is that of every class, (classes,)."""
    shrink = 1 / (at.squares + strength)
    answers = z @ (sums * shrink[:, None]) + share
    leverage = 1 / len(at.features) + z**2 @ shrink
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
