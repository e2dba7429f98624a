"""Answers with several labels an image: their table, and their lines for people. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import LabelsError
from xfer.core.types import Plain, Predictions, Tta
from xfer.evaluation.csv_cell import cell

if TYPE_CHECKING:
    from xfer.core.types import Array

_SIGNS = ("|", ";", "/", "+", ",")
_SHOWN = 20


def label_table(answers: Predictions) -> Iterator[list[str]]:
    """The header and a row an image: ``path, labels, p_<class>...``, the labels that it is said to
    have with ``|`` between them, or another sign where a class has that in its name. Where the
    truth is known it is ``path, label, prediction, p_<class>...``: ``label`` are the labels that it
    has, with ``?`` in front of those that are unknown."""
    classes, sign = answers.classes, sign_for(answers.classes)
    first = ["path", "labels"] if answers.labels is None else ["path", "label", "prediction"]
    yield [*first, *(f"p_{cell(name)}" for name in classes)]
    for block in answers.blocks():
        rows = zip(block.names, block.probabilities, block.said, strict=True)
        for i, (name, shares, said) in enumerate(rows):
            known = [] if block.labels is None else [_true(block.labels[i], classes, sign)]
            given = cell(sign.join(_named(said, classes)))
            yield [cell(name), *known, given, *(f"{p:.6f}" for p in shares)]


def sign_for(classes: Sequence[str]) -> str:
    """What stands between labels: the first sign that is in no class's name."""
    free = (sign for sign in _SIGNS if not any(sign in name for name in classes))
    return next(free, "\t")


def _named(said: Array, classes: Sequence[str]) -> list[str]:
    return [name for name, yes in zip(classes, said, strict=True) if yes]


def _true(labels: Array, classes: Sequence[str], sign: str) -> str:
    named = zip(classes, labels, strict=True)
    return cell(sign.join("?" * int(value < 0) + name for name, value in named if value))


def refuse_views(task: Plain, tta: Tta) -> None:
    """Raise LabelsError for views of an image where the ``task`` of a network is several labels."""
    if task and tta != "none":
        what = "averages the probabilities of classes that exclude each other"
        raise LabelsError("tta", f"{what}, and here they do not", "type tta=none", 5)


def label_summary(answers: Predictions, path: Path) -> list[str]:
    """The answers for people: the first 20, and where all of them are."""
    shown = zip(answers.names[:_SHOWN], answers.probabilities, answers.said, strict=False)
    lines = []
    for name, shares, said in shown:
        pairs = zip(answers.classes, shares, said, strict=True)
        words = ", ".join(f"{label} ({p:.3f})" for label, p, yes in pairs if yes)
        lines.append(f"{name}: {words or 'no label'}")
    n = len(answers.names)
    rest = f"; the first {len(lines)} are shown" if n > len(lines) else ""
    return [*lines, f"{n} predictions in {path}{rest}"]
