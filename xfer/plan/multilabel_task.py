"""What a plan says of several labels an image: from where the task comes, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from xfer.core.errors import LabelsError, raise_all
from xfer.core.protocols import HasTeacher
from xfer.evaluation.task import Multilabel, Single
from xfer.models.head import Keep, Knn, Prototype, Remap

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.core.types import Card

_REASONS = {
    "audit": "it asks which of the other classes an image belongs to",
    "worth": "its curve is of the share of images whose one class is right",
    "soup": "its members are judged by the share of images whose one class is right",
}
_USUAL = "val_acc"


def of_card(specs: Specs, card: Card) -> Specs:
    """``specs`` with the task of the checkpoint that has this ``card``.

    Raises LabelsError where another one, or other thresholds, were asked for.
    """
    several = bool(card.task)
    if several and "task.thresholds" in specs.explicit:
        what = f"were chosen by the fit, on {card.task['chosen_on']}, and are in the checkpoint"
        fix = "drop it; predictions have every probability"
        raise LabelsError("task.thresholds", what, fix, 3)
    if several == specs.task.several:
        return specs
    if "task" in specs.explicit:
        held = "several labels" if several else "one label"
        what = f"contradicts the checkpoint, whose network gives {held} an image"
        raise LabelsError("task", what, "drop it", 3)
    return replace(specs, task=Multilabel() if several else Single())


def refuse_for_labels(specs: Specs) -> None:
    """Raise LabelsError, or Problems, for whatever does not go with several labels an
    image."""
    if specs.task.several:
        raise_all([LabelsError(where, what, fix, n) for where, what, fix, n in _refused(specs)])


def _refused(specs: Specs) -> Iterator[tuple[str, str, str, int]]:
    """Where, what, remedy and number of everything that is made for one label an image."""
    yield from _of_data(specs)
    yield from _of_network(specs)
    for stage, why in _REASONS.items():
        if stage in specs.stages:
            what = f"{stage} is for one label an image: {why}"
            yield "stages", what, f"take '{stage}' out of stages", 7
    if "embed" in specs.stages and specs.data is not None:
        what = "embed writes one label an image of the splits"
        yield "stages", what, "type predict.input=FOLDER, and no data", 7
    if specs.predict_maps:
        what = "draws what speaks for the one class of an image"
        yield "predict.maps", what, "drop it, or type predict.maps=0", 7


def _of_data(specs: Specs) -> Iterator[tuple[str, str, str, int]]:
    data = specs.data
    if getattr(data, "group", None) is not None:
        what = "keeps groups apart in folds of one class an image, and here they have several"
        yield "data.group", what, "drop it", 4
    if data is not None and data.sampler == "balanced":
        what = "draws images by their one class"
        yield "data.sampler", what, "type data.sampler=shuffled loss=balanced", 4
    if getattr(data, "on_bad", "error") == "skip":
        what = "skip makes sure that each class has images left, by their one class"
        yield "data.on_bad", what, "drop it, and take the broken files out of the list", 4


def _of_network(specs: Specs) -> Iterator[tuple[str, str, str, int]]:
    head = specs.head
    if isinstance(head, Knn | Prototype | Keep | Remap):
        name, why = type(head).__name__.lower(), "asks which one class an image is most like"
        if isinstance(head, Keep | Remap):
            why = "begins from a classifier of classes that exclude each other"
        yield "head", f"{name} {why}", "type head=linear", 6
    if isinstance(specs.loss, HasTeacher):
        what = "learns which one class a teacher takes an image for"
        yield "loss", what, "type loss=cross_entropy without loss.teacher", 2
    if specs.choose.chooses:
        what = "compares candidates on one label an image"
        yield "choose", what, "type choose=none", 10


def watched(specs: Specs) -> str:
    """The metric that decides which epoch is the best: the mean average precision of several
    labels, unless another one was asked for."""
    name = specs.checkpoint.monitor
    asked = "checkpoint.monitor" in specs.explicit or name != _USUAL
    return "val_map" if specs.task.several and not asked else name
