"""What more images are worth: learning curves of the solved head on the features of a backbone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import DataError
from xfer.core.seeds import derive
from xfer.core.types import Plain
from xfer.evaluation import learning_curve
from xfer.evaluation.learning_curve import Curve
from xfer.training import logistic, subsampling
from xfer.training.backbone_features import BackboneFeatures, backbone_features
from xfer.training.feature_moments import blocks
from xfer.training.multilabel_worth import of_label_features, refuse_few_labels
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

    from xfer.plan.plan import Plan
    from xfer.training.subsampling import Subsamples

_LEAST = subsampling.FOLDS  # images of a class, so that each fold holds one out


def measure(plan: Plan) -> Plain:
    """Everything that ``worth.json`` holds: the curve of all images and of each class, what is
    read off it, and the validation images as a check on it.

    Raises DataError for too few images and for features that tell nothing apart, and as
    :func:`xfer.training.backbone_features.backbone_features`.
    """
    began = time.perf_counter()
    several = plan.specs.task.several
    if several:
        refuse_few_labels(plan.split("train").labels, plan.card.classes)
    else:
        _refuse_few(plan)
    features = backbone_features(plan, "worth")
    of_rows = of_label_features if several else of_features
    facts = of_rows(
        *_arrays(features, "train"), plan.card.classes, plan.specs.seed, _arrays(features, "val")
    )
    seconds = time.perf_counter() - began
    return {
        **facts,
        "backbone": plan.card.backbone.get("name"),
        "features_s": features.seconds,
        "seconds": seconds,
    }


def _arrays(
    features: BackboneFeatures, split: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    return features.rows[split], features.cached.work.splits[split].labels


def _refuse_few(plan: Plan) -> None:
    """Raise DataError where a fold would hold out nothing of a class."""
    counts = dict(zip(plan.card.classes, plan.train_counts, strict=True))
    few = {name: n for name, n in counts.items() if n < _LEAST}
    if few:
        name, n = min(few.items(), key=lambda item: item[1])
        images = f"{n} training image{'s' * (n != 1)}"
        what = f"has {images} of '{name}', and a learning curve asks for {_LEAST}"
        raise DataError("data", what, "add images, or leave the class out", 64)
    if len(counts) < 2:
        what = f"has one class, '{next(iter(counts))}': there is nothing to tell apart"
        raise DataError("data", what, "add a folder with images of another class", 65)


def of_features(
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    seed: int,
    check: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
) -> Plain:
    """The facts of :func:`measure` from training features float32 (n, d) and ``labels`` int64
    (n,); ``check`` are features and labels of images that the curve is not made of."""
    refuse_alike(rows)
    drawn = subsampling.subsampled(rows, labels, len(classes), seed)
    counts = np.bincount(labels, minlength=len(classes))
    of_all = Measured(drawn, counts / counts.sum(), np.arange(len(labels)), seed)
    facts: Plain = {
        "images": len(labels),
        "classes": dict(zip(classes, counts.tolist(), strict=True)),
        **how_measured(drawn, rows.shape[1]),
        "per_class_counts": drawn.counts.tolist(),
        **of_all.facts(len(labels), len(classes)),
        "check": _check(of_all, rows, labels, check),
    }
    shown = np.argsort(of_all.of_class(), kind="stable")[:MOST_CLASSES]
    facts["by_class"] = {
        classes[label]: Measured(
            drawn, np.eye(len(classes))[label], np.flatnonzero(labels == label), seed
        ).facts(len(labels), len(classes))
        for label in sorted(shown.tolist())
    }
    return facts


@dataclass(frozen=True)
class Measured:
    """A curve of the images at ``members`` (positions), in which the classes have ``shares``."""

    drawn: Subsamples
    shares: npt.NDArray[np.float64]
    members: npt.NDArray[np.int64]
    seed: int

    def of_class(self) -> npt.NDArray[np.float64]:
        """What share of each class the largest subsamples answer rightly, float64 (classes,)."""
        return np.asarray(self.drawn.by_repeat[-1].mean(axis=0))

    @property
    def curve(self) -> Curve:
        """The curve through all sizes."""
        drawn = self.drawn
        by_repeat = drawn.by_repeat @ self.shares
        seed = derive("worth curve", self.seed) % 2**32
        right = drawn.right[:, self.members]
        return learning_curve.fit(drawn.sizes, right, by_repeat, subsampling.FOLDS, seed)

    def facts(self, images: int, classes: int) -> Plain:
        """What is measured, and what the curve says of ``images`` and more."""
        sizes, scores = self.drawn.sizes, self.drawn.by_repeat @ self.shares
        more = MORE * classes
        return curve_facts(self.curve, sizes, scores.mean(axis=1), "accuracy", images, more)


def _check(
    measured: Measured,
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    check: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
) -> Plain:
    """What a head solved on as many training images as the curve can be asked for scores on
    images that the curve is not made of, and whether that lies in its band."""
    held, answers = check
    chosen = part_to_check(len(labels), int(measured.drawn.sizes[-1]), measured.seed)
    weight, bias = _solved(np.asarray(rows[chosen]), labels[chosen])
    hits = [
        (np.asarray(held[part], np.float64) @ weight.T + bias).argmax(axis=1) == answers[part]
        for part in blocks(held)
    ]
    accuracy = float(np.concatenate(hits).mean())
    band = measured.curve.score(len(chosen), len(answers))
    inside = band.low - 1e-9 <= accuracy <= band.high + 1e-9
    facts = {"images": len(chosen), "judged": len(answers), "accuracy": accuracy}
    return {**facts, "expected": asdict(band), "inside": inside}


def _solved(
    rows: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    classes = int(labels.max()) + 1
    folds = logistic.folds(labels, subsampling.FOLDS, 0)
    problem = logistic.TrainingRows(
        [rows], rows, labels, np.ones(len(labels)), np.ones(classes), 0.0, folds
    )
    solution = logistic.solve(problem, logistic.STRENGTHS)
    best = solution.path[solution.best]
    return best.weight, best.bias
