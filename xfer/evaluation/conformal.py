"""Prediction sets of a stated coverage: from which probability on a class is in. numpy only.

Split conformal prediction (Vovk et al., 2005; Papadopoulos et al., 2002) with one minus the
probability of a class as its score, which gives the smallest sets of a coverage (Sadinle et al.,
2019); class by class as Vovk's Mondrian variant (2012). With several labels an image the share of
its labels that a set lacks is bounded on average, by conformal risk control (Angelopoulos et al.,
2022), which is the same where each image has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress

import numpy as np
import numpy.typing as npt

from xfer.core.types import Tta


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
    ``labels`` int64 (n,) their classes; with several labels an image (n, classes) of 1, 0 and -1
    for unknown, where images that have none take no part. Raises ValueError where there are too few
    of them.
    """
    images, labelled = _true(labels)
    true, classes = probabilities[images, labelled], probabilities.shape[1]
    if by_class:
        parts = [true[labelled == label] for label in range(classes)]
        each = [_least(part, np.ones(len(part)), coverage) for part in parts]
    else:
        each = [_least(true, 1 / np.bincount(images)[images], coverage)] * classes
    exact = np.array(each, np.float64)
    rounded = exact.astype(np.float32)
    # Rounded down: what was in a set stays in.
    return np.where(rounded > exact, np.nextafter(rounded, np.float32(0)), rounded)


def having_labels(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which images sets can be held against, bool (n,): those that have a label. A set has all
    labels of an image that has none, whatever is in it, and would promise less of the others."""
    return np.asarray((labels >= 0) if labels.ndim == 1 else (labels == 1).any(axis=1))


def _true(labels: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Images, ascending, and a class that each has: one entry for each label that is known."""
    if labels.ndim == 1:
        return np.arange(len(labels)), labels
    images, classes = np.nonzero(labels == 1)
    return images, classes


def _least(
    true: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], coverage: float
) -> float:
    """The largest probability below which no more of the labels are than may be lost.

    ``true`` are the probabilities of labels that images have, each of which is one of its image's
    ``shares``; these add up to the number n of images. So much of them may be lost that with one
    more image, of which everything is lost, the mean is 1 - ``coverage``.
    """
    n = round(shares.sum())
    most = round(n - (n + 1) * coverage, 9)  # as in rank
    if most < 0:
        raise ValueError(f"{n} images are too few for a coverage of {coverage:g}")
    order = np.argsort(true)
    before = np.round(np.cumsum(shares[order]) - shares[order], 9)
    return float(true[order][np.searchsorted(before, most, side="right") - 1])


def covered(sets: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> float:
    """The share of images whose set has their true class; with several labels an image the mean
    share of their labels, of those that have some."""
    images, classes = _true(labels)
    counts = np.bincount(images)
    inside = np.bincount(images, sets[images, classes])
    return float((inside[counts > 0] / counts[counts > 0]).mean())


def in_words(coverage: float, by_class: bool, several: bool) -> str:
    """What sets of a certificate have: the true class of so many images, for example."""
    share = f"{100 * coverage:g} %"
    if several and by_class:
        return f"each label of {share} of the images that have it"
    if several:
        return f"{share} of an image's labels on average"
    return f"the true class of {share} of images{' of each class' if by_class else ''}"


def one_view_words(tta: Tta) -> str:
    """That answers which are the mean over several views have no certificate."""
    return f"no prediction sets and no p_unlike: they hold for one view, tta is {tta}"


def set_words(row: npt.NDArray[np.bool_], classes: Sequence[str]) -> str:
    """The classes of one set joined by ``|``; a bar or backslash in a name has a backslash before
    it."""
    names = compress(classes, row)
    return "|".join(name.replace("\\", "\\\\").replace("|", "\\|") for name in names)
