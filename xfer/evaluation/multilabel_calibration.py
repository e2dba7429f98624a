"""Calibration where an image has several labels: each class is a yes or no of its own.

Numpy and scipy only. ``logits`` are (n, classes), ``labels`` int64 (n, classes) of 1, 0 and -1 for
unknown; a label that is unknown, or whose logit is none, has no part.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xfer.core.seeds import derive
from xfer.core.types import Calibrating, Plain, sigmoid
from xfer.evaluation.calibration import (
    FAR,
    HIGHEST,
    LOWEST,
    PER_CLASS,
    Calibrated,
    Scaling,
    best_inverse,
    cross_fitted,
    wins,
)
from xfer.evaluation.metrics import Floats, Labels, gaps_of_draws
from xfer.evaluation.multilabel_metrics import class_gaps, label_losses

_DRAWS = 50


def fit_label_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Scaling:
    """One temperature for all classes, the number that all logits are divided by so that the mean
    binary cross-entropy of the known labels is least.

    Targets, limits and method as in :func:`xfer.evaluation.calibration.fit_temperature`: those of
    Platt (1999) are (n + 1) / (n + 2) for a label that an image has, of n such in all classes, and
    1 / (m + 2) for one that it has not, of m. Raises ValueError without a known label.
    """
    z, truth, known = _known(logits, labels)
    has = (truth == 1).sum()
    target = _targets(truth, has, known.sum() - has)

    def slope(inverse: float) -> float:
        return float(((sigmoid(z * inverse) - target) * z * known).sum() / known.sum())

    inverse = best_inverse(slope)
    ended = inverse in (1 / HIGHEST, 1 / LOWEST)
    classes = z.shape[1]
    return Scaling("temperature", np.full(classes, inverse), np.zeros(classes), ended)


def fit_label_vector(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Scaling:
    """A positive scale and a shift for each class, of least binary cross-entropy: Platt's scaling
    (J. Platt, 1999), a class at a time, with targets by the counts of that class. Found by scipy's
    L-BFGS-B from the temperature on; limits and what is raised as in
    :func:`fit_label_temperature`."""
    from scipy.optimize import minimize

    z, truth, known = _known(logits, labels)
    has, every = (truth == 1).sum(axis=0), known.sum(axis=0)
    target, begin = _targets(truth, has, every - has), fit_label_temperature(z, truth).scale
    count = np.maximum(every, 1)
    scale, shift, limits = begin.copy(), np.zeros(z.shape[1]), (1 / HIGHEST, 1 / LOWEST)
    for c in np.flatnonzero(known.any(axis=0)):
        column, wanted, seen = z[:, c], target[:, c], known[:, c]

        def loss(
            values: Floats,
            column: Floats = column,
            wanted: Floats = wanted,
            seen: npt.NDArray[np.bool_] = seen,
            n: int = int(count[c]),
        ) -> tuple[float, Floats]:
            scaled = values[0] * column + values[1]
            losses = np.logaddexp(0.0, scaled) - wanted * scaled
            apart = (sigmoid(scaled) - wanted) * seen / n
            gradient = np.array([(apart * column).sum(), apart.sum()])
            return float((losses * seen).sum() / n), gradient

        options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
        bounds = [limits, (-FAR, FAR)]
        start = np.array([begin[c], 0.0])
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        scale[c], shift[c] = found.x
    ended = bool(((scale <= limits[0]) | (scale >= limits[1]) | (abs(shift) >= FAR)).any())
    return Scaling("vector", scale, shift, ended)


def calibrate_labels(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    folds: Labels,
    asked: Calibrating,
    classes: tuple[str, ...],
    may_shift: bool = True,
) -> Calibrated:
    """The scaling of ``logits`` (n, classes) that is ``asked`` for, as
    :func:`xfer.evaluation.calibration.calibrate` has it: ``auto`` is a temperature, or a scale and
    a shift a class where every class has so many images with it and without it and that is better
    by more than its standard error. The calibration error is the mean over the classes, and
    ``per_class`` has it before and after for each."""
    z, truth, _ = _known(logits, labels)
    fit = fit_label_vector if asked == "vector" else fit_label_temperature
    scaled = cross_fitted(z, truth, folds, fit)
    fewest = int(min((truth == side).sum(axis=0).min() for side in (0, 1)))
    if asked == "auto" and may_shift and fewest >= PER_CLASS:
        other = cross_fitted(z, truth, folds, fit_label_vector)
        if wins(_losses(other, truth), _losses(scaled, truth)):
            fit, scaled = fit_label_vector, other
    scaling, gaps = fit(z, truth), (class_gaps(z, truth), class_gaps(scaled, truth))
    before, after = (_measured(values, truth) for values in (z, scaled))
    rows = {
        name: {"before": float(one), "after": float(two)}
        for name, one, two in zip(classes, *gaps, strict=True)
        if np.isfinite(one)
    }
    facts: Plain = {
        "n": len(truth),
        "before": before,
        "after": after,
        "by_chance": _by_chance(scaled, truth),
        "per_class": rows,
    }
    warnings = _warnings(truth, scaling, classes)
    if asked != "auto" and after["loss"] > before["loss"]:
        rises = (
            f"from {before['loss']:.4f} to {after['loss']:.4f} on images that it is not fitted on"
        )
        warnings.append(f"calibration={asked} raises the loss {rises}")
    return Calibrated(scaling, {**scaling.to_plain(), **facts, "warnings": warnings})


def _known(
    logits: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[Floats, Labels, npt.NDArray[np.bool_]]:
    """Logits that are all finite, the labels, and which of these are known and have a logit."""
    z, truth = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    known = (truth >= 0) & np.isfinite(z)
    if not known.any():
        raise ValueError("labels that are fitted on must be known, and their logits finite")
    return np.where(known, z, 0.0), np.where(known, truth, -1), known


def _targets(truth: Labels, has: npt.ArrayLike, lacks: npt.ArrayLike) -> Floats:
    """What each label is to have, (n, classes), by Platt (1999); ``has`` and ``lacks`` count the
    images that have it and that have it not, by class or together."""
    has, lacks = np.asarray(has), np.asarray(lacks)
    return np.asarray(np.where(truth == 1, (has + 1) / (has + 2), 1 / (lacks + 2)))


def _losses(z: Floats, truth: Labels) -> Floats:
    """The sum of the known labels' losses, an image."""
    return np.asarray(label_losses(z, truth).sum(axis=1))


