"""The convex problem of a plan's linear head, on features: of one label an image, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xfer.core.errors import plural
from xfer.core.live_line import counted
from xfer.core.text_columns import Picked
from xfer.core.types import Plain, Predictions
from xfer.evaluation.multilabel_metrics import label_values
from xfer.evaluation.task import Multilabel
from xfer.training import logistic
from xfer.training.cross_validation import HeadProblem
from xfer.training.multilabel_logistic import LabelHeads, LabelRows

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.core.types import Samples
    from xfer.plan.plan import Plan
    from xfer.training.loss import CrossEntropy
    from xfer.training.optim import Exact

    Matrix = npt.NDArray[Any]
    Labels = npt.NDArray[np.int64]

Heads: TypeAlias = HeadProblem | LabelHeads
SolvedRows: TypeAlias = logistic.TrainingRows | LabelRows


def problem_of(
    plan: Plan,
    views: Sequence[Matrix],
    evaluated: Matrix,
    train: Samples,
    options: Exact,
    loss: CrossEntropy,
) -> Heads:
    """The head of ``plan`` to solve on ``views`` (n, d) of the images of ``train``, each judged as
    it is ``evaluated``."""
    strengths = logistic.STRENGTHS if options.l2 == "auto" else (options.l2,)
    specs = plan.specs
    balanced = specs.data is not None and specs.data.sampler == "balanced"
    if isinstance(specs.task, Multilabel):
        weigh = partial(specs.task.positive_weights, loss)
        smoothing, parts = loss.label_smoothing, options.folds
        how = (weigh, smoothing, strengths, parts, specs.seed)
        return LabelHeads(views, evaluated, train.labels, *how, train.groups, balanced)
    return HeadProblem(
        views,
        evaluated,
        train.labels,
        train.groups,
        len(plan.card.classes),
        loss.weights,
        balanced,
        loss.label_smoothing,
        strengths,
        options.folds,
        specs.seed,
    )


def held_out_answers(
    plan: Plan, held_out: npt.NDArray[np.float32], train: Samples
) -> tuple[Predictions, Plain]:
    """What each training image is taken for by the fit that had not seen it, of the logits
    ``held_out`` (n, classes), NaN where there is none; and how many were and were not: of several
    labels with the mean average precision."""
    held = np.isfinite(held_out).all(axis=1)
    names, labels, logits = train.names, train.labels, held_out
    if not held.all():  # else nothing is copied
        names, labels, logits = Picked(names, np.flatnonzero(held)), labels[held], logits[held]
    answers = Predictions(names, logits, labels, plan.card.classes, task=plan.card.task)
    counts: Plain = {"n": int(held.sum()), "left_in": int((~held).sum())}
    if plan.specs.task.several:
        counts["cv_map"] = label_values(logits, labels)["map"]
    return answers, counts


def solution_of(
    problem: Heads, members: Labels | None = None, folds: Labels | None = None
) -> tuple[SolvedRows, logistic.Solution]:
    """The rows of a problem on the images at ``members`` (n,), or on all, and the path of its
    solutions; ``folds`` (n,) stand in place of those that it would draw."""
    rows = problem.rows(members)
    rows = rows if folds is None else replace(rows, folds=folds)
    return rows, logistic.solve(rows, problem.strengths)


def out_of_fold(problem: Heads, folds: Labels) -> npt.NDArray[np.float32]:
    """Logits of every image by the fit on the other folds, float32 (repeats, n, classes).

    ``folds`` int64 (repeats, n): the fold that an image is in. Raises as
    :meth:`xfer.training.cross_validation.HeadProblem.rows`.
    """
    logits = np.empty((*folds.shape, problem.classes), np.float32)
    turns = [(i, fold) for i, row in enumerate(folds) for fold in np.unique(row).tolist()]
    for repeat, fold in counted(turns, "cross-validation", len(turns)):
        held = folds[repeat] == fold
        # The table has six digits of a probability: the final model alone needs more.
        rows = problem.rows(np.flatnonzero(~held), repeat, fold)
        solution = logistic.solve(rows, problem.strengths, nearly=True)
        best = solution.path[solution.best]
        logits[repeat, held] = problem.held[held] @ best.weight.T + best.bias
    return logits


def summary_of(facts: Plain) -> str:
    """One line for the log, of what ``result.json`` says of the solution."""
    chosen = facts["chosen_by"] == "cv_loss"
    how = f"chosen from {facts['strengths']} strengths by" if chosen else "in"
    were, its = ("was", "its") if facts["left_in"] == 1 else ("were", "their")
    left = f"; {plural(facts['left_in'], 'image')} alone in a class {were} never held out"
    if "cv_map" in facts:
        left = f"; {plural(facts['left_in'], 'image')} {were} never held out: no other has "
        left += f"one of {its} labels"
    l2 = float(f"{facts['l2']:.2g}")
    if not facts["n"]:
        alone = "no training image was held out, since each is alone in its class"
        return f"solved: l2 {l2:g}; {alone}"
    return (
        f"solved: l2 {l2:g}, {how} {facts['folds']} folds of the training images: "
        f"loss {facts['cv_loss']:.4f}, {held_out_score(facts)} on {facts['n']} held out"
        f"{left if facts['left_in'] else ''}"
    )


def held_out_score(facts: Plain) -> str:
    """The score of held-out images in words: the accuracy, or of several labels an image mAP."""
    return f"mAP {facts['cv_map']:.4f}" if "cv_map" in facts else f"accuracy {facts['cv_acc']:.4f}"
