"""Answers with several labels an image: their table, written and read again, and their lines for
people. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xfer.core.types import Array, Predictions
from xfer.evaluation.certificate_answers import certificate_columns, words_beside
from xfer.evaluation.table_file import Column, cell

_SIGNS = ("|", ";", "/", "+", ",")
_SHOWN = 20
_LEAST = 1e-7  # what six decimals leave open


def label_columns(block: Predictions) -> list[Column]:
    """The columns of a block of answers: ``path, prediction, p_<class>...``, the labels that an
    image is said to have with ``|`` between them, or another sign where a class has that in its
    name. Where the truth is known it is ``path, label, prediction, p_<class>...``: ``label`` are
    the labels that it has, with ``?`` in front of those that are unknown. A certificate adds
    ``set`` and ``p_unlike``; a last column ``views`` says over how many views an answer is the
    mean, where there are several."""
    classes, sign, shares = block.classes, sign_for(block.classes), block.probabilities
    table = [Column("path", block.names)]
    if block.labels is not None:
        table.append(Column("label", [labels_cell(row, classes, sign) for row in block.labels]))
    given = [sign.join(compress(classes, row)) for row in block.said]
    numbers = [Column(f"p_{name}", shares[:, i]) for i, name in enumerate(classes)]
    last = [*certificate_columns(block), *views_column(block)]
    return [*table, Column("prediction", given), *numbers, *last]


def views_column(block: Predictions) -> list[Column]:
    """Over how many views each answer is the mean, where there are several."""
    views = np.full(len(block.names), block.views)
    return [Column("views", views)] if block.views > 1 else []


def sign_for(classes: Sequence[str]) -> str:
    """What stands between labels: the first sign that is in no class's name."""
    free = (sign for sign in _SIGNS if not any(sign in name for name in classes))
    return next(free, "\t")


def labels_cell(labels: Array, classes: Sequence[str], sign: str) -> str:
    """The labels of an image, 1, 0 or -1 a class, in one cell, with ``?`` in front of those that
    are unknown, as :func:`xfer.data.multilabel_rows.in_cell` reads it."""
    named = zip(classes, labels, strict=True)
    return sign.join("?" * int(value < 0) + name for name, value in named if value)


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
    n = len(answers.names)
    first = answers.at(range(min(_SHOWN, n)))
    shown = zip(first.names, first.probabilities, first.said, strict=True)
    lines = []
    for i, (name, shares, said) in enumerate(shown):
        pairs = zip(answers.classes, shares, said, strict=True)
        words = ", ".join(f"{label} ({p:.3f})" for label, p, yes in pairs if yes)
        top = int(shares.argmax())
        none = f"no label; the most probable is {answers.classes[top]} ({shares[top]:.3f})"
        lines.append(f"{name}: {words or none}{words_beside(first, i)}")
    rest = f"; the first {len(lines)} are shown" if n > len(lines) else ""
    each = f", each the mean over {answers.views} views," if answers.views > 1 else ""
    return [*lines, f"{n} prediction{'s' * (n != 1)}{each} in {path}{rest}"]


def read_label_table(rows: Iterable[Mapping[str, str]], classes: Sequence[str]) -> Predictions:
    """The answers of ``rows``, as :func:`label_columns` has them: logits of the probabilities, and
    what each image was said to have.

    Raises KeyError for a column that is not there, ValueError for a label that is no class, and for
    a probability that is none.
    """
    given, sign = list(rows), sign_for(classes)
    shares = np.empty((len(given), len(classes)))
    labels, said = np.zeros(shares.shape, np.int64), np.zeros(shares.shape, np.bool_)
    at = {name: i for i, name in enumerate(classes)}
    columns = [f"p_{cell(name)}" for name in classes]
    for i, row in enumerate(given):
        shares[i] = [float(row[name]) for name in columns]
        for name in _names_in(row["label"], sign):
            known = name in at  # else a question mark is before it, or it is no class
            labels[i, _place(name if known else name.removeprefix("?"), at)] = 1 if known else -1
        for name in _names_in(row["prediction"], sign):
            said[i, _place(name, at)] = True
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError("a probability is not between 0 and 1")
    within = np.clip(shares, _LEAST, 1 - _LEAST)
    odds = (np.log(within) - np.log1p(-within)).astype(np.float32)
    views = int(given[0].get("views") or 1) if given else 1
    names = tuple(row["path"] for row in given)
    task = {"kind": "multilabel"}
    return Predictions(names, odds, labels, tuple(classes), views, task=task, saying=said)


def _names_in(text: str, sign: str) -> list[str]:
    """The names in a cell, without the apostrophe that keeps a spreadsheet from running it."""
    if text.startswith("'") and cell(text[1:]) == text:
        text = text[1:]
    return [name for name in text.split(sign) if name]


def _place(name: str, at: Mapping[str, int]) -> int:
    if name not in at:
        raise ValueError(f"there is no class '{name[:40]}'")
    return at[name]
