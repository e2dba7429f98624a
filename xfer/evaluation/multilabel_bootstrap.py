"""Two networks on the same images with several labels: the difference of their mean average
precision, and how much of it is chance. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xfer.core.seeds import derive
from xfer.evaluation.metrics import Floats, Labels
from xfer.evaluation.multilabel_metrics import label_values

_WORK = 2_000_000_000
"""Numbers that are added up, at most: more images and classes are drawn fewer times."""
_MOST, _FEWEST = 1000, 200
_BLOCK = 4_000_000


@dataclass(frozen=True)
class MapGap:
    """How much higher the mean average precision of the one is than that of the other, its 95 %
    interval, and how often images were ``drawn`` for that."""

    gap: float
    low: float
    high: float
    drawn: int


def map_gap(labels: Labels, one: Floats, other: Floats) -> MapGap | None:
    """The difference for ``labels`` int64 (n, classes) of 1, 0 and -1 for unknown, and the logits
    or probabilities (n, classes) of the two; ``None`` where mAP is not defined.

    The interval is that of the percentiles of a paired bootstrap (B. Efron and R. Tibshirani, "An
    introduction to the bootstrap", 1993): images are drawn with replacement, the same for both, and
    the average precision of each class is computed on them. A class that a draw leaves without an
    image that has it, or without one that has it not, is left out of that draw's mean, as mAP has
    it.
    """
    first, second = (label_values(answers, labels)["map"] for answers in (one, other))
    if not np.isfinite([first, second]).all():
        return None
    n, classes = labels.shape
    count = int(np.clip(_WORK // (2 * n * classes), _FEWEST, _MOST))
    drawn = np.random.default_rng(derive("bootstrap", n))
    gaps: list[Floats] = []
    size = max(1, _BLOCK // n)
    for start in range(0, count, size):
        many = min(size, count - start)
        weights = drawn.multinomial(n, np.full(n, 1 / n), size=many).astype(np.float64)
        ours, theirs = (mean_ap(weights, answers, labels) for answers in (one, other))
        gaps.append(ours - theirs)
    low, high = np.nanpercentile(np.concatenate(gaps), [2.5, 97.5]).tolist()
    return MapGap(first - second, low, high, count)


def mean_ap(weights: Floats, answers: Floats, labels: Labels) -> Floats:
    """The mean average precision where image i counts ``weights`` (draws, n) times, a draw; NaN of
    none. Each average precision is scikit-learn's with that ``sample_weight``."""
    total, defined = np.zeros(len(weights)), np.zeros(len(weights))
    for c in range(labels.shape[1]):
        known = labels[:, c] >= 0
        areas = weighted_ap(weights[:, known], answers[known, c], labels[known, c] == 1)
        there = np.isfinite(areas)
        total += np.where(there, areas, 0)
        defined += there
    with np.errstate(invalid="ignore"):
        return np.asarray(total / defined)


def weighted_ap(weights: Floats, answers: Floats, had: npt.NDArray[np.bool_]) -> Floats:
    """The average precision of one class of which all is known, where image i counts ``weights``
    (draws, n) times, a draw; NaN where it is not defined."""
    if not len(answers):
        return np.full(len(weights), np.nan)
    order = np.argsort(-answers, kind="stable")
    last = np.append(np.flatnonzero(np.diff(answers[order])), len(order) - 1)
    ranked, yes = weights[:, order], had[order]
    hits, every = np.cumsum(ranked * yes, axis=1)[:, last], np.cumsum(ranked, axis=1)[:, last]
    steps = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(every > 0, hits / every, 0)
        areas = (steps * precision).sum(axis=1) / hits[:, -1]
    return np.where((hits[:, -1] > 0) & (hits[:, -1] < every[:, -1]), areas, np.nan)
