"""How often a head that was solved on fewer images is right: nested subsamples of cached features.

Every image is held out in turn (stratified folds, several times over). Of the others, ever larger
stratified subsamples, each inside the next, are solved as ``optim=exact`` solves all of them, and
answer what was held out. The strength of the penalty is chosen at each size on the images of the
other folds, so that no image has a say in what it is answered by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from xfer.core.live_line import counted
from xfer.core.seeds import derive
from xfer.evaluation.learning_curve import Curve, fit
from xfer.training.feature_moments import blocks
from xfer.training.logistic import STRENGTHS, Problem, TrainingRows, folds
from xfer.training.principal_axes import Axes

FOLDS = 5
_SIZES = 8
_SMALLEST = 3  # images of a class on the average in the smallest subsample
_SPAN = 16  # times smaller than the largest it is at most
_STRENGTHS = STRENGTHS[::2]
_REPEATS, _ENOUGH = (1, 8), 2_400  # times over; answers a size that are enough
_WORK = 1 << 25  # of images x features x classes in the largest subsample
_NUMBERS = 1 << 23  # of images x features in it
_FEW = 10  # images of each class that it has nevertheless, where there are as many
_JUDGED = 2_000  # held-out images of a fold that answer at most


@dataclass(frozen=True)
class Subsamples:
    """``sizes`` int64 (sizes,): training images in all, smallest first; ``counts`` int64 (sizes,
    classes) of each class. ``right`` float32 (sizes, n): the share of the repeats in which each
    image, held out, was answered rightly; NaN where it never was held out. ``by_repeat`` float64
    (sizes, repeats, classes): the share of each class that was, in each repeat. ``l2`` float64
    (sizes,): the strength that was chosen, the geometric mean. ``bytes`` is the largest subsample
    in double precision, ``labels`` int64 (n,) the classes of the images."""

    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    right: npt.NDArray[np.float32]
    by_repeat: npt.NDArray[np.float64]
    l2: npt.NDArray[np.float64]
    bytes: int

    @property
    def repeats(self) -> int:
        """How many times every image was held out."""
        return int(self.by_repeat.shape[1])

    def scores(self, some: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The share of the images of ``some`` classes that is answered rightly in each repeat,
        float64 (sizes, repeats)."""
        counts = np.bincount(self.labels, minlength=self.by_repeat.shape[2])
        shares = np.zeros(len(counts))
        shares[some] = counts[some] / counts[some].sum()
        return np.asarray(self.by_repeat @ shares)

    def curve(self, some: npt.NDArray[np.int64], seed: int) -> Curve:
        """The curve of the accuracy on images of ``some`` classes through all sizes."""
        right = self.right[:, np.flatnonzero(np.isin(self.labels, some))]
        return fit(self.sizes, right, self.scores(some), FOLDS, seed)


def subsampled(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int, seed: int
) -> Subsamples:
    """Solve subsamples of ``features`` float32 (n, d) with ``labels`` int64 (n,), and answer what
    is held out. The same for the same ``seed``."""
    counts = np.bincount(labels, minlength=classes)
    sizes = subsample_sizes(counts, features.shape[1])
    shares = [allotted(counts, int(size)) for size in sizes]
    repeats = repeats_of(len(labels))
    right = np.zeros((len(sizes), len(labels)))
    seen = np.zeros(len(labels))
    by_repeat = np.zeros((len(sizes), repeats, classes))
    chosen = np.zeros((len(sizes), repeats, FOLDS))
    draws = (Draw(features, labels, derive("worth", seed, repeat)) for repeat in range(repeats))
    for repeat, at, one in followed(draws, repeats, shares):
        judged = labels[one.judged]
        hits = one.logits.argmax(axis=1) == judged
        right[at, one.judged] += hits
        by_repeat[at, repeat] = np.bincount(judged, hits, classes) / np.bincount(judged)
        chosen[at, repeat] = np.log(one.l2)
        seen[one.judged] += at == 0
    with np.errstate(invalid="ignore"):
        rates = (right / seen).astype(np.float32)
    l2 = np.exp(chosen.mean(axis=(1, 2)))
    largest = bytes_of(sizes, features)
    return Subsamples(labels, sizes, np.array(shares), rates, by_repeat, l2, largest)


