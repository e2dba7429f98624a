"""Multinomial logistic regression solved to its optimum, its L2 strength by cross-validation.

The problem is convex: one answer, no learning rate. Features are standardised, so that one
strength means the same on every network; the steps are taken along their principal axes, each
scaled by the curvature there, which is what makes L-BFGS (Nocedal, 1980) arrive in tens of steps
on features that are nearly collinear. Solutions are followed from the strongest penalty to the
weakest (Friedman et al., 2010), each from where those before it lead (Park and Hastie, 2007).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xfer.core.long_array import zeros
from xfer.evaluation.calibration import log_losses
from xfer.training.principal_axes import SMALL, Axes, Rows

if TYPE_CHECKING:
    from xfer.training.soft_targets import SoftTargets

    Matrix = npt.NDArray[Any]

STRENGTHS = tuple(10 ** (2 - i / 2) for i in range(13))
"""The penalties that are tried: half the squared weights times this, beside the mean loss."""
MANY_FOLDS = 20
"""Into so many parts the images of a small problem are put to say how sure a solution may be."""
_WEAKEST = 1e-9
_PATIENCE = 3  # strengths in a row that are worse than the best end the path
_ANSWERS = 1 << 13  # images that are judged at a time


@dataclass(frozen=True)
class TrainingRows:
    """Training features and what is known of each image, all in one order.

    ``views`` are arrays (n, d), one a view; ``held`` is the view that a held-out image is judged
    by. ``labels`` int64 (n,); ``weights`` float64 (n,) how often an image counts. The loss is
    torch's cross-entropy with ``class_weights`` float64 (classes,) and ``smoothing``, the share
    of each target that is spread over all classes. ``folds`` int64 (n,): the fold that holds an
    image out, -1 for none. ``soft`` is what a teacher answers, and takes its weight from the rest.
    """

    views: Sequence[Matrix]
    held: Matrix
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    class_weights: npt.NDArray[np.float64]
    smoothing: float
    folds: npt.NDArray[np.int64]
    soft: SoftTargets | None = None

    @property
    def targets(self) -> npt.NDArray[np.float64]:
        """(classes, classes): row y is what the log-probabilities of an image of class y are
        multiplied by."""
        count = len(self.class_weights)
        share = (1 - self.smoothing) * np.eye(count) + self.smoothing / count
        return np.asarray(share * self.class_weights)

    @property
    def counts(self) -> npt.NDArray[np.float64]:
        """What each image counts in the mean of the loss, (n,)."""
        return np.asarray(self.weights * self.class_weights[self.labels])

    def problem(self) -> Axes:
        """The loss of a head for these images."""
        return Problem(self)

    def divided(self, count: int, seed: int) -> TrainingRows:
        """The same in ``count`` other folds, drawn from ``seed``."""
        return replace(self, folds=folds(self.labels, count, seed))


@dataclass(frozen=True)
class Strength:
    """One strength of the path: the penalty, the mean loss and accuracy of held-out images, the
    training loss of the solution on all images, steps and seconds that it took, and that
    solution: ``weight`` float64 (classes, d) and ``bias`` (classes,), for features as they are."""

    l2: float
    cv_loss: float
    cv_acc: float
    train_loss: float
    steps: int
    seconds: float
    weight: npt.NDArray[np.float64] = field(repr=False)
    bias: npt.NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True)
class Solution:
    """The path in the order of its strengths, the position of the ``best`` one, and the logits
    of every image by the fit that had not seen it: float32 (n, classes), NaN where no fold held
    the image out."""

    path: list[Strength]
    best: int
    held_out: npt.NDArray[np.float32]


def solve(
    rows: Rows,
    strengths: Sequence[float] = STRENGTHS,
    nearly: bool = False,
) -> Solution:
    """The head of least cross-validated loss; ``nearly`` at its optimum, to a part in 1e9 of the
    loss, which takes fewer steps. Of several ``strengths`` each is the same part of the one before.

    The path continues below the last of several ``strengths`` while the loss still falls, and ends
    early once it has risen for three strengths.
    """
    problem = rows.problem()
    ks: list[int | None] = [int(k) for k in np.unique(problem.folds) if k >= 0]
    before: dict[int | None, list[Matrix]] = {k: [] for k in (*ks, None)}
    path: list[Strength] = []
    best, best_held_out = 0, np.empty((0, 0), np.float32)
    with problem.threads():
        for l2 in _falling(strengths, path):
            began, steps = time.perf_counter(), 0
            held_out = zeros((len(problem.held), problem.classes), np.float32)
            held_out[:] = np.nan
            for fold in (*ks, None):
                theta, count = problem.minimum(l2, fold, _ahead(before[fold]), nearly)
                before[fold], steps = [*before[fold][-2:], theta], steps + count
                if fold is not None:
                    problem.answer(theta, fold, held_out)
            loss, acc = problem.judged(held_out)
            weight, bias = problem.head(theta)
            train = problem.mean_loss(theta)
            seconds = time.perf_counter() - began
            path.append(Strength(l2, loss, acc, train, steps, seconds, weight, bias))
            if len(path) == 1 or loss < path[best].cv_loss:
                best, best_held_out = len(path) - 1, held_out
    return Solution(path, best, best_held_out)


def _ahead(before: Sequence[Matrix]) -> Matrix | None:
    """Where the next solution is looked for: on the parabola through up to three ``before`` it,
    whose strengths fall by one factor. That halves the steps."""
    if not before:
        return None
    weights = ((1,), (-1, 2), (1, -3, 3))[len(before) - 1]
    return np.asarray(sum(w * theta for w, theta in zip(weights, before, strict=True)))


def held_out(
    rows: Rows, solution: Solution, seed: int | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The logits (n, classes) of every image by a fit at the best strength that had not seen it,
    NaN for one that is never held out, and the fold of each (n,): of a small problem in
    :data:`MANY_FOLDS` folds drawn from ``seed``, else, or without one, those of ``solution``.

    Fits of four fifths of few images are less sure of what they answer, and more often wrong, than
    that of all of them, which a temperature would take for its own.
    """
    count = len(rows.views) * len(rows.labels)
    if seed is None or count * min(count, rows.held.shape[1]) > SMALL:
        return solution.held_out, rows.folds
    rows = rows.divided(MANY_FOLDS, seed)
    fold_of, problem = rows.folds, rows.problem()
    best = solution.path[solution.best]
    logits = np.full((len(rows.labels), problem.classes), np.nan, np.float32)
    with problem.threads():
        start, _ = problem.minimum(best.l2, None, None)
        for fold in range(int(fold_of.max(initial=-1)) + 1):
            theta, _ = problem.minimum(best.l2, fold, start)
            problem.answer(theta, fold, logits)
    return logits, fold_of


