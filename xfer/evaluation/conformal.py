"""Prediction sets of a stated coverage: from which probability on a class is in. numpy only.

Split conformal prediction (Vovk et al., 2005; Papadopoulos et al., 2002) with one minus the
probability of a class as its score, which gives the smallest sets of a coverage (Sadinle et al.,
2019); class by class as Vovk's Mondrian variant (2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def rank(n: int, coverage: float) -> int:
    """Which of ``n`` scores, ascending and counted from 1, bounds those of a set:
    ceil((n + 1) * coverage). Above ``n`` there is none."""
    # 0.29 * 100 is a little less than 29 in binary, and 0.07 * 100 a little more than 7.
    return math.ceil(round((n + 1) * coverage, 9))


def largest_coverage(n: int) -> float:
    """The largest coverage in whole hundredths that ``n`` images can certify; 0 for none."""
    return max((share for share in range(1, 100) if rank(n, share / 100) <= n), default=0) / 100


def smallest_n(coverage: float) -> int:
    """The fewest images that can certify ``coverage``."""
    n = max(1, math.floor(coverage / (1 - coverage)) - 1)
    while rank(n, coverage) > n:
        n += 1
    return n


def least_probabilities(
    probabilities: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    coverage: float,
    by_class: bool,
) -> npt.NDArray[np.float32]:
    """From which probability on each class is in a set, float32 (classes,).

    ``probabilities`` float64 (n, classes) are those of images that the network had not seen,
    ``labels`` int64 (n,) their classes. Raises ValueError where there are too few of them.
    """
    true = probabilities[np.arange(len(labels)), labels]
    classes = probabilities.shape[1]
    if by_class:
        each = [_least(true[labels == label], coverage) for label in range(classes)]
    else:
        each = [_least(true, coverage)] * classes
    return _not_above(np.array(each, np.float64))


def _least(true: npt.NDArray[np.float64], coverage: float) -> float:
    """The probability that all but the least sure images give their true class at least."""
    k = rank(len(true), coverage)
    if k > len(true):
        raise ValueError(f"{len(true)} images are too few for a coverage of {coverage:g}")
    return float(np.sort(true)[::-1][k - 1])


def _not_above(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """``values`` in float32, rounded down: what was in a set stays in."""
    rounded = values.astype(np.float32)
    return np.where(rounded > values, np.nextafter(rounded, np.float32(0)), rounded)


def covered(sets: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> float:
    """The share of images whose set has their true class."""
    return float(sets[np.arange(len(labels)), labels].mean())


def set_words(row: npt.NDArray[np.bool_], classes: Sequence[str]) -> str:
    """The classes of one set joined by ``|``; a bar or backslash in a name has a backslash before
    it."""
    names = compress(classes, row)
    return "|".join(name.replace("\\", "\\\\").replace("|", "\\|") for name in names)
