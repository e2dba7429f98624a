"""What a cross-validation answered: each image by the fit that had not seen it, and what that is
worth. No torch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.files import read_text
from xfer.core.run_folder import run_of
from xfer.core.text_columns import repeated
from xfer.core.types import Plain, Predictions, no_better
from xfer.evaluation import metrics
from xfer.evaluation.csv_cell import cell
from xfer.evaluation.predict import write_predictions
from xfer.evaluation.statistics import resampled

if TYPE_CHECKING:
    import numpy.typing as npt

TABLE = "predictions_oof.csv"
"""The table of a cross-validation in the run folder."""
_NO_PARTS: metrics.Parts = {}


@dataclass(frozen=True)
class OutOfFold:
    """Answers to n images in several repeats of a cross-validation.

    ``logits`` float32 (repeats, n, classes); ``labels`` int64 (n,); ``folds`` int64 (repeats, n),
    the fold that an image was held out in, with all of its group where images are ``grouped``.
    ``final_epochs`` is how long the final model is trained after it, where that takes epochs;
    ``chose`` whether a fold's images chose the epoch that answers them.
    """

    names: Sequence[str]
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    folds: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    grouped: bool = False
    final_epochs: int | None = None
    chose: bool = False

    @property
    def first(self) -> Predictions:
        """The answers of the first repeat, one an image."""
        return Predictions(self.names, self.logits[0], self.labels, self.classes)

    def write(self, path: Path) -> None:
        """Write a row an image and repeat: ``path, repeat, fold, label, prediction, ...``, both
        counted from 0."""
        repeats, n = self.folds.shape
        pooled = Predictions(
            repeated(self.names, repeats),
            self.logits.reshape(repeats * n, -1),
            np.tile(self.labels, repeats),
            self.classes,
        )
        write_predictions(pooled, path, columns_of(self.folds))

    def facts(self, parts: metrics.Parts = _NO_PARTS) -> Plain:
        """What ``result.json`` has as ``cv``: every metric over all rows of the table, the interval
        of the accuracy, and the scores by fold and by class. ``parts`` are the user's metrics."""
        repeats, n = self.folds.shape
        pooled, labels = self.logits.reshape(repeats * n, -1), np.tile(self.labels, repeats)
        values = metrics.values(pooled, labels, parts)
        by_fold = [self._fold(repeat, fold) for repeat, fold in turns_of(self.folds)]
        folds = len(by_fold) // repeats
        accs = [row["acc"] for row in by_fold] if self.grouped else []
        low, high = resampled(values["acc"], n, folds, repeats, accs)
        return {
            "folds": folds,
            "repeats": repeats,
            "n": n,
            **{name: None if math.isnan(value) else value for name, value in values.items()},
            "acc_ci95": [low, high],
            "per_class": self._per_class(pooled, labels, repeats),
            "per_fold": by_fold,
            "final_epochs": self.final_epochs,
            "used_for_selection": self.chose,
        }

    def _fold(self, repeat: int, fold: int) -> Plain:
        held = self.folds[repeat] == fold
        logits, labels = self.logits[repeat, held], self.labels[held]
        values = metrics.values(logits, labels)
        place = {"repeat": repeat, "fold": fold, "n": int(held.sum())}
        return {**place, "acc": values["acc"], "loss": values["loss"]}

    def _per_class(
        self, pooled: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], repeats: int
    ) -> Plain:
        """Precision, recall and F1 over all rows; ``n`` counts images."""
        score = metrics.score(pooled, labels, self.classes, used_for_selection=False)
        return {
            name: row | {"n": int(row["n"]) // repeats} for name, row in score.per_class.items()
        }


def turns_of(folds: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Every (repeat, fold) of ``folds``, int64 (repeats, n), in order."""
    return [(i, k) for i, row in enumerate(folds) for k in np.unique(row).tolist()]


def columns_of(folds: npt.NDArray[np.int64]) -> dict[str, list[int]]:
    """The columns ``repeat`` and ``fold`` of a table that has a row an image and repeat."""
    repeats, n = folds.shape
    return {"repeat": np.repeat(np.arange(repeats), n).tolist(), "fold": folds.ravel().tolist()}


def in_words(cv: Plain) -> str:
    """The accuracy of a cross-validation with its interval, for the last lines and the log; where
    an image has several labels the mean average precision."""
    name = "map" if "map" in cv else "acc"
    value, ends = cv[name], cv[f"{name}_ci95"]
    times = f", {cv['repeats']} times" if cv["repeats"] > 1 else ""
    reach = f"; 95 % interval {ends[0]:.4f} to {ends[1]:.4f}" if ends else ""
    reach += "" if "map" in cv else no_better(value, cv["per_class"])
    first = "undefined" if value is None else f"{value:.4f}"
    return f"{first} ({cv['n']:,} images in {cv['folds']} folds{times}{reach})"


def title_of(cv: Plain) -> str:
    """What :func:`in_words` is of."""
    return "cv mAP" if "map" in cv else "cv accuracy"


def fitted_on(checkpoint: Path | None, split: str, names: Sequence[str]) -> list[str]:
    """A remark where images of ``split`` have the ``names`` of those that the final model of a
    cross-validation was fitted on: its run's table has them all, and its split is none of them."""
    run = run_of(checkpoint) if checkpoint else None
    if run is None or not (run / TABLE).is_file():
        return []
    try:
        rows = csv.DictReader(io.StringIO(read_text(run / TABLE), newline=""))
        fitted = {row["path"] for row in rows}
    except (OSError, ValueError, KeyError, csv.Error):
        return [f"{split}: whether the checkpoint was fitted on these images is not known"]
    if not (count := sum(cell(name) in fitted for name in names)):
        return []
    have = "has the name of an image" if count == 1 else "have the names of images"
    return [
        f"{split}: {count} of {len(names)} images {have} that the checkpoint was fitted on, and "
        "its cross-validation has scored; this score is too good"
    ]