def _falling(strengths: Sequence[float], path: list[Strength]) -> Iterator[float]:
    """The next strength to try, as long as one weaker may be better than those in ``path``."""
    l2 = strengths[0]
    while True:
        yield l2
        if len(strengths) == 1:
            return  # it was given, and nothing is looked for
        losses = [row.cv_loss for row in path]
        since = len(losses) - 1 - int(np.argmin(losses))
        known = strengths[len(path)] if len(path) < len(strengths) else l2 / math.sqrt(10)
        weaker = known >= _WEAKEST and (len(path) < len(strengths) or since == 0)
        if since >= _PATIENCE or not weaker or not math.isfinite(losses[-1]):
            return
        l2 = known


def judged(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seen: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The log loss of each image at ``seen`` (m,), of ``logits`` (n, classes) and ``labels`` (n,),
    and whether its answer is right."""
    losses, right = np.empty(len(seen)), np.empty(len(seen), np.bool_)
    for start in range(0, len(seen), _ANSWERS):
        some = seen[start : start + _ANSWERS]
        z, truth = logits[some].astype(np.float64), labels[some]
        losses[start : start + len(some)] = log_losses(z, truth)
        right[start : start + len(some)] = z.argmax(axis=1) == truth
    return losses, right


def folds(labels: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Stratified folds, 0 to ``count`` - 1, drawn from ``seed``: every class is spread evenly.

    A class with one image is never held out (-1): no fit could know it then.
    """
    fold_of = np.full(len(labels), -1, np.int64)
    drawn = np.random.default_rng(seed)
    turn = 0
    for label in np.unique(labels):
        members = drawn.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            # Each class begins where the last one ended, so that the folds are equally large.
            fold_of[members] = (turn + np.arange(len(members))) % count
            turn += len(members)
    return fold_of


class Problem(Axes):
    """The loss of a linear head of one label an image, and its gradient."""

    def __init__(self, rows: TrainingRows) -> None:
        self.rows, self.targets = rows, rows.targets
        self._known: tuple[Matrix | None, dict[int, Matrix]] = (None, {})
        super().__init__(rows.views, rows.held, rows.folds, len(rows.class_weights))

    @property
    def curvature(self) -> Matrix:
        """That of equal probabilities, in the mean over the classes."""
        return np.asarray((1 - 1 / self.classes) / self.classes)

    def judged(self, held_out: npt.NDArray[np.float32]) -> tuple[float, float]:
        """Weighted mean log loss and plain accuracy; NaN of none."""
        rows, seen = self.rows, np.flatnonzero(self.rows.folds >= 0)
        if not len(seen):
            return math.nan, math.nan
        losses, right = judged(held_out, rows.labels, seen)
        return float(np.average(losses, weights=rows.counts[seen])), int(right.sum()) / len(seen)

    def shares(self, fold: int | None) -> npt.NDArray[np.float64]:
        """What each image counts in the mean: nothing where ``fold`` holds it out."""
        rows = self.rows
        inside = 1.0 if fold is None else rows.folds != fold
        total = float((rows.counts * inside).sum()) * len(rows.views)
        return np.asarray(rows.weights * inside / total)

    def _target(self, shares: Matrix, part: slice) -> Matrix:
        """What the log-probabilities of the images ``part`` are multiplied by, (classes, m); of a
        small problem remembered, since it is the same at every step."""
        if self._known[0] is not shares:
            self._known = (shares, {})
        known, rows = self._known[1], self.rows
        if (target := known.get(part.start)) is None:
            hard = 1.0 if rows.soft is None else 1 - rows.soft.weight
            share: Matrix = shares[part, None].astype(self.dtype)
            target = (hard * share * self.targets[rows.labels[part]].astype(self.dtype)).T.copy()
            if self.small:
                known[part.start] = target
        return target

    def slopes(
        self, view: int, part: slice, z: Matrix, head: tuple[Matrix, Matrix], shares: Matrix
    ) -> tuple[float, Matrix]:
        """See :meth:`xfer.training.principal_axes.Axes.slopes`."""
        # A row a class: few classes are summed image beside image then, many at once.
        (weight, bias), target = head, self._target(shares, part)
        logits = weight @ z.T
        logits += bias[:, None]
        logits -= logits.max(axis=0)
        odds = np.exp(logits)
        sums = odds.sum(axis=0)
        logits -= np.log(sums)
        total = -float(np.vdot(target, logits))
        odds *= target.sum(axis=0) / sums
        odds -= target
        if self.rows.soft is not None:  # the log-probabilities are logits as good as any
            # Weights of classes are of the labels' part alone.
            apart = 1 / (float(shares.sum()) * len(self.rows.views))
            whole: Matrix = shares[part, None].astype(self.dtype)
            total += self.rows.soft.add(view, part, logits.T, apart * whole, odds.T)
        return total, odds
