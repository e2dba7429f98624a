"""What is read off a learning curve: where it stands, what more images bring, where it ends."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import DataError
from xfer.core.types import Plain
from xfer.evaluation import learning_curve
from xfer.evaluation.learning_curve import LEVEL, Curve
from xfer.training.subsampling import FOLDS

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.training.multilabel_subsampling import LabelSubsamples
    from xfer.training.subsampling import Subsamples

    Numbers = npt.NDArray[np.float64]

MORE = 100
"""Images of each class that are added."""
MOST_CLASSES = 100
"""Classes that have a curve of their own."""
HALF_A_POINT = 0.005
_PICTURED = 25  # places of the curve that are written
_FURTHEST = 8  # times the images that there are


def how_measured(drawn: Subsamples | LabelSubsamples, width: int) -> Plain:
    """On what the curve rests: folds and subsamples of features that are ``width`` wide."""
    return {
        "width": width,
        "level": LEVEL,
        "folds": FOLDS,
        "repeats": drawn.repeats,
        "memory_bytes": drawn.bytes,
        "largest_subsample": int(drawn.sizes[-1]),
        "l2": drawn.l2.tolist(),
    }


def curve_facts(
    curve: Curve,
    sizes: npt.NDArray[np.int64],
    measured: Numbers,
    name: str,
    images: int,
    more: int,
) -> Plain:
    """The scores that were ``measured`` (sizes,) at ``sizes``, by the ``name`` of what they are,
    and what the curve says of ``images``, of ``more`` than that, and of any number."""
    places = np.geomspace(sizes[0], images * _FURTHEST, _PICTURED).round().astype(int)
    return {
        "measured": [
            {"images": int(size), name: float(value)}
            for size, value in zip(sizes, measured, strict=True)
        ],
        "curve": [{"images": int(n), **asdict(curve.expected(n))} for n in places.tolist()],
        "now": {"images": images, **asdict(curve.expected(images))},
        "more": {
            "per_class": MORE,
            "images": images + more,
            name: asdict(curve.expected(images + more)),
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


def refuse_alike(rows: npt.NDArray[np.float32]) -> None:
    """Raise DataError for features (n, d) that tell nothing apart."""
    if not np.ptp(rows[: 1 << 16], axis=0).any():
        what = "are the same for every training image: no head can tell them apart"
        raise DataError("features", what, "look at the images, or take other weights", 66)


def part_to_check(count: int, largest: int, seed: int) -> npt.NDArray[np.int64]:
    """The training images, rising, that the head is solved on which the curve is checked by: all
    of ``count``, or as many as the ``largest`` subsample has where that is much less."""
    chosen = np.arange(count)
    if largest < 0.7 * count:  # as large a problem as the subsamples were
        chosen = np.random.default_rng(seed).permutation(chosen)[:largest]
    return np.sort(chosen)