class DrawAnswers(NamedTuple):
    """The ``judged`` images (m,) of a draw, for how many images each is ``counted``, their
    ``logits`` float32 (m, classes) by heads that had not seen them, and the strength ``l2`` of each
    of these, (folds,)."""

    judged: npt.NDArray[np.int64]
    counted: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32]
    l2: npt.NDArray[np.float64]


def followed(
    draws: Iterable[Draw], repeats: int, shares: Sequence[Any]
) -> Iterator[tuple[int, int, DrawAnswers]]:
    """The number of each of ``draws`` and of each of ``shares``, smallest first, with the answers
    of heads solved on so much."""
    tried = [range(len(_STRENGTHS))] * len(shares)
    for repeat, draw in enumerate(counted(draws, "learning curve", repeats)):
        for at, share in enumerate(shares):
            with threadpool_limits(1 if draw.small(share) else None):
                logits, best = draw.answers(share, tried[at])
            l2, counted_for = np.array(_STRENGTHS)[best], draw.counted[draw.judged]
            yield repeat, at, DrawAnswers(draw.judged, counted_for, logits, l2)
            # What is best moves little from one size to the next, and less between repeats.
            near = int(np.median(best))
            if repeat == 0 and at + 1 < len(shares):
                tried[at + 1] = _around(near, 2)
            if repeat == 0:
                tried[at] = _around(near, 1)


def bytes_of(sizes: npt.NDArray[np.int64], features: npt.NDArray[np.float32]) -> int:
    """What the largest subsample takes in double precision."""
    return int(sizes[-1] * features.shape[1] * 8)


