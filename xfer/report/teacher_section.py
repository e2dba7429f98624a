"""Student and teacher beside each other: in numbers, and on the run card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xfer.core.errors import XferError
from xfer.core.log import log
from xfer.core.probabilities import sigmoid
from xfer.core.types import Plain, Predictions
from xfer.data.tta import tta_words
from xfer.evaluation.calibration import log_losses
from xfer.evaluation.multilabel_metrics import LabelAnswers, exact_matches, values_of
from xfer.evaluation.statistics import mcnemar, wilson
from xfer.report.format import number
from xfer.report.tables import Table
from xfer.training.fit_health import warn

if TYPE_CHECKING:
    from xfer.report.inputs import Work


def beside_teacher(work: Work) -> Plain | None:
    """What ``result.json`` says of the teacher of a fit: which it was, what it was asked for, and
    its answers to the images that the student was scored on; ``None`` for a fit without one.

    What cannot be had of the teacher any more is a warning. Raises ResumeError for a note of the
    fit that is damaged.
    """
    teacher = work.plan.teacher
    if teacher is None or not work.fitted:
        return None
    from xfer.core.device import device_of
    from xfer.training.teacher import asked_in, lessons_of

    facts: Plain = {
        "path": str(teacher.path),
        "kind": teacher.kind,
        "sha256": teacher.sha256,
        "temperature": teacher.temperature,
        "weight": teacher.weight,
        **asked_in(work.folder),
        "scores": {},
    }
    lessons = lessons_of(work.plan, device_of(work.plan.specs.trainer.accelerator))
    for split, answers in work.predictions.items() if lessons else ():
        if not lessons or answers.labels is None:
            continue
        try:
            logits = lessons.entry(split, None).array
        except XferError as error:  # the student is fitted and scored, and no worse for it
            warn(work.warnings, [f"{split}: nothing is known of the teacher there: {error.what}"])
            continue
        if teacher.thresholds:
            score = compared_labels(answers, logits, answers.labels, teacher.thresholds)
        else:
            score = compared(answers, logits, answers.labels)
        facts["scores"][split] = score
        log.info(f"{split}: {_line(facts['scores'][split])}")
    if facts["scores"] and (views := tta_words(work.plan.specs.tta)):
        warn(work.warnings, [f"the student answered {views}, and its teacher one of each image"])
    return facts


def compared(
    student: Predictions, taught: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> Plain:
    """The teacher's logits ``taught`` (n, classes) beside the student's, image by image: ``acc``,
    ``acc_ci95`` (Wilson, 1927) and ``loss`` of the teacher, ``agree`` the share of images that
    both take for the same class, and how many one alone got right, with McNemar's exact p."""
    guess, answer = taught.argmax(axis=1), student.logits.argmax(axis=1)
    right, ours = guess == labels, answer == labels
    first, second = int((ours & ~right).sum()), int((right & ~ours).sum())
    n = len(labels)
    return {
        "n": n,
        "acc": float(right.mean()),
        "acc_ci95": list(wilson(float(right.sum()), n)),
        "loss": float(log_losses(np.asarray(taught, np.float64), labels).mean()),
        "student_acc": float(ours.mean()),
        "student_loss": float(log_losses(np.asarray(student.logits, np.float64), labels).mean()),
        "agree": float((guess == answer).mean()),
        "student_alone": first,
        "teacher_alone": second,
        "p": mcnemar(first, second),
    }


def compared_labels(
    student: Predictions,
    taught: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    thresholds: Sequence[float],
) -> Plain:
    """As :func:`compared` with several labels an image, (n, classes) of 1, 0 and -1 for unknown:
    ``map`` and ``loss`` of the known ones, ``acc`` the share of images with every known label
    right, each network by its own ``thresholds``, here the teacher's; ``agree`` the share of all
    labels, known or not, of which both say the same."""
    theirs = _said(taught, labels, thresholds)
    ours = _said(student.logits, labels, student.task["thresholds"])
    right, own = exact_matches(theirs), exact_matches(ours)
    first, second = int((own & ~right).sum()), int((right & ~own).sum())
    scores = {"": values_of(theirs), "student_": values_of(ours)}
    return {
        "n": len(labels),
        "acc_ci95": list(wilson(float(right.sum()), len(labels))),
        **{
            f"{whose}{name}": None if math.isnan(values[name]) else values[name]
            for whose, values in scores.items()
            for name in ("acc", "map", "loss")
        },
        "agree": float((ours.said == theirs.said).mean()),
        "student_alone": first,
        "teacher_alone": second,
        "p": mcnemar(first, second),
    }


def _said(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], thresholds: Sequence[float]
) -> LabelAnswers:
    z = np.asarray(logits, np.float64)
    return LabelAnswers(z, labels, sigmoid(z) >= np.array(thresholds))


def _line(score: Plain) -> str:
    if "map" in score:
        ours, theirs = (number(score[f"{key}map"]) for key in ("student_", ""))
        return (
            f"student mAP {ours}, teacher {theirs}; they agree on {100 * score['agree']:.1f} % of "
            f"the labels of {score['n']:,} images"
        )
    return (
        f"student accuracy {score['student_acc']:.4f}, teacher {score['acc']:.4f}; they agree on "
        f"{100 * score['agree']:.1f} % of {score['n']:,} images"
    )


def teacher_text(result: Plain) -> tuple[str, ...]:
    """What the card says of the teacher; nothing where there was none."""
    facts = result.get("teacher")
    if not facts:
        return ()
    asked = f"it answered {facts['images']:,} images in {facts['seconds']:.1f} s"
    if facts["hit"]:
        asked = "its answers to them were there from an earlier run"
    lines = [
        f"Learned from {facts['path']} (sha256 {facts['sha256'][:12]}): {facts['weight']:g} of the "
        f"loss is cross-entropy with its answers at temperature {facts['temperature']:g}, times "
        f"{facts['temperature'] ** 2:g}; so the training loss is on another scale than the others. "
        f"Training images: {asked}."
    ]
    for split, score in facts["scores"].items():
        low, high = score["acc_ci95"]
        several = "map" in score
        right = "has every known label right" if several else "is right"
        are = "is" if score["student_alone"] == 1 else "are"
        lines.append(
            f"On the {score['n']:,} {split} images the teacher {right} in {score['acc']:.3f} "
            f"(95 % interval {low:.3f} to {high:.3f}), and both answer the same of "
            f"{100 * score['agree']:.1f} %{' of all labels' * several}. "
            f"{score['student_alone']:,} {are} right in the student alone, "
            f"{score['teacher_alone']:,} in the teacher alone; by McNemar's exact test p = "
            f"{score['p']:.2g}."
        )
    return tuple(lines)


def teacher_tables(result: Plain) -> tuple[Table, ...]:
    """Accuracy and loss of both on the same images; of several labels an image mAP too."""
    scores = (result.get("teacher") or {}).get("scores") or {}
    several = any("map" in score for score in scores.values())
    columns = {"map": "mAP", "acc": "exact match"} if several else {"acc": "accuracy"}
    columns |= {"loss": "loss"}
    rows = [
        (split, name, number(score["n"]), *(number(score[f"{key}{column}"]) for column in columns))
        for split, score in scores.items()
        for name, key in (("student", "student_"), ("teacher", ""))
    ]
    head = ("split", "network", "images", *columns.values())
    return (Table("Student and teacher", head, tuple(rows), 2),) if rows else ()
