"""What a choice is worth: its accuracy on images that took no part in choosing.

Varma and Simon, "Bias in error estimation when using cross-validation for model selection" (2006):
the best of several cross-validated scores is flattered by having been picked. Here an outer fold
is held out from the whole choosing, rounds and inner folds and all, and the winner of the rest
answers for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.seeds import derive
from xfer.evaluation.statistics import wilson
from xfer.sweep.choosing.halving import Halving, Learner, halve
from xfer.training.logistic import folds as stratified

if TYPE_CHECKING:
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Round:
    """One draw of the outer folds: whether each image was answered right by a winner that had not
    seen it, bool (n,), in the order of the images; the fold of each, -1 for none; what the winner
    of every fold was called, and what its inner cross-validation had promised."""

    right: npt.NDArray[np.bool_] = field(repr=False)
    folds: Indices = field(repr=False)
    winners: tuple[str, ...]
    promised: tuple[float, ...]

    @property
    def accuracies(self) -> list[float]:
        """Of the winner of each fold, on the images of that fold."""
        return [float(self.right[self.folds == k].mean()) for k in np.unique(self.folds) if k >= 0]


@dataclass(frozen=True)
class Worth:
    """What choosing is worth: the mean accuracy of its winners on images that chose nothing, with
    its 95 % interval; ``optimism`` is by how much the winners' inner cross-validation had promised
    more; ``n`` images were held out, ``folds`` at a time, ``repeats`` times; ``winners`` says how
    often each candidate won."""

    acc: float
    ci95: tuple[float, float]
    optimism: float
    n: int
    folds: int
    repeats: int
    winners: dict[str, int]


def judge(learners: Sequence[Learner], labels: Indices, rules: Halving, number: int) -> Round:
    """Judge the choosing on outer folds, drawn for the ``number``-th time (from 0); ``labels``
    int64 (n,) are those of all images that may be learnt from."""
    every, seed = np.arange(len(labels)), derive("outer", rules.seed, number)
    fold_of = stratified(labels, rules.folds, seed)
    right = np.zeros(len(labels), bool)
    winners, promised = [], []
    for k in np.unique(fold_of[fold_of >= 0]):
        test = every[fold_of == k]
        inner = replace(rules, seed=derive("inner", seed, int(k)))
        halved = halve(learners, labels, every[fold_of != k], test, inner)
        right[test] = halved.answers.argmax(axis=1) == labels[test]
        winners.append(halved.winner.name)
        promised.append(halved.winner.acc)
    return Round(right, fold_of, tuple(winners), tuple(promised))


def worth(rounds: Sequence[Round]) -> Worth:
    """What the ``rounds`` say together."""
    held = rounds[0].folds >= 0
    n, outer = int(held.sum()), len(rounds[0].winners)
    acc = float(np.mean([done.right[held].mean() for done in rounds]))
    promised = float(np.mean([p for done in rounds for p in done.promised]))
    scores = [score for done in rounds for score in done.accuracies]
    named = Counter(name for done in rounds for name in done.winners)
    ci95 = interval(acc, scores, n, outer)
    return Worth(acc, ci95, promised - acc, n, outer, len(rounds), dict(named.most_common()))


def interval(acc: float, scores: Sequence[float], n: int, folds: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that was cross-validated on ``n`` images: ``scores`` are
    those of each fold of each repeat.

    The variance is that of Nadeau and Bengio, "Inference for the generalization error" (2003),
    equation 9: a share of test to training images on top of that of the mean, because fits that
    share their images are no independent ones. It is used as a number of images in Wilson's
    interval (1927), whose ends stay within 0 and 1 and which is not empty where all are right. The
    quantile is Student's, of one less than the scores.
    """
    from scipy.stats import t

    count = len(scores)
    binomial = acc * (1 - acc) * folds / n  # the variance of a fold's accuracy by chance alone
    spread = float(np.var(scores, ddof=1)) if count > 1 else 0.0
    excess = max(1.0, spread / binomial) if binomial > 0 else 1.0
    share = folds * (1 / count + 1 / (folds - 1)) * excess
    return wilson(acc * n / share, n / share, float(t.ppf(0.975, max(1, count - 1))))
