"""What a cross-validation answered: each image by the fit that had not seen it, and what that is
worth. No torch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xfer.core.files import read_text
from xfer.core.probabilities import sigmoid
from xfer.core.run_folder import run_of
from xfer.core.text_columns import repeated
from xfer.core.types import Plain, Predictions, no_better
from xfer.evaluation import metrics
from xfer.evaluation.metrics import Floats
from xfer.evaluation.multilabel_metrics import (
    LabelAnswers,
    average_precisions,
    best_thresholds,
    class_f1,
    values_of,
)
from xfer.evaluation.predict import write_predictions
from xfer.evaluation.statistics import resampled, resampled_t
from xfer.evaluation.table_file import cell

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
        return self.answers(slice(0, 1))

    def answers(self, repeats: slice) -> Predictions:
        """The answers of these repeats after each other."""
        logits = self.logits[repeats]
        names = repeated(self.names, times := len(logits))
        labels = np.concatenate([self.labels] * times)
        return Predictions(names, logits.reshape(len(labels), -1), labels, self.classes)

    def write(self, path: Path) -> None:
        """Write a row an image and repeat: ``path, repeat, fold, label, prediction, ...``, both
        counted from 0."""
        write_predictions(self.answers(slice(None)), path, columns_of(self.folds))

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
        score = metrics.score(pooled, labels, self.classes, used_for_selection=False)
        return {
            "folds": folds,
            "repeats": repeats,
            "n": n,
            **{name: None if math.isnan(value) else value for name, value in values.items()},
            "acc_ci95": [low, high],
            "per_class": {
                name: row | {"n": int(row["n"]) // repeats} for name, row in score.per_class.items()
            },
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


def fitted_on(
    checkpoint: Path | None, split: str, names: Sequence[str], was: str | None
) -> list[str]:
    """A remark where the network has learned from images of ``split``: that ``was`` the run's
    ``train``, or they have the ``names`` of those that the final model of a cross-validation was
    fitted on: its run's table has them all, and its split is none of them."""
    if was == "train":
        return [f"{split}: the checkpoint was trained on these images"]
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


@dataclass(frozen=True)
class LabelOutOfFold(OutOfFold):
    """The same with several labels an image: ``labels`` int64 (n, classes) of 1, 0 and -1 for
    unknown. ``given`` is the threshold of all classes; without one those of a fold have the best F1
    a class on the answers of the other folds, so that no image chooses the threshold that judges
    it."""

    given: float | None = None

    @cached_property
    def said(self) -> npt.NDArray[np.bool_]:
        """What each image is said to have in each repeat, bool (repeats, n, classes)."""
        said = np.empty(self.logits.shape, np.bool_)
        for repeat, fold in turns_of(self.folds):
            held = self.folds[repeat] == fold
            cuts: Floats | float | None = self.given
            if cuts is None:
                cuts = best_thresholds(self.logits[repeat, ~held], self.labels[~held])
            said[repeat, held] = sigmoid(self.logits[repeat, held].astype(np.float64)) >= cuts
        return said

    def answers(self, repeats: slice) -> Predictions:
        """See :meth:`OutOfFold.answers`."""
        task = {"kind": "multilabel", "chosen_on": "given" if self.given else "folds"}
        said = self.said[repeats].reshape(-1, len(self.classes))
        return replace(super().answers(repeats), task=task, saying=said)

    def facts(self, parts: metrics.Parts = _NO_PARTS) -> Plain:
        """What ``result.json`` has as ``cv``.

        F1, exact matches, the Hamming loss, the loss and the calibration error are those of all
        rows of the table together. An average precision is the mean over the folds, each of which
        ranks the answers of one fit: those of several are not on one scale (G. Forman and M.
        Scholz, "Apples-to-apples in cross-validation studies", 2010). The intervals of mAP and F1
        are those of the corrected resampled t-test, see
        :func:`xfer.evaluation.statistics.resampled_t`.
        """
        repeats, n = self.folds.shape
        logits, said = self.logits.reshape(repeats * n, -1), self.said.reshape(repeats * n, -1)
        labels = np.tile(self.labels, (repeats, 1))
        every = LabelAnswers(logits.astype(np.float64), labels, said)
        by_fold = [self._label_fold(repeat, fold) for repeat, fold in turns_of(self.folds)]
        folds = len(by_fold) // repeats
        rows = [row for row, _ in by_fold]
        maps = [row["map"] for row in rows if row["map"] is not None]
        values = values_of(every, parts) | {"map": float(np.mean(maps)) if maps else math.nan}
        ends = resampled_t(values["map"], maps, folds)
        return {
            "folds": folds,
            "repeats": repeats,
            "n": n,
            **{name: None if math.isnan(value) else value for name, value in values.items()},
            "acc_ci95": list(resampled(values["acc"], n, folds, repeats)),
            "map_ci95": None if ends is None else list(ends),
            "per_class": self._per_label(every, [each for _, each in by_fold], repeats, folds),
            "per_fold": rows,
            "thresholds_chosen_on": "given" if self.given else "the other folds",
            "final_epochs": self.final_epochs,
            "used_for_selection": self.chose,
        }

    def _label_fold(self, repeat: int, fold: int) -> tuple[Plain, LabelAnswers]:
        held = self.folds[repeat] == fold
        logits = self.logits[repeat, held].astype(np.float64)
        answers = LabelAnswers(logits, self.labels[held], self.said[repeat, held])
        values = values_of(answers)
        kept = {name: values[name] for name in ("map", "macro_f1", "acc", "loss")}
        known = {name: None if math.isnan(value) else value for name, value in kept.items()}
        return {"repeat": repeat, "fold": fold, "n": int(held.sum()), **known}, answers

    def _per_label(
        self, every: LabelAnswers, by_fold: list[LabelAnswers], repeats: int, folds: int
    ) -> Plain:
        """F1, precision and recall over all rows, the mean average precision of the folds, and how
        many images have the label and are known to have it or not."""
        right, said, had = every.counts
        known, f1 = every.known.sum(axis=0), class_f1(every)
        each_f1 = np.array([class_f1(answers) for answers in by_fold])
        areas = np.array([_areas(answers) for answers in by_fold])
        facts: Plain = {}
        for c, name in enumerate(self.classes):
            f1s, aps = (
                column[np.isfinite(column)].tolist() for column in (each_f1[:, c], areas[:, c])
            )
            ends = None if math.isnan(f1[c]) else resampled_t(float(f1[c]), f1s, folds)
            facts[name] = {
                "n": int(had[c]) // repeats,
                "known": int(known[c]) // repeats,
                "ap": float(np.mean(aps)) if aps else None,
                "precision": float(right[c] / said[c]) if said[c] else None,
                "recall": float(right[c] / had[c]) if had[c] else None,
                "f1": None if math.isnan(f1[c]) else float(f1[c]),
                "f1_ci95": None if ends is None else list(ends),
            }
        return facts


def _areas(answers: LabelAnswers) -> Floats:
    """The average precision a class; NaN where no image of a fold has the label, or all have."""
    areas = average_precisions(answers.logits, answers.labels)
    lacks = (answers.labels == 0).any(axis=0)
    return np.where(lacks, areas, math.nan)
