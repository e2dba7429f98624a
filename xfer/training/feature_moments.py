"""Features of many images in blocks, and their mean and deviation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[Any]

_CONSTANT = 1e-6  # of the largest mean: a feature that varies less is constant
_BLOCK = 1 << 22  # numbers that are worked on at a time


def moments(views: Sequence[Matrix]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each feature over all views: float64 (d,).

    The deviation of a feature that is constant counts as 1, so that it comes to nothing.
    """
    count, width = sum(len(view) for view in views), views[0].shape[1]
    places = [(view, part) for view in views for part in blocks(view)]
    mean, square = np.zeros(width), np.zeros(width)
    for view, part in places:
        mean += np.asarray(view[part], np.float64).sum(axis=0)
    mean /= count
    for view, part in places:
        square += ((np.asarray(view[part], np.float64) - mean) ** 2).sum(axis=0)
    std = np.sqrt(square / count)
    constant = std <= _CONSTANT * np.abs(mean)
    return mean, np.where(constant | (std == 0), 1.0, std)


def blocks(view: Matrix, count: int | None = None) -> Iterator[slice]:
    """The rows of ``view``, or the first ``count``, in parts that are worked on at a time."""
    rows = len(view) if count is None else count
    size = max(1, _BLOCK // max(1, view.shape[1]))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
