"""What a plan says of several labels an image: from where the task comes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xfer.core.errors import LabelsError
from xfer.evaluation.task import CHOSEN_ON, Multilabel, Single
from xfer.models.head import Keep, Remap

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.core.types import Card
    from xfer.weights.content import Weights

_USUAL = "val_acc"


def of_card(specs: Specs, card: Card) -> Specs:
    """``specs`` with the task of the checkpoint that has this ``card``.

    Raises LabelsError where another one, or other thresholds, were asked for.
    """
    several = bool(card.task)
    if several and "task.thresholds" in specs.explicit:
        what = f"are in the checkpoint, {CHOSEN_ON[card.task['chosen_on']]}"
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
    """Raise LabelsError for what does not go with several labels an image."""
    head = specs.head
    if not specs.task.several:
        return
    if isinstance(head, Keep | Remap) and specs.answers and not specs.checkpoint.path:
        what = f"{type(head).__name__.lower()} alone has no thresholds, which a fit chooses"
        fix = "add fit to stages, or type checkpoint.path=RUN head=linear"
        raise LabelsError("head", what, fix, 6)


def check_source_head(specs: Specs, weights: Weights) -> None:
    """Raise LabelsError for a head of the source that answers otherwise than the data asks: whose
    classes exclude each other where an image has several labels, or the other way round."""
    head, several = specs.head, specs.task.several
    if not isinstance(head, Keep | Remap) or bool(weights.task) == several:
        return
    name = type(head).__name__.lower()
    what = f"{name} begins from a classifier of classes that exclude each other"
    if not several:
        what = f"{name} begins from a classifier of several labels an image, and the data has one"
    raise LabelsError("head", what, "type head=linear", 6)


def watched(specs: Specs) -> tuple[str, str]:
    """The metric that decides which epoch is the best, and whether by its ``max`` or ``min``: the
    mean average precision of several labels, unless another one was asked for."""
    name = specs.checkpoint.monitor
    asked = "checkpoint.monitor" in specs.explicit or name != _USUAL
    name = "val_map" if specs.task.several and not asked else name
    rows = specs.task.rows(specs.metrics)
    end = next((row.better for row in rows if f"val_{row.name}" == name), "min")
    return name, end if specs.checkpoint.mode == "auto" else specs.checkpoint.mode
