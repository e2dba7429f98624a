"""Scores of answers with several labels an image, in float64 and without torch.

A label that is unknown counts in none of them. ``logits`` are (n, classes), ``labels`` int64
(n, classes) of 1, 0 and -1 for unknown; each class is a yes or no of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xfer.core.probabilities import sigmoid
from xfer.core.types import LabelScore
from xfer.evaluation import metrics
from xfer.evaluation.metrics import Floats, Labels, Metric, Parts
from xfer.evaluation.statistics import wilson

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LabelAnswers:
    """``logits`` and ``labels`` (n, classes), and what is answered: ``said`` bool, from a class's
    threshold on."""

    logits: Floats
    labels: Labels
    said: Bools

    @property
    def truth(self) -> Labels:
        """The labels, as the user's metrics ask for them."""
        return self.labels

    @property
    def known(self) -> Bools:
        """Which labels are known."""
        return np.asarray(self.labels >= 0)

    @property
    def counts(self) -> tuple[Floats, Floats, Floats]:
        """By class: rightly said, said, and had, of the known labels."""
        said, had = self.said & self.known, self.labels == 1
        sums = [part.sum(axis=0).astype(np.float64) for part in (said & had, said, had)]
        return sums[0], sums[1], sums[2]


def average_precisions(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """The average precision of each class, float64 (classes,): the sum over falling thresholds of
    precision times the step in recall, as scikit-learn's ``average_precision_score`` has it. Equal
    answers are one threshold. NaN for a class that no known image has."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    return np.array([_average_precision(z[:, c], y[:, c]) for c in range(z.shape[1])])


def _average_precision(logits: Floats, labels: Labels) -> float:
    known = labels >= 0
    z, had = logits[known], labels[known] == 1
    if not had.any():
        return math.nan
    order = np.argsort(-z, kind="stable")
    hits = np.cumsum(had[order])
    last = np.append(np.flatnonzero(np.diff(z[order])), len(order) - 1)
    precision = hits[last] / (last + 1)
    steps = np.diff(np.append(0, hits[last])) / hits[-1]
    return float((steps * precision).sum())


def best_thresholds(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """The probability a class from which on saying yes has the best F1 on these known labels,
    float64 (classes,): halfway between the two answers on its sides; of equally good ones the
    highest, and 0.5 where no known image has the label.

    The threshold of best F1 is half of that F1 where probabilities are true (Z. C. Lipton et al.,
    Optimal thresholding of classifiers to maximize F1 measure, 2014): 0.5 is too high for a rare
    label.
    """
    p, y = sigmoid(np.asarray(logits, np.float64)), np.asarray(labels, np.int64)
    return np.array([_best_threshold(p[:, c], y[:, c]) for c in range(p.shape[1])])


def _best_threshold(shares: Floats, labels: Labels) -> float:
    known = (labels >= 0) & np.isfinite(shares)
    p, had = shares[known], labels[known] == 1
    if not had.any():
        return 0.5
    order = np.argsort(-p, kind="stable")
    hits, ranked = np.cumsum(had[order]), p[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(order) - 1)
    f1 = 2 * hits[last] / (last + 1 + hits[-1])
    at = last[int(np.argmax(f1))]
    below = ranked[at + 1] if at + 1 < len(ranked) else 0.0
    # With six digits: it is in files that people read, and must say there what it does here.
    middle = round(float(ranked[at] + below) / 2, 6)
    return middle if below < middle <= ranked[at] else float(ranked[at])


_NO_PARTS: Parts = {}


def label_values(
    logits: npt.ArrayLike, labels: npt.ArrayLike, parts: Parts = _NO_PARTS
) -> dict[str, float]:
    """Every metric of ``logits`` against ``labels``, yes from the probability 0.5 on; ``parts`` are
    the user's."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if not np.isfinite(z).all():
        return {metric.name: math.nan for metric in _defined(z.shape[1], parts)}
    return values_of(LabelAnswers(z, y, z >= 0), parts)


def values_of(answers: LabelAnswers, parts: Parts = _NO_PARTS) -> dict[str, float]:
    """Every metric that is defined for so many classes, by name; NaN where these labels do not
    define it."""
    rows = _defined(answers.labels.shape[1], parts)
    return {metric.name: float(metric.compute(answers)) for metric in rows}


def _defined(classes: int, parts: Parts) -> list[Metric]:
    return [metric for metric in label_rows(parts) if metric.has(classes)]


def label_rows(parts: Parts) -> tuple[Metric, ...]:
    """Every metric of a run: the table's, then a row for each of ``parts``."""
    return (*LABEL_METRICS, *metrics.rows_of(parts))


def mean_average_precision(logits: Floats, labels: Labels) -> float:
    """The mean of the average precisions of the classes; NaN of none. A class that all known images
    have, or none, ranks nothing and has no part in it."""
    ranks = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
    each = average_precisions(logits[:, ranks], labels[:, ranks])
    return float(each.mean()) if len(each) else math.nan


def class_f1(answers: LabelAnswers) -> Floats:
    """F1 a class, float64 (classes,); NaN for a class that nobody has or is given."""
    right, said, had = answers.counts
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * right / (said + had))


def _macro_f1(answers: LabelAnswers) -> float:
    each = class_f1(answers)
    occur = np.isfinite(each)
    return float(each[occur].mean()) if occur.any() else math.nan


def _micro_f1(answers: LabelAnswers) -> float:
    right, said, had = (part.sum() for part in answers.counts)
    return float(2 * right / (said + had)) if said + had else math.nan


