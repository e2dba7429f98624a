"""Whether a mirrored image still means what it meant, asked of the images that train.

Fits that have not seen an image answer it as it is and mirrored. Where mirroring changes nothing,
the two are exchangeable, whatever the classes and the network: half are answered worse.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xfer.core.log import log
from xfer.core.protocols import Undecided
from xfer.core.types import Plain
from xfer.plan.auto import MIRRORED_WORSE
from xfer.plan.plan import Plan
from xfer.training.exact import Solved, inputs
from xfer.training.features.extract import MIRRORED, PartlyFrozen
from xfer.training.features.feature_loader import CachedFeatures
from xfer.training.head_problem import solution_of
from xfer.training.logistic import judged


def asks(plan: Plan) -> bool:
    """Whether images are flipped because nothing else was asked for, one label an image."""
    return isinstance(plan.asked.augment, Undecided) and not plan.specs.task.several


def mirroring(frozen: PartlyFrozen, cached: CachedFeatures, solved: Solved) -> Plain:
    """How the ``n`` training images that were held out are answered mirrored: with more loss how
    many (``worse``), how accurately (``mirrored_acc``, beside ``acc``), ``p`` of an exact sign test
    (:data:`xfer.plan.auto.MIRRORED_WORSE`), and whether the fit ``flips`` images after that."""
    from scipy.stats import binomtest

    cached.train[MIRRORED] = cached.view("train", MIRRORED)
    flipped = inputs(frozen, cached, solved.layer, "train", MIRRORED)
    strength = solved.solution.path[solved.solution.best].l2
    problem = replace(solved.problem, held=flipped, strengths=(strength,))
    rows, solution = solution_of(problem)
    seen = np.flatnonzero(rows.folds >= 0)
    if not (n := len(seen)):
        return {}
    labels = cached.work.splits["train"].labels
    losses, right = judged(solved.solution.held_out, labels, seen)
    mirrored, still = judged(solution.held_out, labels, seen)
    worse, acc, then = int((mirrored > losses).sum()), float(right.mean()), float(still.mean())
    share, level = MIRRORED_WORSE
    p = float(binomtest(worse, n, share, alternative="greater").pvalue)
    said = "no flips; augment=light flips" if p < level else "images are flipped"
    log.info(
        f"mirrored, {worse} of {n} held-out images are answered worse, with accuracy {then:.4f} "
        f"for {acc:.4f}: {said}"
    )
    return {"n": n, "worse": worse, "acc": acc, "mirrored_acc": then, "p": p, "flips": p >= level}


def heeding(plan: Plan, found: Plain) -> Plan:
    """``plan`` without the flips that ``found``, by :func:`mirroring`, leaves out."""
    if found.get("flips", True):
        return plan
    augment = replace(plan.specs.augment, flip=0.0)  # type: ignore[type-var]
    return replace(plan, specs=replace(plan.specs, augment=augment))