def _measured(z: Floats, truth: Labels) -> Plain:
    gaps = class_gaps(z, truth)
    loss = label_losses(z, truth).sum() / (truth >= 0).sum()
    return {"ece": float(np.nanmean(gaps)), "loss": float(loss)}


def _by_chance(z: Floats, truth: Labels) -> float:
    """The calibration error that such answers show on the mean if each is right as often as it is
    sure; see :func:`xfer.evaluation.calibration.ece_by_chance`."""
    shares, gaps = sigmoid(z), []
    for c in range(z.shape[1]):
        known = truth[:, c] >= 0
        if known.any():
            drawn = np.random.default_rng(derive("label ece by chance", len(z), c))
            gaps.append(gaps_of_draws(shares[known, c], drawn, _DRAWS).mean())
    return float(np.mean(gaps))


def _warnings(truth: Labels, scaling: Scaling, classes: tuple[str, ...]) -> list[str]:
    """What keeps a scaling from being worth much."""
    lines = []
    if scaling.ended:
        lines.append(
            f"calibration: the {scaling.method} scaling ended at the limit of what is looked for "
            f"(temperatures from {LOWEST:g} to {HIGHEST:g}): these logits say little about how "
            "sure to be"
        )
    sides = [(truth == side).any(axis=0) for side in (0, 1)]
    if missing := [name for i, name in enumerate(classes) if not (sides[0][i] and sides[1][i])]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        lines.append(
            f"calibration: it is fitted without an image that has {', '.join(missing[:3])}{more}, "
            "or without one that has it not, and may not hold for those"
        )
    return lines