def label_losses(logits: Floats, labels: Labels) -> Floats:
    """The binary cross-entropy of each label, float64 (n, classes); 0 where it is unknown."""
    losses = np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
    return np.asarray(np.where(labels >= 0, losses, 0.0))


def _loss(answers: LabelAnswers) -> float:
    count = int(answers.known.sum())
    return float(label_losses(answers.logits, answers.labels).sum()) / count if count else math.nan


def _exact_match(answers: LabelAnswers) -> float:
    return float(exact_matches(answers).mean()) if len(answers.labels) else math.nan


def exact_matches(answers: LabelAnswers) -> Bools:
    """Which images have every known label right."""
    wrong = answers.known & (answers.said != (answers.labels == 1))
    return np.asarray(~wrong.any(axis=1))


def _hamming(answers: LabelAnswers) -> float:
    count = int(answers.known.sum())
    wrong = answers.known & (answers.said != (answers.labels == 1))
    return float(wrong.sum()) / count if count else math.nan


def class_gaps(logits: Floats, labels: Labels) -> Floats:
    """The calibration error of each class, float64 (classes,): the mean gap between the probability
    of yes and the share of yes in 15 equal bins, of the known labels. NaN of none.

    Its mean over the classes is the classwise calibration error of M. Kull et al., "Beyond
    temperature scaling" (2019).
    """
    shares, gaps = sigmoid(logits), np.full(logits.shape[1], math.nan)
    for c in range(len(gaps)):
        known = labels[:, c] >= 0
        if known.any():
            gaps[c] = metrics.confidence_gap(shares[known, c], labels[known, c] == 1)
    return gaps


def _calibration_error(answers: LabelAnswers) -> float:
    gaps = class_gaps(answers.logits, answers.labels)
    known = np.isfinite(gaps)
    return float(gaps[known].mean()) if known.any() else math.nan


def _hits(k: int) -> Callable[[LabelAnswers], float]:
    """The share of the images known to have a label of which one is among their ``k`` most probable
    known ones; of equally probable ones the first class leads. At 1 it is one less the one-error
    (R. E. Schapire and Y. Singer, "BoosTexter", 2000)."""

    def compute(answers: LabelAnswers) -> float:
        some = (answers.labels == 1).any(axis=1)
        if not some.any():
            return math.nan
        z = np.where(answers.known, answers.logits, -np.inf)[some]
        first = np.argsort(-z, axis=1, kind="stable")[:, :k]
        return float((np.take_along_axis(answers.labels[some], first, 1) == 1).any(axis=1).mean())

    return compute


# In the order of the tables.
LABEL_METRICS = (
    Metric("map", lambda a: mean_average_precision(a.logits, a.labels), "max", "mAP"),
    Metric("macro_f1", _macro_f1, "max", "macro F1"),
    Metric("micro_f1", _micro_f1, "max", "micro F1", on_line=False),
    Metric("acc", _exact_match, "max", "exact match", share=True, on_line=False),
    Metric("hamming", _hamming, "min", "Hamming loss", on_line=False),
    Metric("loss", _loss, "min", "loss", on_line=False),
    Metric("ece", _calibration_error, "min", "calibration error", on_line=False),
    Metric("hit1", _hits(1), "max", "hit at 1", on_line=False),
    Metric("hit5", _hits(5), "max", "hit at 5", least=6, on_line=False),
)


def metric_of(column: str) -> Metric | None:
    """The metric in a column such as ``val_acc`` or under a key such as ``scores.test.acc``."""
    split, _, name = column.removeprefix("scores.").replace(".", "_").partition("_")
    known = (metric for metric in (*metrics.METRICS, *LABEL_METRICS) if metric.name == name)
    return next(known, None) if split in ("train", "val", "test") else None


def label_score(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    classes: Sequence[str],
    thresholds: Floats,
    chosen_on: str,
    used_for_selection: bool,
    parts: Parts = _NO_PARTS,
) -> LabelScore:
    """The full score of one split, yes from a class's threshold on; ``chosen_on`` says on what
    those were chosen."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    answers = LabelAnswers(z, y, sigmoid(z) >= thresholds)
    computed = {name: None if math.isnan(v) else v for name, v in values_of(answers, parts).items()}
    right, said, had = answers.counts
    areas, known, gaps = average_precisions(z, y), answers.known.sum(axis=0), class_gaps(z, y)
    per_class = {
        name: {
            "n": int(had[c]),
            "known": int(known[c]),
            "threshold": float(thresholds[c]),
            "ap": None if math.isnan(areas[c]) or had[c] == known[c] else float(areas[c]),
            "precision": float(right[c] / said[c]) if said[c] else None,
            "recall": float(right[c] / had[c]) if had[c] else None,
            "f1": float(2 * right[c] / (said[c] + had[c])) if said[c] + had[c] else None,
            "ece": None if math.isnan(gaps[c]) else float(gaps[c]),
        }
        for c, name in enumerate(classes)
    }
    matched = int(exact_matches(answers).sum())
    return LabelScore(
        n=len(y),
        acc=matched / len(y),
        acc_ci95=wilson(matched, len(y)),
        loss=_loss(answers),
        map=computed["map"],
        macro_f1=computed["macro_f1"],
        micro_f1=computed["micro_f1"],
        hamming=computed["hamming"],
        ece=computed["ece"],
        hit1=computed["hit1"],
        hit5=computed.get("hit5"),
        labels_known=int(answers.known.sum()),
        thresholds=dict(zip(classes, map(float, thresholds), strict=True)),
        thresholds_chosen_on=chosen_on,
        per_class=per_class,
        used_for_selection=used_for_selection,
        others={name: computed[name] for name in parts},
    )
