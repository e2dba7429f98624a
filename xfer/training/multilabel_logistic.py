"""Logistic regression of several labels an image: one convex problem a class, solved together.

Each class is a yes or no of its own, so that its solution is that of its images alone: those whose
label is unknown have no part in it. What the classes share is computed once: the moments of the
features, their principal axes, and the strength of the penalty.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xfer.core.seeds import derive
from xfer.data.folds import as_many_as_groups
from xfer.data.multilabel_rows import label_odds
from xfer.evaluation.multilabel_metrics import label_losses
from xfer.training import logistic
from xfer.training.cross_validation import refuse_blind
from xfer.training.principal_axes import Axes

if TYPE_CHECKING:
    from xfer.training.soft_targets import SoftTargets

    Matrix = npt.NDArray[Any]
    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelRows:
    """Training features and the labels of each image, all in one order.

    ``views`` are arrays (n, d), one a view; ``held`` is the view that a held-out image is judged
    by. ``labels`` int64 (n, classes) of 1, 0 and -1 for unknown; ``weights`` float64 (classes,)
    what a label that an image has weighs; ``smoothing`` the share of each target that is moved
    half-way to the other answer. ``folds`` int64 (n,): the fold that holds an image out, -1 for
    none. ``often`` float64 (n,) is how often an image counts. ``soft`` is what a teacher answers,
    and takes its weight from the rest.
    """

    views: Sequence[Matrix]
    held: Matrix
    labels: Ints
    weights: Floats
    smoothing: float
    folds: Ints
    often: Floats
    soft: SoftTargets | None = None

    @property
    def targets(self) -> Floats:
        """What the losses of yes and of no are multiplied by, (n, classes): see :attr:`others`."""
        has = (self.labels == 1) * (1 - self.smoothing) + self.smoothing / 2
        return np.asarray(has * self.weights)

    @property
    def others(self) -> Floats:
        """The same of no."""
        return np.asarray((self.labels != 1) * (1 - self.smoothing) + self.smoothing / 2)

    def problem(self) -> Axes:
        """The loss of a head for these images."""
        return LabelProblem(self)

    def divided(self, count: int, seed: int) -> LabelRows:
        """The same in ``count`` other folds, drawn from ``seed``."""
        return replace(self, folds=label_folds(self.labels, count, seed))


class LabelProblem(Axes):
    """The sum over the classes of the mean binary cross-entropy of their known labels, penalised:
    the least of it is the least of every class."""

    def __init__(self, rows: LabelRows) -> None:
        self.rows, self.yes, self.no = rows, rows.targets, rows.others
        super().__init__(rows.views, rows.held, rows.folds, rows.labels.shape[1])

    @property
    def curvature(self) -> Matrix:
        """That of the share of images that have the label, (classes, 1)."""
        known, has = (self.rows.labels >= 0).sum(axis=0), (self.rows.labels == 1).sum(axis=0)
        share = (has + 1) / (known + 2)
        weighed = share * self.rows.weights
        # Of the weighted share, so that scale and weights go together.
        return np.asarray(weighed * (1 - share) / (weighed + 1 - share) * (1 + weighed))[:, None]

    def shares(self, fold: int | None) -> Floats:
        """What each label counts in the mean of its class, (n, classes): nothing where it is
        unknown or held out by ``fold``. A class of which one side is left alone has no solution,
        and counts nothing there.

        Where there is a teacher a column more, (n, classes + 1), has what each image counts in its
        part, whatever of it is known."""
        rows = self.rows
        inside = rows.labels >= 0
        if fold is not None:
            inside &= (rows.folds != fold)[:, None]
        sides = [(inside & (rows.labels == side)).any(axis=0) for side in (0, 1)]
        counted = inside * (sides[0] & sides[1]) * rows.often[:, None]
        # As in torch's binary cross-entropy, a weight does not count in the number of labels.
        total = counted.sum(axis=0) * len(rows.views)
        shares = np.asarray(counted / np.where(total > 0, total, 1))
        if rows.soft is None:
            return shares
        asked = rows.often if fold is None else rows.often * (rows.folds != fold)
        asked = asked / (asked.sum() * len(rows.views))
        return np.column_stack([(1 - rows.soft.weight) * shares, asked])

    def slopes(
        self, view: int, part: slice, z: Matrix, head: tuple[Matrix, Matrix], shares: Matrix
    ) -> tuple[float, Matrix]:
        """See :meth:`xfer.training.principal_axes.Axes.slopes`."""
        (weight, bias), known = head, shares[part, : self.classes]
        yes, no = (known * side[part] for side in (self.yes, self.no))
        logits = z @ weight.T + bias
        below = np.exp(-np.abs(logits))
        far = np.log1p(below)
        total = float((yes * (far + np.maximum(-logits, 0))).sum())
        total += float((no * (far + np.maximum(logits, 0))).sum())
        p = np.where(logits >= 0, 1.0, below) / (1.0 + below)
        slope = ((yes + no) * p - yes).astype(self.dtype)
        if self.rows.soft is not None:
            asked = shares[part, self.classes :].astype(self.dtype)
            total += self.rows.soft.add_labels(view, part, logits, asked, slope)
        return total, slope.T

    def answer(self, theta: Matrix, fold: int, into: npt.NDArray[np.float32]) -> None:
        """Write the logits of the images that ``fold`` holds out; those of a class without a
        solution stay as they are."""
        answered = np.full_like(into, np.nan)
        super().answer(theta, fold, answered)
        # A teacher answers for both sides of every class.
        every = self.rows.soft is not None
        solved = every | (self.shares(fold)[:, : self.classes] > 0).any(axis=0)
        members = self.folds == fold
        into[np.ix_(members, solved)] = answered[np.ix_(members, solved)]

    def judged(self, held_out: npt.NDArray[np.float32]) -> tuple[float, float]:
        """The mean log loss of all known labels that were held out, weighted as in the fit, and the
        share of those images with every known label right; NaN of none."""
        rows = self.rows
        seen = np.isfinite(held_out) & (rows.labels >= 0)
        if not seen.any():
            return math.nan, math.nan
        z = np.where(seen, held_out, 0).astype(np.float64)
        losses = label_losses(z, np.where(seen, rows.labels, -1))
        weights = np.where(rows.labels == 1, rows.weights, 1.0) * seen * rows.often[:, None]
        right = ((z >= 0) == (rows.labels == 1)) | ~seen
        images = seen.any(axis=1)
        return float(np.average(losses, weights=weights)), float(right[images].all(axis=1).mean())

    def mean_loss(self, theta: Matrix) -> float:
        """The mean over the classes of the training loss, not penalised."""
        return super().mean_loss(theta) / self.classes


@dataclass(frozen=True)
class LabelHeads:
    """A linear head to solve, a row a class, and the images that it may be solved on; ``weigh``
    gives what a label that an image has weighs, a class, of the labels of the images that are
    solved on. ``strengths`` are tried by ``parts`` inner folds, drawn from ``seed``, in which the
    images of one of the ``groups``, where there are some, are held out together. Where
    ``balanced``, an image counts as often as :func:`label_odds` of those that are solved on has
    it. ``soft`` is what a teacher answers to these images, view by view."""

    views: Sequence[Matrix]
    held: Matrix
    labels: Ints
    weigh: Callable[[Ints], Sequence[float]]
    smoothing: float
    strengths: tuple[float, ...]
    parts: int
    seed: int
    groups: Sequence[str] = ()
    balanced: bool = False
    soft: SoftTargets | None = None

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return int(self.labels.shape[1])

    def rows(self, members: Ints | None = None, *position: int) -> LabelRows:
        """The problem on the images at ``members``, or on all, with its folds; ``position`` is of
        its random numbers, beside the seed. Raises CombinationError as
        :func:`xfer.training.cross_validation.refuse_blind`."""
        every = members is None
        labels = self.labels if members is None else self.labels[members]
        chosen = range(len(labels)) if members is None else members.tolist()
        groups = [self.groups[i] for i in chosen] if self.groups else None
        folds = label_folds(labels, self.parts, derive("folds", self.seed, *position), groups)
        refuse_blind(self.strengths, folds)
        weights = np.array(self.weigh(labels), np.float64)
        views = self.views if every else [view[members] for view in self.views]
        held = self.held if every else self.held[members]
        soft = self.soft
        if soft is not None and members is not None:
            soft = soft.of(members)
        often = label_odds(labels) if self.balanced else np.ones(len(labels))
        return LabelRows(views, held, labels, weights, self.smoothing, folds, often, soft)


def label_folds(labels: Ints, count: int, seed: int, groups: Sequence[str] | None = None) -> Ints:
    """Folds in which every combination of labels is spread evenly, int64 (n,) from 0 on; rare
    combinations are spread together. What is in one of the ``groups`` is in one fold: then they are
    no more than these, and -1 where there are no two."""
    codes = combinations(labels, count)
    if groups is not None:
        return as_many_as_groups(codes, groups, count, seed)
    return logistic.folds(codes, count, seed)


def combinations(labels: Ints, least: int) -> Ints:
    """A number an image, int64 (n,), the same for equal ``labels`` (n, classes): 0 for those that
    fewer than ``least`` images have."""
    texts = [row.tobytes() for row in np.ascontiguousarray(labels, np.int8)]
    counts = Counter(texts)
    order = {text: i for i, text in enumerate(sorted(counts), 1) if counts[text] >= least}
    return np.array([order.get(text, 0) for text in texts], np.int64)
