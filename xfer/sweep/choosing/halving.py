"""Successive halving over candidates, each judged on images that it has not seen.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization"
(2016): all candidates are tried on few images, the better half on twice as many, and so on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from xfer.core.errors import DataError, XferError
from xfer.core.seeds import derive
from xfer.training.logistic import folds as stratified

if TYPE_CHECKING:
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]
    Logits = npt.NDArray[np.float32]
    Held = npt.NDArray[np.bool_]

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
    folds held out ``n`` with this mean log loss and accuracy. ``problem`` is why it was dropped
    for another reason than its score; ``right`` bool (n,) is by image of that round."""

    name: str
    images: int = 0
    n: int = 0
    loss: float = math.inf
    acc: float = 0.0
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
                standing = _standing(learner.name, learned, labels[part], fold_of >= 0)
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


def _standing(name: str, learned: Learned, labels: Indices, held: Held) -> Standing:
    z, truth = learned.held_out[held].astype(np.float64), labels[held]
    if not len(z):
        return Standing(name, len(labels), problem="no class has a second image to hold out")
    if not (np.isfinite(z).all() and np.isfinite(learned.answers).all()):
        return Standing(name, len(labels), problem="its answers are NaN or Inf")
    top = z.max(axis=1)
    losses = top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(z)), truth]
    right = z.argmax(axis=1) == truth
    return Standing(
        name, len(labels), len(z), float(losses.mean()), float(right.mean()), right=right
    )
