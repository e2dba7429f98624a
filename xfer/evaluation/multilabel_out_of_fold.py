"""What a cross-validation answered where an image has several labels, and what that is worth. No
torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.types import Plain, Predictions, sigmoid
from xfer.evaluation import metrics
from xfer.evaluation.multilabel_metrics import (
    LabelAnswers,
    average_precisions,
    best_thresholds,
    class_f1,
    values_of,
)
from xfer.evaluation.out_of_fold import columns_of, turns_of
from xfer.evaluation.predict import write_predictions
from xfer.evaluation.statistics import resampled, resampled_t

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.evaluation.metrics import Floats


@dataclass(frozen=True)
class LabelOutOfFold:
    """Answers to n images in several repeats of a cross-validation.

    ``logits`` float32 (repeats, n, classes); ``labels`` int64 (n, classes) of 1, 0 and -1 for
    unknown; ``folds`` int64 (repeats, n), the fold that an image was held out in. ``given`` is the
    threshold of all classes; without one those of a fold have the best F1 a class on the answers of
    the other folds, so that no image chooses the threshold that judges it. ``final_epochs`` and
    ``chose`` as in :class:`xfer.evaluation.out_of_fold.OutOfFold`.
    """

    names: Sequence[str]
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    folds: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    given: float | None = None
    final_epochs: int | None = None
    chose: bool = False

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

    @property
    def first(self) -> Predictions:
        """The answers of the first repeat, one an image."""
        return self._answers(slice(0, 1))

    def _answers(self, repeats: slice) -> Predictions:
        logits, said = self.logits[repeats], self.said[repeats]
        times, width = len(logits), len(self.classes)
        return Predictions(
            tuple(self.names) * times,
            logits.reshape(-1, width),
            np.tile(self.labels, (times, 1)),
            self.classes,
            task={"kind": "multilabel", "chosen_on": "given" if self.given else "folds"},
            saying=said.reshape(-1, width),
        )

    def write(self, path: Path) -> None:
        """Write a row an image and repeat: ``path, repeat, fold, label, labels, ...``, both counted
        from 0."""
        write_predictions(self._answers(slice(None)), path, columns_of(self.folds))

    def facts(self, parts: metrics.Parts) -> Plain:
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
        by_fold = [self._fold(repeat, fold) for repeat, fold in turns_of(self.folds)]
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
            "per_class": self._per_class(every, [each for _, each in by_fold], repeats, folds),
            "per_fold": rows,
            "thresholds_chosen_on": "given" if self.given else "the other folds",
            "final_epochs": self.final_epochs,
            "used_for_selection": self.chose,
        }

    def _fold(self, repeat: int, fold: int) -> tuple[Plain, LabelAnswers]:
        held = self.folds[repeat] == fold
        logits = self.logits[repeat, held].astype(np.float64)
        answers = LabelAnswers(logits, self.labels[held], self.said[repeat, held])
        values = values_of(answers)
        kept = {name: values[name] for name in ("map", "macro_f1", "acc", "loss")}
        known = {name: None if math.isnan(value) else value for name, value in kept.items()}
        return {"repeat": repeat, "fold": fold, "n": int(held.sum()), **known}, answers

    def _per_class(
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
