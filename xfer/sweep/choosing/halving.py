"""Successive halving over candidates, and what the choosing is worth.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization"
(2016): all candidates are tried on few images, the better half on twice as many, and so on.

Varma and Simon, "Bias in error estimation when using cross-validation for model selection" (2006):
the best of several cross-validated scores is flattered by having been picked. So an outer fold is
held out from the whole choosing, rounds and inner folds and all, and the winner of the rest answers
for it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from xfer.core.errors import DataError, XferError
from xfer.core.seeds import derive
from xfer.evaluation.statistics import wilson
from xfer.training.logistic import folds as stratified

if TYPE_CHECKING:
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]
    Logits = npt.NDArray[np.float32]

_LEAST = 10  # images of a class in a round, where it has so many
_FINALISTS = 2


@dataclass(frozen=True)
class Learned:
    """What a candidate answers: ``held_out`` float32 (rows, classes), each image by the fit that
    had not seen it (NaN where no fold held it out), and ``answers`` (test, classes) by the fit on
    all rows."""

    held_out: Logits = field(repr=False)
    answers: Logits = field(repr=False)


class Learner(Protocol):
    """One candidate that can be fitted to any part of the training images."""

    @property
    def name(self) -> str:
        """What the candidate is called."""

    def learn(self, rows: Indices, folds: Indices, test: Indices) -> Learned:
        """Fit to the images at ``rows`` (n,), whose ``folds`` (n,) say which fold holds each out
        (-1: none), and answer those at ``test``. Raises XferError."""


@dataclass(frozen=True)
class Halving:
    """How is chosen: the names are those of the keys of the group ``choose``; ``seed`` draws
    folds and rounds, and ``check`` is called before each fit: it raises where the time is over."""

    by: Literal["loss", "acc"] = "loss"
    folds: int = 5
    rungs: int = 3
    seed: int = 0
    check: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Standing:
    """How far a candidate came: in its last round it saw ``images`` training images, of which its
    folds held out ``n`` with this mean log loss and accuracy, whose 95 % interval is ``ci95``.
    ``problem`` is why it was dropped for another reason than its score; ``right`` bool (n,) is by
    image of that round."""

    name: str
    images: int = 0
    n: int = 0
    loss: float = math.inf
    acc: float = 0.0
    ci95: tuple[float, float] = (0.0, 1.0)
    seconds: float = 0.0
    problem: str = ""
    right: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Halved:
    """What came of the halving: every candidate's standing, the best first, and what the best one
    answers for the test images: float32 (test, classes)."""

    standings: tuple[Standing, ...]
    answers: Logits = field(repr=False)

    @property
    def winner(self) -> Standing:
        """The candidate of the best score in the last round."""
        return self.standings[0]


def halve(
    learners: Sequence[Learner],
    labels: Indices,
    rows: Indices,
    test: Indices,
    rules: Halving,
) -> Halved:
    """Choose among ``learners`` on the images at ``rows`` alone, and have the winner answer those
    at ``test``. ``labels`` int64 (all images,).

    A candidate that fails or whose answers are no finite numbers is dropped with the reason.
    Raises the XferError of the last candidate where none is left.
    """
    alive = list(learners)
    done: dict[str, Standing] = {}
    answers: dict[str, Logits] = {}
    failure: XferError | None = None
    rounds = growing(labels, rows, rules)
    for number, part in enumerate(rounds):
        last = number == len(rounds) - 1
        if not last and len(alive) <= _FINALISTS:
            continue  # nobody could be dropped
        fold_of = stratified(labels[part], rules.folds, derive("choose", rules.seed, number))
        asked = test if last else test[:0]
        survivors = []
        for learner in alive:
            rules.check()
            before = done.get(learner.name, Standing(learner.name)).seconds
            began = time.perf_counter()
            try:
                learned = learner.learn(part, fold_of, asked)
                standing = _standing(learner.name, learned, labels[part], fold_of)
                if not standing.problem:
                    survivors.append(learner)
                    answers[learner.name] = learned.answers
            except XferError as error:
                if getattr(error, "ends_choosing", False):
                    raise
                failure = error
                standing = Standing(learner.name, len(part), problem=error.what)
            seconds = before + time.perf_counter() - began
            done[learner.name] = replace(standing, seconds=seconds)
        survivors.sort(key=lambda learner: rank(done[learner.name], rules.by))
        alive = survivors if last else survivors[: max(_FINALISTS, math.ceil(len(survivors) / 2))]
        if not alive:
            raise failure or _nobody(done)
    ordered = sorted(done.values(), key=lambda s: (-s.images, *rank(s, rules.by)))
    return Halved(tuple(ordered), answers[ordered[0].name])


def rank(standing: Standing, by: str) -> tuple[bool, float, float]:
    """Sorts the better candidate first; one with a problem comes last."""
    keys = (standing.loss, -standing.acc) if by == "loss" else (-standing.acc, standing.loss)
    return (bool(standing.problem), *keys)


def growing(labels: Indices, rows: Indices, rules: Halving) -> list[Indices]:
    """The rows of every round, each within the next and the last one ``rows``: of every class
    the same share, but no fewer than ten where it has them."""
    ranks: dict[int, Indices] = {}
    drawn = np.random.default_rng(derive("rounds", rules.seed))
    for label in np.unique(labels[rows]):
        ranks[int(label)] = drawn.permutation(rows[labels[rows] == label])
    rounds: list[Indices] = []
    for number in range(rules.rungs):
        share = 2.0 ** (number + 1 - rules.rungs)
        parts = [m[: max(_LEAST, math.ceil(len(m) * share))] for m in ranks.values()]
        part = np.sort(np.concatenate(parts))
        if not rounds or len(part) > len(rounds[-1]):
            rounds.append(part)
    return rounds


def _nobody(done: dict[str, Standing]) -> DataError:
    name, standing = next(iter(done.items()))
    what = f"no candidate can be judged; {name}: {standing.problem}"
    return DataError("choose", what, "add images of each class, or other choose.sources", 67)


def _standing(name: str, learned: Learned, labels: Indices, fold_of: Indices) -> Standing:
    held = fold_of >= 0
    z, truth, folds = learned.held_out[held].astype(np.float64), labels[held], fold_of[held]
    if not len(z):
        return Standing(name, len(labels), problem="no class has a second image to hold out")
    if not (np.isfinite(z).all() and np.isfinite(learned.answers).all()):
        return Standing(name, len(labels), problem="its answers are NaN or Inf")
    top = z.max(axis=1)
    losses = top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(z)), truth]
    right = z.argmax(axis=1) == truth
    acc, scores = float(right.mean()), [float(right[folds == k].mean()) for k in np.unique(folds)]
    ci95 = interval(acc, scores, len(z), len(scores))
    return Standing(name, len(labels), len(z), float(losses.mean()), acc, ci95, right=right)


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
