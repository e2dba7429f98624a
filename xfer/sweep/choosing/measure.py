"""What candidates are judged by: the accuracy, or the mean average precision of several labels an
image. The log loss is that of either task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from xfer.data.folds import inner
from xfer.evaluation.calibration import log_losses
from xfer.evaluation.multilabel_metrics import label_losses, mean_average_precision
from xfer.evaluation.statistics import resampled_t, wilson
from xfer.training.logistic import folds as stratified
from xfer.training.multilabel_logistic import combinations, label_folds

Indices = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating[Any]]

LEAST = 10
"""Images of a class, or with a label and without it, in a round, where there are so many."""


@dataclass(frozen=True)
class HeldOutScore:
    """The mean log ``loss`` of held-out images, their ``score``, that of ``each`` fold, and whether
    each image is answered ``right``, bool (n,), where that is one answer. NaN where these images do
    not say."""

    loss: float
    score: float
    each: tuple[float, ...] = ()
    right: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Accuracy:
    """Of one label an image: labels are int64 (n,)."""

    key: ClassVar[Literal["acc"]] = "acc"
    title: ClassVar[str] = "accuracy"
    nothing: ClassVar[str] = "no class has a second image to hold out"
    fewest: ClassVar[int] = LEAST

    def folds(
        self, labels: Indices, count: int, seed: int, groups: Sequence[str] | None = None
    ) -> Indices:
        """The fold that holds each image out with its group, int64 (n,), -1 for one whose class no
        other image, or group, has."""
        apart = inner(labels, groups, count, seed)
        return stratified(labels, count, seed) if apart is None else apart

    def strata(self, labels: Indices) -> list[Indices]:
        """The images of each class, which has the same share in every round, or ``fewest``."""
        return [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def sides(self, labels: Indices) -> list[Indices]:
        """Images of which ten are in every round, beside those of the strata: none."""
        return []

    def of(self, logits: Logits, labels: Indices, folds: Indices) -> HeldOutScore:
        """What images say whose ``folds`` (n,) held them out."""
        if not len(labels):
            return HeldOutScore(math.nan, math.nan)
        right = logits.argmax(axis=1) == labels
        losses = log_losses(np.asarray(logits, np.float64), labels)
        each = tuple(float(right[folds == k].mean()) for k in np.unique(folds))
        return HeldOutScore(float(losses.mean()), float(right.mean()), each, right)

    def mean(self, scores: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]]) -> float:
        """The score of all rounds, of the ``scores`` of their folds, which held so many images."""
        rounds = [np.average(s, weights=n) for s, n in zip(scores, sizes, strict=True)]
        return float(np.mean(rounds))

    def interval(
        self, acc: float, scores: Sequence[float], n: int, folds: int
    ) -> tuple[float, float] | None:
        """The 95 % interval of an accuracy that was cross-validated on ``n`` images: ``scores`` are
        those of each fold of each repeat.

        The variance is that of Nadeau and Bengio, "Inference for the generalization error" (2003),
        equation 9: a share of test to training images on top of that of the mean, because fits that
        share their images are no independent ones. It is used as a number of images in Wilson's
        interval (1927), whose ends stay within 0 and 1 and which is not empty where all are right.
        The quantile is Student's, of one less than the scores.
        """
        from scipy.stats import t

        if folds < 2:
            return None
        count = len(scores)
        binomial = acc * (1 - acc) * folds / n  # the variance of a fold's accuracy by chance alone
        spread = float(np.var(scores, ddof=1)) if count > 1 else 0.0
        excess = max(1.0, spread / binomial) if binomial > 0 else 1.0
        share = folds * (1 / count + 1 / (folds - 1)) * excess
        return wilson(acc * n / share, n / share, float(t.ppf(0.975, max(1, count - 1))))


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Of several labels an image: labels are int64 (n, classes) of 1, 0 and -1 for unknown.

    A score is the mean over the folds, each of which ranks the answers of one fit, as in a
    cross-validation; see :class:`xfer.evaluation.out_of_fold.LabelOutOfFold`.
    """

    key: ClassVar[Literal["map"]] = "map"
    title: ClassVar[str] = "mAP"
    nothing: ClassVar[str] = "no fold holds out images with a label beside images without it"
    fewest: ClassVar[int] = 0

    def folds(
        self, labels: Indices, count: int, seed: int, groups: Sequence[str] | None = None
    ) -> Indices:
        """The fold that holds each image out with its group, int64 (n,), -1 for one alone in its
        combination, or where there is one group."""
        return label_folds(labels, count, seed, groups)

    def strata(self, labels: Indices) -> list[Indices]:
        """The images of each combination of labels, the rare ones together."""
        codes = combinations(labels, LEAST)
        return [np.flatnonzero(codes == code) for code in np.unique(codes)]

    def sides(self, labels: Indices) -> list[Indices]:
        """Images with each label, and those without it, of which ten are in every round."""
        return [np.flatnonzero(column == side) for column in labels.T for side in (1, 0)]

    def of(self, logits: Logits, labels: Indices, folds: Indices) -> HeldOutScore:
        """What images say whose ``folds`` (n,) held them out."""
        z = np.asarray(logits, np.float64)
        count = int((labels >= 0).sum())
        loss = float(label_losses(z, labels).sum()) / count if count else math.nan
        each = [mean_average_precision(z[folds == k], labels[folds == k]) for k in np.unique(folds)]
        return HeldOutScore(loss, _mean(each), tuple(each))

    def mean(self, scores: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]]) -> float:
        """The mean of the ``scores`` of all folds."""
        return _mean([score for each in scores for score in each])

    def interval(
        self, centre: float, scores: Sequence[float], n: int, folds: int
    ) -> tuple[float, float] | None:
        """The 95 % interval around the mean of ``scores``, those of each fold of each repeat, as
        that of a cross-validated mAP; see :func:`xfer.evaluation.statistics.resampled_t`."""
        return resampled_t(centre, [s for s in scores if not math.isnan(s)], folds)


Measure = Accuracy | MeanAveragePrecision


def measure_of(several: bool) -> Measure:
    """What answers are judged by, to images of one label or of ``several``."""
    return MeanAveragePrecision() if several else Accuracy()


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
