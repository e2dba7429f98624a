"""The answers with several labels an image that a run has written, read again. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from xfer.core.types import Predictions
from xfer.evaluation.csv_cell import cell
from xfer.evaluation.multilabel_predictions import sign_for

_LEAST = 1e-7  # what six decimals leave open


def read_label_table(rows: Iterable[Mapping[str, str]], classes: Sequence[str]) -> Predictions:
    """The answers of ``rows``, as :func:`xfer.evaluation.multilabel_predictions.label_columns` has
    them: logits of the probabilities, and what each image was said to have.

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
        for name in _named(row["label"], sign):
            known = name in at
            labels[i, at[name] if known else _place(name.removeprefix("?"), at)] = (
                1 if known else -1
            )
        for name in _named(row["prediction"], sign):
            said[i, _place(name, at)] = True
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError("a probability is not between 0 and 1")
    within = np.clip(shares, _LEAST, 1 - _LEAST)
    odds = (np.log(within) - np.log1p(-within)).astype(np.float32)
    views = int(given[0].get("views") or 1) if given else 1
    names = tuple(row["path"] for row in given)
    task = {"kind": "multilabel"}
    return Predictions(names, odds, labels, tuple(classes), views, task=task, saying=said)


def _named(text: str, sign: str) -> list[str]:
    """The names in a cell, without the apostrophe that keeps a spreadsheet from running it."""
    if text.startswith("'") and cell(text[1:]) == text:
        text = text[1:]
    return [name for name in text.split(sign) if name]


def _place(name: str, at: Mapping[str, int]) -> int:
    if name not in at:
        raise ValueError(f"there is no class '{name[:40]}'")
    return at[name]
