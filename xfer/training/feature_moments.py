"""Features of many images in blocks, and their mean and deviation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_CONSTANT = 1e-6  # of the largest mean: a feature that varies less is constant
_MORE = 10
_BLOCK = 1 << 22  # numbers that are worked on at a time


def moments(views: Sequence[Matrix]) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each feature over all views, the latter moderated: float64
    (d,). See :func:`deviations`."""
    count, width = sum(len(view) for view in views), views[0].shape[1]
    places = [(view, part) for view in views for part in blocks(view)]
    mean, square = np.zeros(width), np.zeros(width)
    for view, part in places:
        mean += np.asarray(view[part], np.float64).sum(axis=0)
    mean /= count
    for view, part in places:
        square += _squares(view[part], mean)
    return mean, deviations(mean, square / count, len(views[0]))


def _squares(block: Matrix, mean: Floats) -> Floats:
    apart: Floats = np.subtract(block, mean, dtype=np.float64)
    apart *= apart  # a copy less than a power would be
    return np.asarray(apart.sum(axis=0))


def deviations(mean: Floats, variance: Floats, images: int) -> Floats:
    """Standard deviations by which features with these moments in so many ``images``, float64 (d,),
    are standardised.

    Variances are moderated (Smyth, 2004): each is that of the images and of :data:`_MORE` further
    ones, which vary as much as the features do on average. Else a feature of which one of few
    images has a trace puts a new image, which has more of it, thousands of deviations away. The
    deviation of a feature that is constant counts as 1, so that it comes to nothing.
    """
    std = np.sqrt(variance)
    varies = (std > _CONSTANT * np.abs(mean)) & (std > 0)
    if varies.any():
        # The mean of deviations: neither many that hardly vary nor one that is huge decides it.
        usual = std[varies].mean() ** 2
        std = np.sqrt((images * variance + _MORE * usual) / (images + _MORE))
    return np.where(varies, std, 1.0)


def blocks(view: Matrix, count: int | None = None) -> Iterator[slice]:
    """The rows of ``view``, or the first ``count``, in parts that are worked on at a time."""
    rows = len(view) if count is None else count
    size = max(1, _BLOCK // max(1, view.shape[1]))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
