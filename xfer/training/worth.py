"""What more images are worth: learning curves of the solved head on the features of a backbone.

They are of the accuracy, or with several labels an image of the mean average precision: of all
images, and of each class.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from xfer.core.errors import DataError
from xfer.core.seeds import derive
from xfer.core.types import Plain
from xfer.evaluation import learning_curve
from xfer.evaluation.learning_curve import LEVEL, Curve
from xfer.evaluation.multilabel_metrics import average_precisions
from xfer.plan.plan import Plan
from xfer.training import logistic
from xfer.training.backbone_features import BackboneFeatures, backbone_features
from xfer.training.feature_moments import blocks
from xfer.training.multilabel_logistic import LabelRows, label_folds
from xfer.training.multilabel_subsampling import LabelSubsamples, subsampled_labels
from xfer.training.subsampling import FOLDS, Subsamples, subsampled

Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

_MORE = 100
"""Images of each class that are added."""
_MOST_CLASSES = 100
"""Classes that have a curve of their own."""
_HALF_A_POINT = 0.005
_PICTURED = 25  # places of the curve that are written
_FURTHEST = 8  # times the images that there are


def measure(plan: Plan) -> Plain:
    """Everything that ``worth.json`` holds: the curve of all images and of each class, what is
    read off it, and the validation images as a check on it.

    Raises DataError as :func:`refuse_few` and for features that tell nothing apart, and as
    :func:`xfer.training.backbone_features.backbone_features`.
    """
    began = time.perf_counter()
    refuse_few(plan)
    features = backbone_features(plan, "worth")
    facts = of_features(
        *_arrays(features, "train"), plan.card.classes, plan.specs.seed, _arrays(features, "val")
    )
    seconds = time.perf_counter() - began
    return {
        **facts,
        "backbone": plan.card.backbone.get("name"),
        "features_s": features.seconds,
        "seconds": seconds,
    }


def _arrays(features: BackboneFeatures, split: str) -> tuple[Rows, Labels]:
    return features.rows[split], features.cached.work.splits[split].labels


def refuse_few(plan: Plan) -> None:
    """Raise DataError where a fold would hold out nothing of a class, or of a label."""
    if plan.specs.task.several:
        labels = plan.split("train").labels
        for word, side in (("have", 1), ("lack", 0)):
            of_label = (labels == side).sum(axis=0)
            fewest = int(of_label.argmin())
            if of_label[fewest] < FOLDS:
                what = (
                    f"{of_label[fewest]} training images are known to {word} the label "
                    f"'{plan.card.classes[fewest]}', and a learning curve asks for {FOLDS}"
                )
                raise DataError("data", what, "add such images, or take the label out", 64)
        return
    counts = dict(zip(plan.card.classes, plan.train_counts, strict=True))
    few = {name: n for name, n in counts.items() if n < FOLDS}
    if few:
        name, n = min(few.items(), key=lambda item: item[1])
        images = f"{n} training image{'s' * (n != 1)}"
        what = f"has {images} of '{name}', and a learning curve asks for {FOLDS}"
        raise DataError("data", what, "add images, or leave the class out", 64)
    if len(counts) < 2:
        what = f"has one class, '{next(iter(counts))}': there is nothing to tell apart"
        raise DataError("data", what, "add a folder with images of another class", 65)


def of_features(
    rows: Rows, labels: Labels, classes: Sequence[str], seed: int, check: tuple[Rows, Labels]
) -> Plain:
    """The facts of :func:`measure` from training features float32 (n, d) and ``labels`` int64
    (n,), or with several labels an image (n, classes) of 1, 0 and -1 for unknown; ``check`` are
    features and labels of images that the curve is not made of. Raises DataError for features that
    tell nothing apart."""
    if not np.ptp(rows[: 1 << 16], axis=0).any():
        what = "are the same for every training image: no head can tell them apart"
        raise DataError("features", what, "look at the images, or take other weights", 66)
    drawn: Subsamples | LabelSubsamples
    several, every = labels.ndim == 2, np.arange(len(classes))
    if several:
        drawn = subsampled_labels(rows, labels, seed)
        has, known = (labels == 1).sum(axis=0), (labels >= 0).sum(axis=0)
    else:
        drawn = subsampled(rows, labels, len(classes), seed)
        has, known = np.bincount(labels, minlength=len(classes)), np.array(len(labels))
    # So many that each class is there _MORE times on average.
    more = round(_MORE * len(classes) / float((has / known).sum()))
    of_curve = derive("worth curve", seed) % 2**32

    def facts_of(some: Labels, name: str) -> Plain:
        scores, curve = drawn.scores(some).mean(axis=1), drawn.curve(some, of_curve)
        return _curve_facts(curve, drawn.sizes, scores, name, len(labels), more)

    largest, chosen = int(drawn.sizes[-1]), np.arange(len(labels))
    if largest < 0.7 * len(labels):  # as large a problem as the subsamples were
        mixed = np.random.default_rng(of_curve if several else seed).permutation(chosen)
        chosen = np.sort(mixed[:largest])
    shown = np.argsort(drawn.by_repeat[-1].mean(axis=0), kind="stable")[:_MOST_CLASSES]
    one = "ap" if several else "accuracy"
    return {
        "images": len(labels),
        "classes": dict(zip(classes, has.tolist(), strict=True)),
        "width": rows.shape[1],
        "level": LEVEL,
        "folds": FOLDS,
        "repeats": drawn.repeats,
        "memory_bytes": drawn.bytes,
        "largest_subsample": largest,
        "l2": drawn.l2.tolist(),
        "per_class_counts": drawn.counts.tolist(),
        **facts_of(every, "map" if several else "accuracy"),
        "check": _check(drawn, of_curve, np.asarray(rows[chosen]), labels[chosen], check),
        "by_class": {classes[i]: facts_of(every[[i]], one) for i in sorted(shown.tolist())},
    }


def _curve_facts(
    curve: Curve, sizes: Labels, measured: Numbers, name: str, images: int, more: int
) -> Plain:
    """The scores that were ``measured`` (sizes,) at ``sizes``, by the ``name`` of what they are,
    and what the curve says of ``images``, of ``more`` than that, and of any number."""
    places = np.geomspace(sizes[0], images * _FURTHEST, _PICTURED).round().astype(int)
    # The share of today's error that more images alone can remove.
    removable = 1 - curve.floor / np.maximum(curve.error(images), 1e-12)
    return {
        "measured": [
            {"images": int(size), name: float(value)}
            for size, value in zip(sizes, measured, strict=True)
        ],
        "curve": [{"images": int(n), **asdict(curve.expected(n))} for n in places.tolist()],
        "now": {"images": images, **asdict(curve.expected(images))},
        "more": {
            "per_class": _MORE,
            "images": images + more,
            name: asdict(curve.expected(images + more)),
            "gain": asdict(curve.gain(images, more)),
        },
        "doubled": {"images": 2 * images, "gain": asdict(curve.gain(images, images))},
        "limit": asdict(curve.limit()),
        "removable": asdict(learning_curve.band_of(removable)),
        "enough": _enough(curve, images),
    }


def _enough(curve: Curve, images: int) -> int | None:
    """Training images from which on twice as many bring less than half a point; ``None`` where
    that is beyond a thousand times as many as there are."""
    for size in np.geomspace(max(2, images / 64), images * 1000, 400):
        if curve.gain(size, size).value < _HALF_A_POINT:
            return int(float(f"{size:.2g}"))
    return None


def _check(
    drawn: Subsamples | LabelSubsamples,
    seed: int,
    rows: Rows,
    labels: Labels,
    check: tuple[Rows, Labels],
) -> Plain:
    """What a head solved on as many training images as the curve can be asked for scores on images
    that the curve is not made of, and whether that lies in its band: of the classes, or the labels
    that some of these images have and others lack."""
    held, answers = check
    facts: Plain = {"images": len(rows), "judged": len(answers)}
    name, some = "accuracy", np.arange(drawn.by_repeat.shape[2])
    if labels.ndim == 2:
        name, some = "map", np.flatnonzero(((answers == 1).any(0)) & ((answers == 0).any(0)))
        facts["labels"] = len(some)
        if not len(some):
            return {**facts, name: None, "expected": None, "inside": None}
    ones = np.ones(len(labels))
    given: logistic.TrainingRows | LabelRows
    if labels.ndim == 2:
        even, folds = np.ones(labels.shape[1]), label_folds(labels, FOLDS, 0)
        given = LabelRows([rows], rows, labels, even, 0.0, folds, ones)
    else:
        even, folds = np.ones(int(labels.max()) + 1), logistic.folds(labels, FOLDS, 0)
        given = logistic.TrainingRows([rows], rows, labels, ones, even, 0.0, folds)
    solution = logistic.solve(given)
    best = solution.path[solution.best]
    weight, bias = best.weight, best.bias
    logits = (np.asarray(held[part], np.float64) @ weight.T + bias for part in blocks(held))
    if labels.ndim == 2:
        value = float(average_precisions(np.concatenate([*logits]), answers)[some].mean())
    else:
        chosen = np.concatenate([block.argmax(axis=1) for block in logits])
        value = float((chosen == answers).mean())
    band = drawn.curve(some, seed).score(len(rows), len(answers))
    inside = band.low - 1e-9 <= value <= band.high + 1e-9
    return {**facts, name: value, "expected": asdict(band), "inside": inside}