def subsample_sizes(counts: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """Subsample sizes in images of all classes, int64, rising in about equal ratios, for classes of
    ``counts`` images and ``width`` features: up to what four of five folds hold, or to what can be
    solved in reasonable time and memory."""
    pool = int(counts.sum()) - sum(math.ceil(int(n) / FOLDS) for n in counts)
    return sizes_up_to(pool, len(counts), width)


def sizes_up_to(pool: int, classes: int, width: int) -> npt.NDArray[np.int64]:
    """The same for ``pool`` images outside of a fold."""
    affordable = max(_FEW * classes, min(_WORK // (width * classes), _NUMBERS // width))
    most = min(pool, affordable)
    least = min(most, max(_SMALLEST * classes, math.ceil(most / _SPAN)))
    sizes = np.unique(np.geomspace(least, most, _SIZES).round().astype(np.int64))
    return np.asarray(sizes)


def allotted(counts: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """``size`` images shared out over classes as ``counts`` are, int64 (classes,): each class has
    its share rounded down, at least one image; the largest remainders get what is left."""
    exact = size * counts / counts.sum()
    share = np.maximum(1, np.floor(exact)).astype(np.int64)
    for label in np.argsort(-(exact - np.floor(exact)), kind="stable"):
        if share.sum() >= size:
            break
        share[label] += 1
    return np.asarray(share)


def repeats_of(count: int) -> int:
    """How many times so many images are held out."""
    least, most = _REPEATS
    return int(np.clip(math.ceil(_ENOUGH / count), least, most))


def _around(near: int, below: int) -> range:
    """The strengths from the next stronger one to ``below`` weaker ones."""
    return range(max(0, near - 1), min(len(_STRENGTHS), near + 1 + below))


class Draw:
    """One repeat: its folds ``fold_of`` int64 (n,), the images that are ``judged`` in it, int64
    (m,), for how many each is ``counted``, float64 (n,), and the ``order`` in which images come
    into a subsample. A share is a number of images of each class."""

    def __init__(
        self, features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seed: int
    ) -> None:
        self.features, self.labels = features, labels
        # One order for every size: a smaller subsample is a part of a larger one.
        self.fold_of, self.order = self._drawn(seed)
        self.counted = np.ones(len(labels))
        self.judged = np.sort(np.concatenate([self._held_out(fold) for fold in range(FOLDS)]))

    def _held_out(self, fold: int) -> npt.NDArray[np.int64]:
        """The images of a fold that are answered: all, or its share of enough."""
        pool = self.order[self.fold_of[self.order] == fold]
        return self._enough(pool, min(1.0, _JUDGED / len(pool)))

    def small(self, share: Any) -> bool:
        """Whether one thread is enough for a subsample."""
        return bool(np.sum(share) * self.features.shape[1] <= 1 << 22)

    def answers(
        self, share: Any, tried: Sequence[int]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The logits of each judged image, float32 (judged, classes), by heads solved on a
        ``share`` of the other folds, at the strength that those ``tried`` are best at for the other
        folds' images; and its number for each fold, int64 (folds,)."""
        judged, fold_of = self.judged, self.fold_of[self.judged]
        logits = np.empty(0, np.float32)
        for fold in range(FOLDS):
            chosen, held = self._subsample(share, fold), np.flatnonzero(fold_of == fold)
            problem = self._problem(self.features[chosen], self.labels[chosen])
            if not fold:
                logits = np.zeros((len(tried), len(judged), problem.classes), np.float32)
            for at, (weight, bias) in enumerate(_path(problem, tried)):
                for part in blocks(self.features, len(held)):
                    rows = np.asarray(self.features[judged[held[part]]], np.float64)
                    logits[at, held[part]] = rows @ weight.T + bias
        best = _best(self._losses(logits.astype(np.float64), self.labels[judged]), fold_of)
        return logits[best[fold_of], np.arange(len(judged))], np.asarray(tried)[best]

    def _drawn(self, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The folds and the order."""
        drawn = np.random.default_rng(derive("worth order", seed))
        return folds(self.labels, FOLDS, seed), drawn.permutation(len(self.labels))

    def _enough(self, pool: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
        """A share of the images of a fold."""
        of_class = self.labels[pool]
        parts = [pool[of_class == label] for label in np.unique(of_class)]
        return np.concatenate([part[: math.ceil(share * len(part))] for part in parts])

    def _subsample(self, share: Any, fold: int) -> npt.NDArray[np.int64]:
        """So many images of the other folds, rising."""
        pool = self.order[self.fold_of[self.order] != fold]
        parts = [pool[self.labels[pool] == label][:count] for label, count in enumerate(share)]
        return np.sort(np.concatenate(parts))

    def _problem(self, x: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Axes:
        """The head's problem on a subsample."""
        alone, classes = np.full(len(labels), -1, np.int64), int(self.labels.max()) + 1
        return Problem(
            TrainingRows([x], x, labels, np.ones(len(labels)), np.ones(classes), 0.0, alone)
        )

    def _losses(
        self, logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """The loss of each image, (strengths, judged)."""
        logits -= logits.max(axis=2, keepdims=True)
        right = logits[:, np.arange(len(labels)), labels]
        return np.asarray(np.log(np.exp(logits).sum(axis=2)) - right)


def _path(
    problem: Axes, tried: Sequence[int]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Weight and bias of the solutions at the strengths ``tried``, the strongest penalty first."""
    theta = None
    for number in tried:
        theta, _ = problem.minimum(_STRENGTHS[number], None, theta, nearly=True)
        yield problem.head(theta)


def _best(losses: npt.NDArray[np.float64], fold_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which of the strengths has the least mean loss on the images of the other folds, int64
    (folds,); ``losses`` float64 (strengths, judged)."""
    totals = np.stack([losses[:, fold_of != fold].mean(axis=1) for fold in range(FOLDS)])
    return np.asarray(totals.argmin(axis=1))
