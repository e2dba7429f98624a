"""Whether a fit ends with a calibration, on what it is fitted, and why not where it is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xfer.core.errors import CombinationError
from xfer.core.types import Calibrating, Dataset, Network, Plain
from xfer.evaluation.calibration import FEWEST, FEWEST_UNASKED, MOST_FITTED, PER_CLASS
from xfer.freeze import Phase, ever
from xfer.plan.auto import Decision

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.models.network import Parts

_KEY = "calibration"
_WITHOUT = "type calibration=none"
_IMAGES = {"cv": "held-out training images", "val": "validation images"}


@dataclass(frozen=True)
class CalibrationPlan:
    """What is done: ``method`` as asked for; the logits that it is ``fitted_on``, of held-out
    training images (``cv``) or of the validation images (``val``), ``n`` of the ``whole`` of them;
    the ``layers`` that it is folded into; whether ``auto`` may shift classes; ``why`` it is left
    out."""

    method: Calibrating = "none"
    fitted_on: str | None = None
    n: int = 0
    whole: int = 0
    layers: tuple[str, ...] = ()
    may_shift: bool = True
    why: str = ""

    def in_words(self) -> str:
        """One line for the plan; nothing where there is nothing to say."""
        if self.method == "none":
            return f"none: {self.why}" if self.why else ""
        if self.fitted_on == "val":
            after = "val then is no longer unseen"
            return f"{self.method}, fitted on {self._images('val')}: {after}"
        return f"{self.method}, fitted on {self._images('cv')}"

    def _images(self, where: str) -> str:
        some = f"{self.n:,} of " if self.n < self.whole else ""
        return f"{some}the {self.whole:,} {_IMAGES[where]}"

    def to_plain(self) -> Plain:
        """As JSON-like facts, for ``plan.json``."""
        return {"method": self.method, "fitted_on": self.fitted_on, "n": self.n, "why": self.why}

    def decisions(self) -> tuple[Decision, ...]:
        """What is done although nobody asked for it."""
        if self.method != "auto":
            return ()
        why = f"fitted on {self.n:,} training images, each answered by a fit that had not seen it"
        if self.may_shift:
            why += "; vector where that is better by more than its standard error"
        return (Decision(_KEY, "temperature", why),)


NO_CALIBRATION = CalibrationPlan()


def calibration_words(facts: Plain) -> str:
    """What a network is calibrated by, of the facts of its card."""
    by = f"temperature {facts['temperature']:.3g}" if "temperature" in facts else "vector scaling"
    return f"{by}, fitted on {facts['n']:,} {_IMAGES[facts['fitted_on']]}"


def plan_calibration(
    specs: Specs,
    parts: Parts,
    network: Network,
    dataset: Dataset,
    phases: Sequence[Phase],
    size: tuple[int, int],
) -> CalibrationPlan:
    """What ``calibration`` comes to. ``specs`` have every other choice decided, ``network`` is that
    after the head swap, for images of ``size``. Raises CombinationError where it was asked for and
    cannot be done."""
    asked, solves = specs.calibration, specs.optim.solves
    if asked == "none" or "fit" not in (specs.stages or ("fit",)):
        return CalibrationPlan()
    whole, counts = _counts(specs, dataset, solves)
    where = "cv" if solves else "val"
    n = whole if specs.task.several else min(whole, MOST_FITTED)
    if why := _why_not(specs, n):
        return CalibrationPlan(why=why)
    layers = _layers(network, len(counts))
    if asked == "auto":
        if len(counts) < 2 or not layers:
            return CalibrationPlan(why="the network has no linear layer that gives the logits")
        # A shift would take weights of classes back.
        return CalibrationPlan("auto", where, n, whole, layers, may_shift=not _weighted(specs))
    _check_images(asked, n, counts, dataset.classes, where)
    _check_layers(asked, layers, phases)
    if not solves:  # else the fit proves that a mean is all that comes after the layer
        _check_answers(asked, parts, layers, size)
    if asked == "vector" and (weighted := _weighted(specs)):
        what = f"vector would take back {weighted}: its shifts fit the classes as they occur"
        raise CombinationError(_KEY, what, "type calibration=temperature", 16)
    return CalibrationPlan(asked, where, n, whole, layers)


def _why_not(specs: Specs, n: int) -> str:
    """Why ``n`` images are not fitted on, though nothing is wrong; empty where they are."""
    if getattr(specs.data, "fold", None) is not None:
        # Images of a fold decide nothing about answers that they judge.
        return "the answers of a fold are pooled with those of the others as they are"
    if specs.calibration == "auto" and not specs.optim.solves:
        return "the network is trained step by step; calibration=temperature fits it on val"
    if specs.calibration == "auto" and n < FEWEST_UNASKED:
        return f"{n} held-out training images are too few, {FEWEST_UNASKED} are needed"
    return ""


def _counts(specs: Specs, dataset: Dataset, solves: bool) -> tuple[int, list[int]]:
    """The images whose logits are fitted on, and how many of them there are by class: one alone in
    its class is never held out. Of several labels an image the fewer of those that have one and of
    those that have it not."""
    split = dataset.splits.get("train" if solves else "val")
    if split is None:
        return 0, [0] * len(dataset.classes)
    labels = split.labels
    if specs.task.several:
        sides = [(labels == side).sum(axis=0) for side in (0, 1)]
        return len(labels), [int(min(pair)) for pair in zip(*sides, strict=True)]
    counts = specs.task.counts(labels, len(dataset.classes))
    counts = [0 if solves and count == 1 else count for count in counts]
    return sum(counts), counts


def _weighted(specs: Specs) -> str:
    """The key by which classes count otherwise than they occur, or nothing."""
    if getattr(specs.data, "sampler", None) == "balanced":
        return "data.sampler=balanced"
    given: Any = getattr(specs.loss, "class_weights", None)
    return "" if given in (None, "none") else "loss.class_weights"


def _layers(network: Network, classes: int) -> tuple[str, ...]:
    """The last layer of each classifier; none where one of them has no such layer."""
    from xfer.models.logit_scale import last_layer

    layers = [last_layer(network.module, head, classes) for head in network.heads]
    return tuple(layer for layer in layers if layer) if all(layers) else ()


def _check_images(
    asked: str, n: int, counts: list[int], classes: tuple[str, ...], where: str
) -> None:
    fewest = min(counts)
    if n < FEWEST:
        what = f"{asked} is fitted on the {n} {_IMAGES[where]}, and {FEWEST} are needed"
        raise CombinationError(_KEY, what, _WITHOUT, 14)
    if asked == "vector" and fewest < PER_CLASS:
        name = classes[counts.index(fewest)]
        what = (
            f"vector is fitted on {PER_CLASS} or more images of each class, and '{name}' has "
            f"{fewest} among the {_IMAGES[where]}"
        )
        raise CombinationError(_KEY, what, "type calibration=temperature", 14)


def _check_layers(asked: str, layers: tuple[str, ...], phases: Sequence[Phase]) -> None:
    """Raise CombinationError unless there are ``layers``, and they train."""
    if not layers:
        what = f"{asked} is folded into the last layer of the head, which is not a plain linear one"
        raise CombinationError(_KEY, what, _WITHOUT, 15)
    rates = ever(phases)
    if any(not any(rates[f"{layer}.{kind}"]) for layer in layers for kind in ("weight", "bias")):
        what = f"{asked} would change the last layer of the head, which freeze holds still"
        raise CombinationError(_KEY, what, _WITHOUT, 15)


def _check_answers(
    asked: str, parts: Parts, layers: tuple[str, ...], size: tuple[int, int]
) -> None:
    """Raise CombinationError unless the logits follow what is folded into ``layers``."""
    from xfer.models.logit_scale import follows
    from xfer.models.network import empty

    scales, shifts = follows(empty(parts), layers, size)
    if not scales:
        what = f"{asked} cannot be folded into the head: more than a mean or a ReLU comes after it"
        raise CombinationError(_KEY, what, _WITHOUT, 15)
    if asked == "vector" and not shifts:
        what = "vector cannot be folded into the head: a ReLU comes after it, which cuts a shift"
        raise CombinationError(_KEY, what, "type calibration=temperature", 15)
