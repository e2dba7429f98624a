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
from xfer.evaluation.learning_curve import LEVEL, Curve
from xfer.training import logistic, subsampling
from xfer.training.backbone_features import BackboneFeatures, backbone_features
from xfer.training.feature_moments import blocks

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.plan.plan import Plan
    from xfer.training.subsampling import Subsamples

MORE = 100
"""Images of each class that are added."""
HALF_A_POINT = 0.005
_PICTURED = 25  # places of the curve that are written
_FURTHEST = 8  # times the images that there are
_MOST = 100  # classes that have a curve of their own
_LEAST = subsampling.FOLDS  # images of a class, so that each fold holds one out


def measure(plan: Plan) -> Plain:
    """Everything that ``worth.json`` holds: the curve of all images and of each class, what is
    read off it, and the validation images as a check on it.

    Raises DataError for too few images and for features that tell nothing apart, and as
    :func:`xfer.training.backbone_features.backbone_features`.
    """
    began = time.perf_counter()
    _refuse_few(plan)
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
        what = f"has {n} training images of '{name}', and a learning curve asks for {_LEAST}"
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
    if not np.ptp(rows[: 1 << 16], axis=0).any():
        what = "are the same for every training image: no head can tell them apart"
        raise DataError("features", what, "look at the images, or take other weights", 66)
    drawn = subsampling.subsampled(rows, labels, len(classes), seed)
    counts = np.bincount(labels, minlength=len(classes))
    of_all = Measured(drawn, counts / counts.sum(), np.arange(len(labels)), seed)
    facts: Plain = {
        "images": len(labels),
        "classes": dict(zip(classes, counts.tolist(), strict=True)),
        "width": rows.shape[1],
        "level": LEVEL,
        "folds": subsampling.FOLDS,
        "repeats": drawn.repeats,
        "memory_bytes": drawn.bytes,
        "largest_subsample": int(drawn.sizes[-1]),
        "l2": drawn.l2.tolist(),
        "per_class_counts": drawn.counts.tolist(),
        **of_all.facts(len(labels), len(classes)),
        "check": _check(of_all, rows, labels, check),
    }
    shown = np.argsort(of_all.of_class(), kind="stable")[:_MOST]
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
        curve, sizes = self.curve, self.drawn.sizes
        places = np.geomspace(sizes[0], images * _FURTHEST, _PICTURED).round().astype(int)
        more = MORE * classes
        return {
            "measured": [
                {"images": int(size), "accuracy": float(row.mean())}
                for size, row in zip(sizes, self.drawn.by_repeat @ self.shares, strict=True)
            ],
            "curve": [{"images": int(n), **asdict(curve.accuracy(n))} for n in places.tolist()],
            "now": {"images": images, **asdict(curve.accuracy(images))},
            "more": {
                "per_class": MORE,
                "images": images + more,
                "accuracy": asdict(curve.accuracy(images + more)),
                "gain": asdict(curve.gain(images, more)),
            },
            "doubled": {"images": 2 * images, "gain": asdict(curve.gain(images, images))},
            "limit": asdict(curve.limit()),
            "removable": asdict(_removable(curve, images)),
            "enough": _enough(curve, images),
        }


def _removable(curve: Curve, images: int) -> learning_curve.Band:
    """The share of today's error that more images alone can remove."""
    error = np.maximum(curve.error(images), 1e-12)
    return learning_curve.band_of(1 - curve.floor / error)


def _enough(curve: Curve, images: int) -> int | None:
    """Training images from which on twice as many bring less than half a point; ``None`` where
    that is beyond a thousand times as many as there are."""
    for size in np.geomspace(max(2, images / 64), images * 1000, 400):
        if curve.gain(size, size).value < HALF_A_POINT:
            return int(float(f"{size:.2g}"))
    return None


def _check(
    measured: Measured,
    rows: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    check: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
) -> Plain:
    """What a head solved on as many training images as the curve can be asked for scores on
    images that the curve is not made of, and whether that lies in its band."""
    held, answers = check
    size = int(measured.drawn.sizes[-1])
    capped = size < 0.7 * len(labels)
    chosen = np.arange(len(labels))
    if capped:  # as large a problem as the subsamples were
        chosen = np.random.default_rng(measured.seed).permutation(chosen)[:size]
    weight, bias = _solved(np.asarray(rows[np.sort(chosen)]), labels[np.sort(chosen)])
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
