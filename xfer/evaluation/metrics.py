"""Scores of a whole split at once, computed in float64 without torch."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from xfer.core.types import Score
from xfer.evaluation.metric_names import FEW, RANKED, names
from xfer.evaluation.statistics import wilson

Floats: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = npt.NDArray[np.int64]

_BINS = 15


def values(logits: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float]:
    """Every metric of ``logits`` (n, classes) against ``labels`` (n,), without prefix.

    Accuracy counts images. F1 is the mean over the classes that occur, as truth or as answer; AUROC
    the mean over all classes, NaN where one of them has no or only images, and left out above 1,000
    classes. The calibration error has 15 bins (Guo et al., 2017). Of equal logits the first class
    is the answer, and the first five are the top five. A value that logits of NaN would make up is
    NaN.
    """
    z, truth = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    classes = z.shape[1]
    if not np.isfinite(z).all():
        return {name.removeprefix("val_"): math.nan for name in names(classes)[:-1]}
    chosen = z.argmax(axis=1)
    largest, total = _sums(z)
    result = {
        "loss": np.mean(largest - z[np.arange(len(z)), truth] + np.log(total)),
        "acc": np.mean(chosen == truth),
        "macro_f1": _macro_f1(truth, chosen, classes),
        **({"auroc": _auroc(z, truth)} if classes <= RANKED else {}),
        "ece": _calibration_error(1 / total, chosen == truth),
    }
    if classes > 5:
        result["top5"] = _top(5, z, truth)
    return {name: float(value) for name, value in result.items()}


def _sums(z: Floats) -> tuple[Floats, Floats]:
    """The largest logit of each image, and the sum of all exponentials over that one's."""
    largest = z.max(axis=1)
    return largest, np.exp(z - largest[:, None]).sum(axis=1)


def _macro_f1(truth: Labels, chosen: Labels, classes: int) -> float:
    counts = np.bincount(truth, minlength=classes) + np.bincount(chosen, minlength=classes)
    right = np.bincount(truth[truth == chosen], minlength=classes)
    occur = counts > 0
    return float(np.mean(2 * right[occur] / counts[occur]))


def _auroc(z: Floats, truth: Labels) -> float:
    """How often an image of a class is ranked above one of another; equal ranks count half.

    The rank is the class's log-odds, ``z_c - log(sum of the others' exponentials)``: a softmax of
    certain answers is 1 for many images, which it can no longer tell apart.
    """
    counts = np.bincount(truth, minlength=z.shape[1])
    if (counts == 0).any() or (counts == len(truth)).any():
        return math.nan  # undefined for a class without, or with only, positive images
    # Summed in order of size: images with the same logits in other places are equals.
    ordered = np.sort(z, axis=1)
    largest, total = _sums(ordered)
    second, rest = _sums(ordered[:, :-1])
    # Of the largest apart: what is left of the total without it may be lost in rounding.
    certain = (largest - second) - np.log(rest)
    areas = []
    for c in range(z.shape[1]):
        below = z[:, c] - largest
        unsure = below - np.log(np.maximum(total - np.exp(below), 1))
        areas.append(_area(np.where(below == 0, certain, unsure), truth == c))
    return float(np.mean(areas))


def _area(ranks: Floats, positive: npt.NDArray[np.bool_]) -> float:
    above, others = np.sort(ranks[positive]), ranks[~positive]
    # Twice the number of positive images below each of the others, equal ones counted half.
    below = above.searchsorted(others, "left") + above.searchsorted(others, "right")
    return 1 - float(below.sum()) / (2 * len(above) * len(others))


def _calibration_error(confidence: Floats, right: npt.NDArray[np.bool_]) -> float:
    """The mean gap of accuracy and confidence in equal bins, each closed on the left, the last one
    on both sides."""
    edges = np.linspace(0, 1, _BINS + 1)
    bins = edges[1:-1].searchsorted(confidence, "right")
    gaps = np.bincount(bins, weights=right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _top(k: int, z: Floats, truth: Labels) -> float:
    own = z[np.arange(len(z)), truth][:, None]
    before = np.arange(z.shape[1]) < truth[:, None]
    ahead = (z > own) | ((z == own) & before)
    return float(np.mean(ahead.sum(axis=1) < k))


def score(
    logits: npt.ArrayLike, labels: npt.ArrayLike, classes: tuple[str, ...], used_for_selection: bool
) -> Score:
    """The full score of one split."""
    count = len(classes)
    found = values(logits, labels)
    truth, predicted = np.asarray(labels, np.int64), np.asarray(logits).argmax(axis=1)
    right = int((truth == predicted).sum())
    auroc = found.get("auroc", math.nan)
    return Score(
        n=len(truth),
        acc=right / len(truth),
        acc_ci95=wilson(right, len(truth)),
        loss=found["loss"],
        macro_f1=found["macro_f1"],
        auroc=None if math.isnan(auroc) else auroc,
        ece=found["ece"],
        top5=found.get("top5"),
        confusion=confusion(truth, predicted, count).tolist() if count <= FEW else None,
        per_class=_per_class(truth, predicted, classes),
        used_for_selection=used_for_selection,
    )


def confusion(truth: Labels, predicted: Labels, count: int) -> Labels:
    """Images by true class (row) and predicted class (column), int64 (count, count)."""
    counts = np.bincount(truth * count + predicted, minlength=count**2).reshape(count, count)
    return counts.astype(np.int64)


def _per_class(
    truth: Labels, chosen: Labels, classes: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    count = len(classes)
    of = (truth[truth == chosen], truth, chosen)
    totals = (np.bincount(labels, minlength=count).tolist() for labels in of)
    rows = {}
    for name, right, n, predicted in zip(classes, *totals, strict=True):
        rows[name] = {
            "n": n,
            "precision": right / predicted if predicted else 0.0,
            "recall": right / n if n else 0.0,
            "f1": 2 * right / (n + predicted) if n + predicted else 0.0,
        }
    return rows
