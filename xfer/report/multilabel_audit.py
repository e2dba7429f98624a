"""What the stage ``audit`` says of several labels an image: of each that is accused, and how all of
an image stand in one cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from xfer.core.types import Plain
from xfer.evaluation.multilabel_predictions import labels_cell, sign_for
from xfer.evaluation.multilabel_wrong_labels import JudgedLabels

if TYPE_CHECKING:
    from xfer.core.types import Array
    from xfer.training.image_audit import Audited

_READ = "|;/+"
"""What ``data.separator`` may say to be between the labels of an image."""


class Accusation(NamedTuple):
    """One label that an image ``has`` by the data, or lacks, and ``probability`` that it has it by
    the answer to it; ``wrong`` is how likely the data is wrong, ``fdr`` the rate of the list down
    to here, ``effect`` what the answers for the label owe to the image."""

    label: int
    name: str
    has: bool
    probability: float
    wrong: float
    fdr: float
    effect: float


def accusations(audited: Audited) -> dict[int, list[Accusation]]:
    """The labels that are accused of each image, both the most suspect first; none where an image
    has one label."""
    judged, listed = audited.judged, dict[int, list[Accusation]]()
    if not isinstance(judged, JudgedLabels):
        return listed
    for image, label in judged.pairs:
        at = image, label
        accusation = Accusation(
            label,
            audited.classes[label],
            bool(judged.labels[at] == 1),
            float(judged.has[at]),
            float(judged.wrong[at]),
            float(judged.down_to[at]),
            float(audited.left_out.effects[at]),
        )
        listed.setdefault(image, []).append(accusation)
    return listed


def facts_of(audited: Audited, near: int) -> list[Plain]:
    """What ``audit.json`` says of each accusation, with the ``near`` images that are most like it
    and have the label, and those that lack it."""
    rows = [(image, one) for image, some in accusations(audited).items() for one in some]
    rows.sort(key=lambda row: -row[1].wrong)
    return [
        {
            "path": audited.names[image],
            "split": audited.splits[image],
            "label": one.name,
            "has": one.has,
            "probability": one.probability,
            "p_wrong": one.wrong,
            "fdr": one.fdr,
            "effect": one.effect,
            "nearest": {
                word: [audited.names[i] for i in audited.like(image, one.label, near, has)]
                for word, has in (("with", 1), ("without", 0))
            },
        }
        for image, one in rows
    ]


def suspect_of(audited: Audited, image: int) -> dict[str, str]:
    """The column ``suspect`` of an image that may have several labels: the one that ``p_wrong`` is
    of; empty where none is known."""
    judged = audited.judged
    if not isinstance(judged, JudgedLabels):
        return {}
    known = judged.p_wrong[image] > 0
    return {"suspect": audited.classes[judged.worst[image]] if known else ""}


def in_one_cell(labels: Array, classes: Sequence[str]) -> str:
    """The labels of an image, 1, 0 or -1 a class, as ``audit.csv`` spells them."""
    return labels_cell(labels, classes, sign_for(classes))


def in_words(labels: Array, classes: Sequence[str]) -> str:
    """The labels of an image for people, a question mark before those that are unknown."""
    return labels_cell(labels, classes, ", ") or "none"


def read_sign(classes: Sequence[str]) -> str | None:
    """The sign between labels in ``audit.csv``; ``None`` where ``data=csv`` cannot read these names
    out of one cell."""
    sign = sign_for(classes)
    odd = [name for name in classes if name != name.strip() or name.startswith("?")]
    return sign if sign in _READ and not odd else None
