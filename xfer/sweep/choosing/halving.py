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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from xfer.core.errors import DataError, XferError
from xfer.core.seeds import derive
from xfer.sweep.choosing.measure import LEAST, Measure, measure_of

Indices = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

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
    folds and rounds. ``groups`` has a name an image, of those that are held out together."""

    by: Literal["loss", "acc", "map"] = "loss"
    folds: int = 5
    rungs: int = 3
    seed: int = 0
    groups: Sequence[str] | None = None

    def folds_of(self, measure: Measure, labels: Indices, rows: Indices, seed: int) -> Indices:
        """The fold that holds out each image at ``rows``, int64 (rows,), -1 for one that none
        does; ``labels`` are those of all images."""
        groups = None if self.groups is None else [self.groups[row] for row in rows.tolist()]
        return measure.folds(labels[rows], self.folds, seed, groups)


@dataclass(frozen=True)
class Standing:
    """How far a candidate came: in its last round it saw ``images`` training images, of which its
    folds held out ``n`` with this mean log loss, and accuracy or mAP as the ``score``, whose 95 %
    interval is ``ci95``, if one is known. ``problem`` is why it was dropped for another reason than
    its score; ``right`` bool (n,) is by image of that round, of one label an image."""

    name: str
    images: int = 0
    n: int = 0
    loss: float = math.inf
    score: float = 0.0
    ci95: tuple[float, float] | None = None
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
    at ``test``. ``labels`` int64 (all images,), or (all images, classes) of several labels.

    A candidate that fails or whose answers are no finite numbers is dropped with the reason.
    Raises the XferError of the last candidate where none is left.
    """
    alive, measure = list(learners), measure_of(labels.ndim == 2)
    done: dict[str, Standing] = {}
    answers: dict[str, Logits] = {}
    failure: XferError | None = None
    rounds = growing(labels, rows, rules)
    for number, part in enumerate(rounds):
        last = number == len(rounds) - 1
        if not last and len(alive) <= _FINALISTS:
            continue  # nobody could be dropped
        fold_of = rules.folds_of(measure, labels, part, derive("choose", rules.seed, number))
        if (fold_of < 0).all():
            raise _nobody(alive[0].name, measure.nothing)
        asked = test if last else test[:0]
        for learner in alive:
            before, began = done.get(learner.name, Standing(learner.name)), time.perf_counter()
            try:
                learned = learner.learn(part, fold_of, asked)
                standing = _standing(learner.name, learned, labels[part], fold_of, measure)
                answers[learner.name] = learned.answers
            except XferError as error:
                if getattr(error, "ends_choosing", False):
                    raise
                failure = error
                standing = Standing(learner.name, len(part), problem=error.what)
            seconds = before.seconds + time.perf_counter() - began
            done[learner.name] = replace(standing, seconds=seconds)
        alive = [learner for learner in alive if not done[learner.name].problem]
        alive.sort(key=lambda learner: rank(done[learner.name], rules.by))
        if not alive:
            raise failure or _nobody(*next((n, s.problem) for n, s in done.items()))
        alive = alive if last else alive[: max(_FINALISTS, math.ceil(len(alive) / 2))]
    ordered = sorted(done.values(), key=lambda s: (-s.images, *rank(s, rules.by)))
    return Halved(tuple(ordered), answers[ordered[0].name])


def rank(standing: Standing, by: str) -> tuple[bool, float, float]:
    """Sorts the better candidate first; one with a problem comes last."""
    keys = (standing.loss, -standing.score) if by == "loss" else (-standing.score, standing.loss)
    return (bool(standing.problem), *keys)


