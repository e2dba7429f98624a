"""Answers with several labels an image: their table, and their lines for people. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.types import Predictions
from xfer.evaluation.csv_cell import cell

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.core.types import Array

_SIGNS = ("|", ";", "/", "+", ",")
_SHOWN = 20


def label_table(
    answers: Predictions, columns: Mapping[str, Sequence[int]] | None = None
) -> Iterator[list[object]]:
    """The header and a row an image: ``path, prediction, p_<class>...``, the labels that it is said
    to have with ``|`` between them, or another sign where a class has that in its name. Where the
    truth is known it is ``path, label, prediction, p_<class>...``: ``label`` are the labels that it
    has, with ``?`` in front of those that are unknown. ``columns`` are put after the path, each
    with an entry a row; a last column ``views`` says over how many views an answer is the mean,
    where there are several."""
    classes, sign, columns = answers.classes, sign_for(answers.classes), columns or {}
    true = [] if answers.labels is None else ["label"]
    names, views = [f"p_{cell(name)}" for name in classes], [answers.views][: answers.views > 1]
    last = ["views"] if views else []
    yield ["path", *columns, *true, "prediction", *names, *last]
    between = zip(*columns.values(), strict=True) if columns else itertools.repeat(())
    for block in answers.blocks():
        rows = zip(block.names, block.probabilities, block.said, strict=True)
        for i, (name, shares, said) in enumerate(rows):
            known = [] if block.labels is None else [_true(block.labels[i], classes, sign)]
            given = cell(sign.join(_named(said, classes)))
            numbers = [f"{p:.6f}" for p in shares]
            yield [cell(name), *next(between), *known, given, *numbers, *views]


def sign_for(classes: Sequence[str]) -> str:
    """What stands between labels: the first sign that is in no class's name."""
    free = (sign for sign in _SIGNS if not any(sign in name for name in classes))
    return next(free, "\t")


def _named(said: Array, classes: Sequence[str]) -> list[str]:
    return [name for name, yes in zip(classes, said, strict=True) if yes]


def _true(labels: Array, classes: Sequence[str], sign: str) -> str:
    named = zip(classes, labels, strict=True)
    return cell(sign.join("?" * int(value < 0) + name for name, value in named if value))


def mean_of_labels(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits (n, views, classes) as the log-odds of the probabilities' mean over the views, float32
    (n, classes): their sigmoid is that mean. NaN where a view is not finite."""
    with np.errstate(invalid="ignore"):
        z, n = logits.astype(np.float64), logits.shape[1]
        # The logarithms of the sums of yes and of no: either may be too small for its logarithm.
        yes, no = (np.logaddexp.reduce(-np.logaddexp(0, side), axis=1) for side in (-z, z))
        odds = yes - no if n > 1 else z[:, 0]
    odds[~np.isfinite(logits).all(axis=(1, 2))] = np.nan
    return np.asarray(odds, np.float32)


def label_summary(answers: Predictions, path: Path) -> list[str]:
    """The answers for people: the first 20, and where all of them are."""
    shown = zip(answers.names[:_SHOWN], answers.probabilities, answers.said, strict=False)
    lines = []
    for name, shares, said in shown:
        pairs = zip(answers.classes, shares, said, strict=True)
        words = ", ".join(f"{label} ({p:.3f})" for label, p, yes in pairs if yes)
        top = int(shares.argmax())
        none = f"no label; the most probable is {answers.classes[top]} ({shares[top]:.3f})"
        lines.append(f"{name}: {words or none}")
    n = len(answers.names)
    rest = f"; the first {len(lines)} are shown" if n > len(lines) else ""
    each = f", each the mean over {answers.views} views," if answers.views > 1 else ""
    return [*lines, f"{n} prediction{'s' * (n != 1)}{each} in {path}{rest}"]
