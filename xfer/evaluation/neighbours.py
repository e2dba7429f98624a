"""Which images are alike by their features: nearest neighbours, near-duplicates, outliers.

Features are standardised and turned to their principal axes, and two images are as alike as the
cosine between them. All is done in tiles, so that memory does not grow with the square of the
number of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xfer.core.long_array import zeros

if TYPE_CHECKING:
    from xfer.evaluation.leave_one_out import Coordinates

    Vectors = npt.NDArray[np.float32]
    Indices = npt.NDArray[np.int64]

AXES = 256
"""Principal axes that are compared along, at most."""
TILE = 2048
"""Images that are compared with as many others at a time: 16 MiB of cosines."""

CROWD = 5
"""The neighbour whose distance says how crowded it is about an image."""
_NEAR, _FAR = 7.0, 3.5
_LEAST, _FEWEST = 0.8, 3
_SAME = 1e-6  # a distance that rounding alone makes


@dataclass(frozen=True)
class Nearest:
    """The images most like each: ``which`` int64 (n, k) and their ``cosines`` float32 (n, k), the
    nearest first; ``away`` float32 (n,) is the distance to the ``CROWD``-th nearest."""

    which: Indices
    cosines: Vectors
    away: Vectors


def directions(at: Coordinates) -> tuple[Vectors, Vectors]:
    """The direction of each image from the mean of all, float32 (n, r) of length 1, and how far it
    is, (n,). The direction of one that is the mean is 0."""
    width = min(AXES, len(at.squares))
    count = len(at.features)
    vectors, lengths = zeros((count, width), np.float32), np.empty(count, np.float32)
    for part, z in at.blocks():
        turned = z[:, :width].astype(np.float32)
        lengths[part] = away = np.linalg.norm(turned, axis=1)
        vectors[part] = turned / np.where(away > 0, away, 1)[:, None]
    return vectors, lengths


def nearest(
    vectors: Vectors, lengths: Vectors, count: int, groups: Indices | None = None
) -> Nearest:
    """The ``count`` images that are most like each, as many as there are; of other ``groups``,
    int64 (n,), than its own where there are several."""
    n = len(vectors)
    if groups is None or len(np.unique(groups)) < 2:
        groups = np.arange(n)
    others = n - int(np.bincount(groups).max())
    count, crowd = min(count, others), min(CROWD, others)
    which, cosines = np.empty((n, count), np.int64), np.empty((n, count), np.float32)
    away = np.empty(n, np.float32)
    for start in range(0, n, TILE):
        rows = slice(start, min(start + TILE, n))
        best = np.empty((rows.stop - start, 0), np.float32)
        names = np.empty((rows.stop - start, 0), np.int64)
        near = np.empty((rows.stop - start, 0), np.float32)
        for left in range(0, n, TILE):
            columns = slice(left, min(left + TILE, n))
            tile = vectors[rows] @ vectors[columns].T
            apart = lengths[rows, None] ** 2 + lengths[columns] ** 2
            apart -= 2 * lengths[rows, None] * lengths[columns] * tile
            same = groups[rows, None] == groups[columns]  # no image is a neighbour of itself
            tile[same], apart[same] = -2, np.inf
            values, numbers = _most(tile, count)
            best, names = np.hstack([best, values]), np.hstack([names, numbers + left])
            chosen = _most(best, count)[1]
            best, names = np.take_along_axis(best, chosen, 1), np.take_along_axis(names, chosen, 1)
            near = _most(np.hstack([near, _most(-apart, crowd)[0]]), crowd)[0]
        order = np.argsort(-best, axis=1, kind="stable")
        which[rows] = np.take_along_axis(names, order, 1)
        cosines[rows] = np.take_along_axis(best, order, 1)
        away[rows] = np.sqrt(np.maximum(-near.min(axis=1, initial=0), 0))
    return Nearest(which, cosines, away)


def _most(values: Vectors, count: int) -> tuple[Vectors, Indices]:
    """The ``count`` largest of each row, as many as there are, in any order, and their columns."""
    width = values.shape[1]
    if width <= count:
        return values, np.broadcast_to(np.arange(width), values.shape)
    first = width - count
    columns = np.argpartition(values, min(first, width - 1), axis=1)[:, first:]
    return np.take_along_axis(values, columns, 1), columns


def nearest_among(vectors: Vectors, image: int, others: Indices, count: int) -> list[int]:
    """Those of ``others`` that are most like ``image``, which is not among them itself."""
    others = others[others != image]
    cosines = vectors[others] @ vectors[image]
    return [int(others[i]) for i in np.argsort(-cosines, kind="stable")[:count]]


def pairs(likest: Nearest, least: float) -> list[tuple[int, int, float]]:
    """(i, j, cosine) with i < j where two images are at least so alike, the most alike first."""
    rows, columns = np.nonzero(likest.cosines >= least)
    alike = {}
    for i, k in zip(rows.tolist(), columns.tolist(), strict=True):
        j = int(likest.which[i, k])
        alike[min(i, j), max(i, j)] = float(likest.cosines[i, k])
    return sorted(((i, j, c) for (i, j), c in alike.items()), key=lambda row: (-row[2], row[:2]))


def alike_from(likest: Nearest) -> float:
    """The cosine from which on two images of these count as nearly the same.

    Far above what images have in common that are no copies: 1 less the cosine of the ``CROWD``-th
    nearest, which copies do not change, below its median by seven robust deviations on a
    logarithmic scale; but never under a cosine of 0.8, which unrelated photographs hardly reach
    (bench/audit.py).
    """
    middle, spread = _typical(np.log(np.maximum(1 - _crowd(likest), _SAME)))
    return max(_LEAST, 1 - math.exp(middle - _NEAR * spread))


def outliers(likest: Nearest) -> Indices:
    """Images that are unlike all others, int64 (m,), by how like their ``CROWD``-th nearest is: one
    that has a copy is not hidden by it.

    They are the hundredth part, three at least, with the lowest cosine to it, which is a ranking
    and no verdict; and those whose distance to it is over the median by more than 3.5 robust
    deviations on a logarithmic scale.
    """
    count = len(likest.away)
    if likest.cosines.shape[1] < CROWD:
        return np.empty(0, np.int64)
    lowest = np.argsort(_crowd(likest), kind="stable")[: max(_FEWEST, count // 100)]
    away = np.log(np.maximum(likest.away.astype(np.float64), _SAME))
    middle, spread = _typical(away)
    far = np.flatnonzero(away > middle + _FAR * spread)
    far = far[np.argsort(-away[far], kind="stable")]
    return np.array(list(dict.fromkeys([*far.tolist(), *lowest.tolist()])), np.int64)


def _crowd(likest: Nearest) -> npt.NDArray[np.float64]:
    """The cosine of each image with its ``CROWD``-th nearest, or the last there is, (n,)."""
    return likest.cosines[:, min(CROWD, likest.cosines.shape[1]) - 1].astype(np.float64)


def _typical(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The median, and the deviation from it by the median of absolute ones."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))  # as of a normal distribution