def growing(labels: Indices, rows: Indices, rules: Halving) -> list[Indices]:
    """The rows of every round, each within the next and the last one ``rows``: of every class, or
    combination of labels, the same share, but no fewer than ten of a class, or with a label and
    without it, where there are so many."""
    measure = measure_of(labels.ndim == 2)
    drawn = np.random.default_rng(derive("rounds", rules.seed))
    strata = [drawn.permutation(rows[some]) for some in measure.strata(labels[rows])]
    sides = [drawn.permutation(rows[some]) for some in measure.sides(labels[rows])]
    rounds: list[Indices] = []
    for number in range(rules.rungs):
        share = 2.0 ** (number + 1 - rules.rungs)
        parts = [m[: max(measure.fewest, math.ceil(len(m) * share))] for m in strata]
        part = np.unique(np.concatenate([*parts, *rounds[-1:]]))
        for some in sides:
            more = max(0, LEAST - np.isin(some, part).sum())
            part = np.union1d(part, np.setdiff1d(some, part, assume_unique=True)[:more])
        if not rounds or len(part) > len(rounds[-1]):
            rounds.append(part)
    return rounds


def _nobody(name: str, problem: str) -> DataError:
    what = f"no candidate can be judged; {name}: {problem}"
    return DataError("choose", what, "add images of each class, or other choose.sources", 67)


def _standing(
    name: str, learned: Learned, labels: Indices, fold_of: Indices, measure: Measure
) -> Standing:
    held = fold_of >= 0
    z = learned.held_out[held]
    if not (np.isfinite(z).all() and np.isfinite(learned.answers).all()):
        return Standing(name, len(labels), problem="its answers are NaN or Inf")
    made = measure.of(z, labels[held], fold_of[held])
    if math.isnan(made.score):
        return Standing(name, len(labels), problem=measure.nothing)
    ci95 = measure.interval(made.score, made.each, len(z), len(made.each))
    return Standing(name, len(labels), len(z), made.loss, made.score, ci95, right=made.right)


@dataclass(frozen=True)
class Round:
    """One draw of the outer folds, fold by fold: the accuracy or mAP of a winner on images that it
    had not seen (NaN where these cannot be ranked), how many those are, what the winner was called,
    and what its inner cross-validation had promised."""

    scores: tuple[float, ...]
    sizes: tuple[int, ...]
    winners: tuple[str, ...]
    promised: tuple[float, ...]


@dataclass(frozen=True)
class Worth:
    """What choosing is worth: the mean accuracy or mAP of its winners on images that chose nothing,
    with its 95 % interval, ``None`` where one score alone is known; ``optimism`` is by how much the
    winners' inner cross-validation had promised more; ``n`` images were held out, ``folds`` at a
    time, ``repeats`` times; ``winners`` says how often each candidate won."""

    score: float
    ci95: tuple[float, float] | None
    optimism: float
    n: int
    folds: int
    repeats: int
    winners: dict[str, int]


def judge(learners: Sequence[Learner], labels: Indices, rules: Halving, number: int) -> Round:
    """Judge the choosing on outer folds, drawn for the ``number``-th time (from 0); ``labels``
    int64 (n,), or (n, classes), are those of all images that may be learnt from."""
    every, seed = np.arange(len(labels)), derive("outer", rules.seed, number)
    measure = measure_of(labels.ndim == 2)
    fold_of = rules.folds_of(measure, labels, every, seed)
    scores, sizes, winners, promised = [], [], [], []
    for k in np.unique(fold_of[fold_of >= 0]):
        test = every[fold_of == k]
        inner = replace(rules, seed=derive("inner", seed, int(k)))
        halved = halve(learners, labels, every[fold_of != k], test, inner)
        scores.append(measure.of(halved.answers, labels[test], np.zeros(len(test), np.int64)).score)
        sizes.append(len(test))
        winners.append(halved.winner.name)
        promised.append(halved.winner.score)
    return Round(tuple(scores), tuple(sizes), tuple(winners), tuple(promised))


def worth(rounds: Sequence[Round], measure: Measure) -> Worth | None:
    """What the ``rounds`` say together; ``None`` where no fold could be scored."""
    score = measure.mean([done.scores for done in rounds], [done.sizes for done in rounds])
    if math.isnan(score):
        return None
    n, outer = sum(rounds[0].sizes), len(rounds[0].winners)
    promised = float(np.mean([p for done in rounds for p in done.promised]))
    ci95 = measure.interval(score, [s for done in rounds for s in done.scores], n, outer)
    named = dict(Counter(name for done in rounds for name in done.winners).most_common())
    return Worth(score, ci95, promised - score, n, outer, len(rounds), named)
