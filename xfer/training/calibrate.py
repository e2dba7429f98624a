"""A fitted network whose probabilities are put right: its last layer scaled, its card saying so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xfer.core.log import log
from xfer.core.long_array import copied
from xfer.core.probabilities import sigmoid
from xfer.core.seeds import derive
from xfer.core.types import Card, Plain, Predictions
from xfer.evaluation.calibration import (
    FOLDS,
    Calibrated,
    calibrate,
    cross_fitted,
    fit_temperature,
    fit_vector,
    scaling_of,
)
from xfer.training.logistic import folds, held_out
from xfer.training.multilabel_logistic import label_folds
from xfer.training.optim import Exact
from xfer.weights.formats.checkpoint_format import read_snapshot, write_snapshot

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from xfer.plan.plan import Plan
    from xfer.training.distributed.rendezvous import Lead
    from xfer.training.features.feature_loader import CachedFeatures
    from xfer.training.logistic import Solution, TrainingRows
    from xfer.training.multilabel_logistic import LabelRows

_NEAR = 1e-4  # of the largest logit: how far the scaled network may answer from what was fitted
_TRIED = 64


def calibrate_solved(
    plan: Plan, net: nn.Module, rows: TrainingRows | LabelRows, solution: Solution, grouped: bool
) -> Card:
    """Calibrate the solved head of ``net``, in place, on the logits of each training image by a
    fit of the others; of images that are ``grouped``, by those folds of ``solution`` that keep
    groups together. The card that says so.

    One scaling for the head of all images, fitted on what other heads answered for images that
    they had not seen, is what scikit-learn's ``CalibratedClassifierCV(ensemble=False)`` does.
    """
    planned, classes = plan.calibration, plan.card.classes
    if planned.method == "none":
        return plan.card
    seed = None if grouped else derive("calibration", plan.specs.seed)
    logits, fold_of = held_out(rows, solution, seed)
    labels, seen = rows.labels, fold_of >= 0
    if not seen.all():  # else nothing is copied
        logits, labels, fold_of = logits[seen], labels[seen], fold_of[seen]
    made = calibrate(logits, labels, fold_of, planned.method, classes, planned.may_shift)
    parts = len(np.unique(fold_of))
    card = _folded(plan, net, made, f"training images held out in {parts} folds")
    if rows.labels.ndim == 1:
        return card
    # Chosen on the same answers as before, which are now scaled.
    scaled = made.scaling.of(solution.held_out)
    return replace(card, task=plan.specs.task.card(scaled, rows.labels, "cv"))


def calibrate_best(plan: Plan, path: Path, cached: CachedFeatures | None, lead: Lead) -> Card:
    """Calibrate the whole checkpoint ``path`` on the validation images, where that was asked for,
    and write it anew; one that is calibrated stays as it is. The card that says so.

    Raises DivergedError for logits that are NaN or Inf.
    """
    if plan.calibration.method == "none":
        return plan.card
    from xfer.models.restore import pieces, restore

    snapshot = read_snapshot(path)
    if snapshot.card.calibration:  # by the run that is resumed, before it was stopped
        return replace(plan.card, calibration=snapshot.card.calibration)
    net = restore(path, snapshot, *pieces(snapshot.card, plan.specs.make)).eval()
    answers = _answers(plan, net, cached, lead)
    labels = plan.split("val").labels
    fold_of = _folds(labels, plan.specs.seed)
    asked, classes = plan.calibration.method, plan.card.classes
    made = calibrate(answers.logits, labels, fold_of, asked, classes)
    card = _folded(plan, net, made, "validation images")
    if labels.ndim == 2:
        card = replace(card, task=_scaled_task(plan, snapshot.card.task, made, answers, labels))
    _check(plan, net, answers, card)
    changed = {f"{layer}.{kind}" for layer in plan.calibration.layers for kind in _KINDS}
    scaled = {name: tensor for name, tensor in net.state_dict().items() if name in changed}
    whole = replace(snapshot.card, calibration=card.calibration, task=card.task)
    write_snapshot(path, replace(snapshot, card=whole, state={**snapshot.state, **scaled}))
    return card


def _folds(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    spread = label_folds if labels.ndim == 2 else folds
    return spread(labels, FOLDS, derive("calibration", seed))


def _scaled_task(
    plan: Plan, task: Plain, made: Calibrated, answers: Predictions, labels: npt.NDArray[np.int64]
) -> Plain:
    """The ``task`` of a card once its logits are scaled: thresholds chosen on val are chosen on
    these ``answers`` anew, those of a cross-validation go with the logits that they belong to."""
    if task["chosen_on"] != "cv":
        return plan.specs.task.card(made.scaling.of(answers.logits), labels, "val")
    cuts = np.array(task["thresholds"], np.float64)
    moved = sigmoid(made.scaling.of(np.log(cuts) - np.log1p(-cuts))[None])[0]
    return {**task, "thresholds": moved.tolist()}


_KINDS = ("weight", "bias")


def _folded(plan: Plan, net: nn.Module, made: Calibrated, images: str) -> Card:
    """The card of ``net``, once what was made is in its last layer; of which ``images``, in
    words."""
    from xfer.models.logit_scale import scale_logits

    # Of answers that chose the penalty the loss before is flattered, and often lower than after.
    chose = isinstance(plan.specs.optim, Exact) and plan.specs.optim.l2 == "auto"
    log.info(_summary(made, images, "the loss, which chose the penalty," if chose else "the loss"))
    for line in made.facts["warnings"]:
        log.warning(line)
    scale_logits(net, plan.calibration.layers, made.scaling.scale, made.scaling.shift)
    facts = {**made.facts, "fitted_on": plan.calibration.fitted_on}
    return replace(plan.card, calibration=facts)


def _summary(made: Calibrated, images: str, loss: str) -> str:
    facts = made.facts
    before, after = facts["before"], facts["after"]
    measured = (
        f"on {facts['n']} {images} the calibration error goes from {before['ece']:.4f} to "
        f"{after['ece']:.4f} ({facts['by_chance']:.4f} is what chance alone leaves), {loss} from "
        f"{before['loss']:.4f} to {after['loss']:.4f}"
    )
    by = "vector scaling"
    if made.scaling.method == "temperature":
        by = f"temperature {facts['temperature']:.3f}"
    return f"calibrated: {by}; {measured}"


def _answers(plan: Plan, net: nn.Module, cached: CachedFeatures | None, lead: Lead) -> Predictions:
    """The logits of the validation images, as one view of each is evaluated."""
    from xfer.training.inference import answer

    one_view = replace(plan.specs, tta="none")
    answered = answer(one_view, plan.card, net, plan.split("val"), cached, lead=lead)
    net.cpu()
    return answered


def _check(plan: Plan, net: nn.Module, before: Predictions, card: Card) -> None:
    """Raise RuntimeError unless ``net`` answers as the logits ``before``, scaled: the plan has
    looked at what comes after the layer."""
    from xfer.evaluation.evaluate import answers

    val = plan.split("val")
    tried = replace(val, names=val.names[:_TRIED], labels=val.labels[:_TRIED], sha256="")
    expected = scaling_of(card.calibration, len(card.classes)).of(before.logits[:_TRIED])
    given = answers(net, tried, card.input, card.classes).logits
    if np.abs(given - expected).max() > _NEAR * max(1.0, np.abs(expected).max()):
        raise RuntimeError("a calibrated network does not answer as its last layer was scaled")


class BeforeAndAfter(NamedTuple):
    """Answers before a network was calibrated and after it; whether each of the latter is scaled
    by what was fitted without that image."""

    before: Predictions
    after: Predictions
    cross_fitted: bool


def before_and_after(
    facts: Plain, answers: Predictions, fitted_on_them: bool, seed: int
) -> BeforeAndAfter | None:
    """The ``answers`` before the network was calibrated, as the ``facts`` of its card say, and
    after it: if that was ``fitted_on_them``, each as scaled by what was fitted without it, in folds
    drawn from the run's ``seed``. ``None`` for a network that is not calibrated, and for the mean
    of several views, which has no such logits."""
    if not facts or answers.views > 1 or answers.labels is None:
        return None
    scaling = scaling_of(facts, len(answers.classes))
    before = scaling.undone(answers.logits)
    earlier = replace(answers, logits=copied(before, np.float32))
    if facts["fitted_on"] != "val" or not fitted_on_them:
        return BeforeAndAfter(earlier, answers, False)
    fold_of = _folds(answers.labels, seed)
    fit = fit_vector if scaling.method == "vector" else fit_temperature
    after = cross_fitted(before, answers.labels, fold_of, fit)
    return BeforeAndAfter(earlier, replace(answers, logits=copied(after, np.float32)), True)
