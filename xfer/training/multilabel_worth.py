"""What more images are worth where an image has several labels: learning curves of the mean average
precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.errors import DataError
from xfer.core.seeds import derive
from xfer.core.types import Plain
from xfer.evaluation.multilabel_metrics import average_precisions
from xfer.training import logistic, subsampling
from xfer.training.feature_moments import blocks
from xfer.training.multilabel_logistic import LabelProblem, LabelRows, label_folds
from xfer.training.multilabel_subsampling import LabelSubsamples, subsampled_labels
from xfer.training.worth_curve import (
    MORE,
    MOST_CLASSES,
    curve_facts,
    how_measured,
    part_to_check,
    refuse_alike,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Labels = npt.NDArray[np.int64]


def of_label_features(
    rows: npt.NDArray[np.float32],
    labels: Labels,
    classes: Sequence[str],
    seed: int,
    check: tuple[npt.NDArray[np.float32], Labels],
) -> Plain:
    """The facts of :func:`xfer.training.worth.measure` from training features float32 (n, d) and
    ``labels`` int64 (n, classes) of 1, 0 and -1 for unknown; ``check`` are features and labels of
    images that the curve is not made of. Raises DataError for features that tell nothing apart."""
    refuse_alike(rows)
    drawn = subsampled_labels(rows, labels, seed)
    known, has = (labels >= 0).sum(axis=0), (labels == 1).sum(axis=0)
    share = has / known
    # So many that each label is there MORE times on average.
    more = round(MORE * len(classes) / float(share.sum()))
    seed = derive("worth curve", seed) % 2**32

    def facts_of(some: Any, name: str) -> Plain:
        scores = drawn.scores(some).mean(axis=1)
        curve = drawn.curve(some, seed)
        return curve_facts(curve, drawn.sizes, scores, name, len(labels), more)

    shown = np.argsort(drawn.by_repeat[-1].mean(axis=0), kind="stable")[:MOST_CLASSES]
    return {
        "images": len(labels),
        "classes": dict(zip(classes, has.tolist(), strict=True)),
        **how_measured(drawn, rows.shape[1]),
        "per_class_counts": np.rint(drawn.sizes[:, None] * share).astype(int).tolist(),
        **facts_of(np.arange(len(classes)), "map"),
        "check": _check(drawn, seed, rows, labels, check),
        "by_class": {classes[i]: facts_of([i], "ap") for i in sorted(shown.tolist())},
    }


def refuse_few_labels(labels: Labels, classes: Sequence[str]) -> None:
    """Raise DataError where a fold would hold out no image that has a label, or none that lacks
    it."""
    for word, side in (("have", 1), ("lack", 0)):
        counts = (labels == side).sum(axis=0)
        fewest = int(counts.argmin())
        if counts[fewest] < subsampling.FOLDS:
            what = (
                f"{counts[fewest]} training images are known to {word} the label "
                f"'{classes[fewest]}', and a learning curve asks for {subsampling.FOLDS}"
            )
            raise DataError("data", what, "add such images, or take the label out", 64)


def _check(
    drawn: LabelSubsamples,
    seed: int,
    rows: npt.NDArray[np.float32],
    labels: Labels,
    check: tuple[npt.NDArray[np.float32], Labels],
) -> Plain:
    """What a head solved on as many training images as the curve can be asked for scores on images
    that the curve is not made of, over the labels that some of them have and others lack, and
    whether that lies in its band."""
    held, answers = check
    some = np.flatnonzero(((answers == 1).any(axis=0)) & ((answers == 0).any(axis=0)))
    chosen = part_to_check(len(labels), int(drawn.sizes[-1]), seed)
    facts: Plain = {"images": len(chosen), "judged": len(answers), "labels": len(some)}
    if not len(some):
        return {**facts, "map": None, "expected": None, "inside": None}
    weight, bias = _solved(np.asarray(rows[chosen]), labels[chosen])
    logits = [np.asarray(held[part], np.float64) @ weight.T + bias for part in blocks(held)]
    value = float(average_precisions(np.concatenate(logits), answers)[some].mean())
    band = drawn.curve(some, seed).score(len(chosen), len(answers))
    inside = band.low - 1e-9 <= value <= band.high + 1e-9
    return {**facts, "map": value, "expected": asdict(band), "inside": inside}


def _solved(rows: npt.NDArray[np.float32], labels: Labels) -> tuple[Floats, Floats]:
    folds = label_folds(labels, subsampling.FOLDS, 0)
    even, ones = np.ones(labels.shape[1]), np.ones(len(labels))
    problem = LabelProblem(LabelRows([rows], rows, labels, even, 0.0, folds, ones))
    solution = logistic.follow(problem, logistic.STRENGTHS)
    best = solution.path[solution.best]
    return best.weight, best.bias
