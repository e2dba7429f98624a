"""What a network's probabilities are worth: how often it is right when it is so sure, and how
precision falls as more images of a class are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xfer.evaluation.metrics import RANKED, Floats, by_image, sums

if TYPE_CHECKING:
    from xfer.core.types import Predictions

BINS = 15
"""As in the calibration error of ``result.json``."""
POINTS = 80
"""Of a curve as many are kept as a small chart can show: one has a point an image."""


@dataclass(frozen=True)
class Bin:
    """The images with a confidence from ``low`` to ``high``: how many, how many of them ``right``,
    and the mean of their ``confidence``."""

    low: float
    high: float
    n: int
    right: int
    confidence: float


def bins(confidence: npt.ArrayLike, right: npt.ArrayLike) -> list[Bin]:
    """The images in :data:`BINS` bins of equal width, the empty ones too."""
    sure, hits = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    edges = np.linspace(0, 1, BINS + 1)
    place = edges[1:-1].searchsorted(sure, "right")
    n = np.bincount(place, minlength=BINS)
    ok, total = (np.bincount(place, weights=w, minlength=BINS) for w in (hits, sure))
    return [
        Bin(
            float(edges[i]),
            float(edges[i + 1]),
            int(n[i]),
            round(ok[i]),
            float(total[i] / (n[i] or 1)),
        )
        for i in range(BINS)
    ]


@dataclass(frozen=True)
class RecallCurve:
    """Precision over recall of one class, from (0, 1) to its end at no more than twice
    :data:`POINTS` places, and the ``area`` below the whole of it: the average precision. ``n`` are
    the images of the class."""

    name: str
    n: int
    recall: Floats
    precision: Floats
    area: float


def recall_curves(answers: Predictions) -> list[RecallCurve]:
    """The curve of every class that has images, each class against all others; images of equal
    probability count together. None above so many classes as have no AUROC either."""
    if answers.labels is None or len(answers.classes) > RANKED:
        return []
    # Summed in order of size: equal answers stay equal in other places.
    peak, total = by_image(lambda z: sums(np.sort(z.astype(np.float64), axis=1)), answers.logits)
    curves = []
    for i, name in enumerate(answers.classes):
        positive = answers.labels == i
        if positive.any():
            share = np.exp(answers.logits[:, i] - peak) / total
            curves.append(_curve(name, share, positive))
    return curves


def label_curves(answers: Predictions) -> list[RecallCurve]:
    """The same with several labels an image, of the known ones of every class that some have."""
    if answers.labels is None or len(answers.classes) > RANKED:
        return []
    curves = []
    for i, name in enumerate(answers.classes):
        known = answers.labels[:, i] >= 0
        positive = answers.labels[known, i] == 1
        if positive.any():
            curves.append(_curve(name, answers.logits[known, i].astype(np.float64), positive))
    return curves


def _curve(name: str, share: Floats, positive: npt.NDArray[np.bool_]) -> RecallCurve:
    order = np.argsort(-share, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(share[order])), len(order) - 1)
    precision = np.append(1.0, hits[last] / (last + 1))
    recall = np.append(0.0, hits[last] / hits[-1])
    area = float((np.diff(recall) * precision[1:]).sum())
    every = max(1, len(recall) // POINTS)
    kept = np.unique(np.append(np.arange(0, len(recall), every), len(recall) - 1))
    return RecallCurve(name, int(positive.sum()), recall[kept], precision[kept], area)
