"""How well heads of several labels that were solved on fewer images rank the others: nested
subsamples of cached features.

As :mod:`xfer.training.subsampling`, judged by the average precision of each label. Every
combination of labels is spread evenly over folds and over the order in which images come into a
subsample, the rare ones together; of each label an image that has it and one that lacks it come
first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xfer.core.seeds import derive
from xfer.evaluation.learning_curve import DRAWS, Curve, fit_errors
from xfer.evaluation.multilabel_bootstrap import weighted_ap
from xfer.evaluation.multilabel_metrics import label_losses
from xfer.training.multilabel_logistic import LabelProblem, LabelRows, label_folds
from xfer.training.principal_axes import Axes
from xfer.training.subsampling import (
    FOLDS,
    Draw,
    DrawAnswers,
    bytes_of,
    followed,
    repeats_of,
    sizes_up_to,
)

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

_WORK = 1 << 30
"""Numbers that are added up, at most: more images and classes are weighed anew fewer times."""
_FEWEST = 200
_BLOCK = 1 << 22  # numbers at a time
_RARE = 50  # images of a fold that have a label are judged, where not all images are


@dataclass(frozen=True)
class LabelSubsamples:
    """``sizes`` int64 (sizes,): training images, smallest first; ``counts`` int64 (sizes, classes):
    about how many of them have each label. ``areas`` float64 (sizes, draws,
    classes): the average precision of held-out images, that of all repeats moved by what weights
    of its own change in one of them;
    ``by_repeat`` float64 (sizes, repeats, classes) that with equal weights. ``had`` float64
    (draws, classes) are the weights of the images that have a label, all of them together,
    ``beside`` (draws, 2) those of one more that comes first and one that comes last. ``l2`` float64
    (sizes,) is the strength that was chosen, the geometric mean, ``judged`` how many images
    answered, ``bytes`` the largest subsample in double precision."""

    sizes: Labels
    counts: Labels
    areas: Floats
    by_repeat: Floats
    had: Floats
    beside: Floats
    l2: Floats
    judged: int
    bytes: int

    @property
    def repeats(self) -> int:
        """How many times every image was held out."""
        return int(self.by_repeat.shape[1])

    def scores(self, some: Any) -> Floats:
        """The mean average precision of ``some`` classes in each repeat, float64
        (sizes, repeats)."""
        return np.asarray(self.by_repeat[:, :, some].mean(axis=2))

    def curve(self, some: Any, seed: int) -> Curve:
        """The curve of the mean average precision of ``some`` classes through all sizes.

        Jeffreys' half image that is ranked rightly and half one that is not stand beside those that
        have a label, as in :func:`xfer.evaluation.learning_curve.weights`.
        """
        had, area = self.had[:, some].sum(axis=1), self.areas[:, :, some].mean(axis=2)
        known = (had * area + self.beside[:, 0]) / (had + self.beside.sum(axis=1))
        errors, scores = 1 - known.T, self.scores(some)
        alone = np.zeros(len(self.sizes))  # what is drawn anew counts as the training set's
        curve = fit_errors(self.sizes, errors, scores, alone, FOLDS, seed)
        return replace(curve, luck=float(errors[:, -1].std()) * math.sqrt(self.judged))


def subsampled_labels(
    features: npt.NDArray[np.float32], labels: Labels, seed: int
) -> LabelSubsamples:
    """Solve subsamples of ``features`` float32 (n, d) with ``labels`` int64 (n, classes) of 1, 0
    and -1 for unknown, and answer what is held out. The same for the same ``seed``."""
    (count, classes), width = labels.shape, features.shape[1]
    sizes = sizes_up_to(count - math.ceil(count / FOLDS), classes, width)
    repeats = repeats_of(count)
    again = _Reweighed(labels, len(sizes), repeats, seed)
    areas = np.zeros((len(sizes), again.count, classes))
    by_repeat = np.zeros((len(sizes), repeats, classes))
    chosen = np.zeros((len(sizes), repeats, FOLDS))
    had, judged = np.zeros((again.count, classes)), np.empty(0, np.int64)
    seeds = (derive("worth", seed, repeat) for repeat in range(repeats))
    each = (_LabelDraw(features, labels, one) for one in seeds)
    for repeat, at, one in followed(each, repeats, sizes.tolist()):
        judged = one.judged
        by_repeat[at, repeat] = again.areas(np.ones((1, len(judged))), one)
        chosen[at, repeat] = np.log(one.l2)
        for draws, weights in again.weights(repeat, len(judged)):
            areas[at, draws] = again.areas(weights, one) - by_repeat[at, repeat]
            had[draws] = weights @ (labels[judged] == 1)
    areas = np.clip(areas + by_repeat.mean(axis=1)[:, None], 0.0, 1.0)
    l2 = np.exp(chosen.mean(axis=(1, 2)))
    largest, count = bytes_of(sizes, features), len(judged)
    share = (labels == 1).sum(axis=0) / (labels >= 0).sum(axis=0)
    counts = np.rint(sizes[:, None] * share).astype(np.int64)
    return LabelSubsamples(sizes, counts, areas, by_repeat, had, again.beside, l2, count, largest)


class _Reweighed:
    """Weights of images, the same for every size: the Bayesian bootstrap (Rubin 1981). Each draw
    weighs the answers of one repeat."""

    def __init__(self, labels: Labels, sizes: int, repeats: int, seed: int) -> None:
        self.labels, self.repeats, self.seed = labels, repeats, derive("worth weights", seed)
        self.count = int(np.clip(_WORK // (labels.size * sizes), _FEWEST, DRAWS))
        self.beside = np.random.default_rng(self.seed).standard_gamma(0.5, (self.count, 2))

    def weights(self, repeat: int, images: int) -> Iterator[tuple[Labels, Floats]]:
        """The draws of a repeat, int64 (m,), and the weights (m, images), some at a time."""
        mine, size = np.arange(repeat, self.count, self.repeats), max(1, _BLOCK // images)
        drawn = np.random.default_rng(derive("worth weights", self.seed, repeat))
        for start in range(0, len(mine), size):
            draws = mine[start : start + size]
            yield draws, drawn.standard_exponential((len(draws), images))

    def areas(self, weights: Floats, one: DrawAnswers) -> Floats:
        """The average precision of each class in each draw, float64 (m, classes)."""
        areas = np.empty((len(weights), one.logits.shape[1]))
        for label, column in enumerate(self.labels[one.judged].T):
            known = column >= 0
            had, answers = column[known] == 1, one.logits[known, label].astype(np.float64)
            counted = weights[:, known] * one.counted[known]
            areas[:, label] = weighted_ap(counted, answers, had)
        return areas


class _LabelDraw(Draw):
    """A repeat of images that have several labels; a share is a number of images."""

    def _drawn(self, seed: int) -> tuple[Labels, Labels]:
        drawn = np.random.default_rng(derive("worth order", seed))
        return _learnable(self.labels, seed), _evenly(self.labels, drawn)

    def _enough(self, pool: Labels, share: float) -> Labels:
        has = self.labels[pool] == 1
        rarest = np.where(has, has.sum(axis=0), len(pool)).min(axis=1)
        odds = np.maximum(share, np.minimum(1.0, _RARE / rarest))
        self.counted[pool] = 1 / odds
        kept = np.random.default_rng(derive("worth judged", int(pool[0]), len(pool)))
        return np.asarray(pool[kept.random(len(pool)) < odds])

    def _subsample(self, share: Any, fold: int) -> Labels:
        pool = self.order[self.fold_of[self.order] != fold]
        labels = self.labels[pool]
        first = np.unique([(labels == side).argmax(axis=0) for side in (1, 0)])
        rest = np.delete(pool, first)
        return np.sort(np.concatenate([pool[first], rest])[:share])

    def _problem(self, x: npt.NDArray[np.float32], labels: Labels) -> Axes:
        ones, alone = np.ones(len(labels)), np.full(len(labels), -1, np.int64)
        return LabelProblem(LabelRows([x], x, labels, np.ones(labels.shape[1]), 0.0, alone, ones))

    def _losses(self, logits: Floats, labels: Labels) -> Floats:
        return np.stack([label_losses(some, labels).sum(axis=1) for some in logits])


def _learnable(labels: Labels, seed: int) -> Labels:
    """Folds as of a solved head, int64 (n,), drawn until each of them leaves images that have every
    label, and that lack it."""
    attempt = 0
    while True:
        fold_of = label_folds(labels, FOLDS, derive("worth folds", seed, attempt))
        left = [labels[fold_of != fold] for fold in range(FOLDS)]
        if all((some == side).any(axis=0).all() for some in left for side in (0, 1)):
            return fold_of
        attempt += 1


def _evenly(labels: Labels, drawn: np.random.Generator) -> Labels:
    """An order of images, int64 (n,), any beginning of which has every combination of labels in
    about its share."""
    _, codes = np.unique(labels, axis=0, return_inverse=True)
    codes = codes.reshape(-1)  # numpy 2.0 gives a column
    mixed = drawn.permutation(len(labels))
    alike = mixed[np.argsort(codes[mixed], kind="stable")]
    rank = np.arange(len(labels)) - np.searchsorted(codes[alike], codes[alike])
    place = (rank + drawn.random(len(labels))) / np.bincount(codes)[codes[alike]]
    return np.asarray(alike[np.argsort(place, kind="stable")])
