"""Whether mirrored and cropped images still mean what they meant, asked of the images that train.

Fits that have not seen an image answer it as it is, mirrored and cropped. Where mirroring changes
nothing, the two are exchangeable, whatever the classes and the network: half are answered worse. A
crop always shows less, so that of crops what counts is how many are no longer answered right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.log import log
from xfer.core.protocols import Undecided
from xfer.core.types import Plain
from xfer.data.augment import Plain as NoAugment
from xfer.plan.auto import CROPPED_FEWER, MIRRORED_WORSE
from xfer.plan.plan import Plan
from xfer.training.exact import Solved, inputs
from xfer.training.features.extract import MIRRORED, PartlyFrozen
from xfer.training.features.feature_loader import CachedFeatures
from xfer.training.head_problem import SolvedRows, solution_of
from xfer.training.logistic import judged

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float32]
    Losses = npt.NDArray[np.float64]
    Right = npt.NDArray[np.bool_]


def asks(plan: Plan) -> bool:
    """Whether images are flipped and cropped because nothing else was asked for, one label an
    image."""
    return isinstance(plan.asked.augment, Undecided) and not plan.specs.task.several


def verdicts(plan: Plan, frozen: PartlyFrozen, cached: CachedFeatures, solved: Solved) -> Plain:
    """What the training images that were held out say of the views that ``plan`` trains on:
    ``mirroring`` and ``cropping``; nothing where none was held out.

    Of both: how many images were asked (``n``) and how accurately they are answered as they are
    (``acc``). Of mirroring: with more loss how many (``worse``), how accurately (``mirrored_acc``),
    ``p`` of an exact sign test (:data:`xfer.plan.auto.MIRRORED_WORSE`) and whether the fit
    ``flips``. Of cropping: how many are right no longer (``lost``) or only then (``gained``), how
    accurately (``cropped_acc``), ``p`` of McNemar's exact test
    (:data:`xfer.plan.auto.CROPPED_FEWER`) and whether the fit ``crops``.
    """
    cached.train[MIRRORED] = cached.view("train", MIRRORED)
    mirrored = inputs(frozen, cached, solved.layer, "train", MIRRORED)
    labels = cached.work.splits["train"].labels
    rows, flipped = _held_out(solved, mirrored)
    seen = np.flatnonzero(rows.folds >= 0)
    if not len(seen):
        return {}
    whole = judged(solved.solution.held_out, labels, seen)
    _, cropped = _held_out(solved, _crops(plan, frozen, cached, solved))
    return {
        "mirroring": mirroring(*whole, *judged(flipped, labels, seen)),
        "cropping": cropping(whole[1], judged(cropped, labels, seen)[1]),
    }


def _held_out(solved: Solved, held: Matrix) -> tuple[SolvedRows, Matrix]:
    """The rows, and what each of them in the view ``held`` is answered by the fit without it."""
    strength = solved.solution.path[solved.solution.best].l2
    rows, solution = solution_of(replace(solved.problem, held=held, strengths=(strength,)))
    return rows, solution.held_out


def _crops(plan: Plan, frozen: PartlyFrozen, cached: CachedFeatures, solved: Solved) -> Matrix:
    """What enters the head for the first crop of each training image that ``plan`` would draw."""
    crops = cached.work.drawing(replace(plan.specs.augment, flip=0.0))  # type: ignore[type-var]
    drawn = CachedFeatures(crops, cached.cut)
    drawn.train[0] = drawn.view("train", 0)
    return inputs(frozen, drawn, solved.layer, "train", 0)


def mirroring(losses: Losses, right: Right, mirrored: Losses, still: Right) -> Plain:
    """The verdict of the losses of images that were held out, and which of them are ``right``, as
    they are and ``mirrored``."""
    from scipy.stats import binomtest

    n, worse = len(losses), int((mirrored > losses).sum())
    acc, then = float(right.mean()), float(still.mean())
    share, level = MIRRORED_WORSE
    p = float(binomtest(worse, n, share, alternative="greater").pvalue)
    said = "no flips; augment=light flips" if p < level else "they may be flipped"
    log.info(
        f"mirrored, {worse} of {n} held-out images are answered worse, with accuracy {then:.4f} "
        f"for {acc:.4f}: {said}"
    )
    return {"n": n, "worse": worse, "acc": acc, "mirrored_acc": then, "p": p, "flips": p >= level}


def cropping(right: Right, still: Right) -> Plain:
    """The verdict of which images that were held out are ``right`` as they are, and which
    ``still`` as crops."""
    from scipy.stats import binomtest

    n, acc, then = len(right), float(right.mean()), float(still.mean())
    lost, gained = int((right & ~still).sum()), int((still & ~right).sum())
    share, level = CROPPED_FEWER
    p = float(binomtest(lost, lost + gained, alternative="greater").pvalue) if lost else 1.0
    crops = lost - gained <= share * n or p >= level
    said = "they may be cropped" if crops else "no crops, no flips; augment=light has both"
    log.info(
        f"cropped, {lost} of {n} held-out images are right no longer and {gained} only then, "
        f"accuracy {then:.4f} for {acc:.4f}: {said}"
    )
    facts = {"n": n, "lost": lost, "gained": gained, "acc": acc, "cropped_acc": then, "p": p}
    return {**facts, "crops": crops}


def heeding(plan: Plan, found: Plain) -> Plan:
    """``plan`` as ``found``, by :func:`verdicts`, has it: without flips, or with images as they are
    evaluated, where crops are left out."""
    augment = plan.specs.augment
    if not found.get("cropping", {}).get("crops", True):
        augment = NoAugment()
    elif not found.get("mirroring", {}).get("flips", True):
        augment = replace(augment, flip=0.0)  # type: ignore[type-var]
    else:
        return plan
    return replace(plan, specs=replace(plan.specs, augment=augment))
