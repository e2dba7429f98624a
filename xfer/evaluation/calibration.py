"""Calibration: a scale of the logits after which a network is as often right as it is sure.

Numpy and scipy only. What is fitted on some images is judged on others: see :func:`cross_fitted`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from xfer.core.seeds import derive
from xfer.core.types import Calibrating, Plain
from xfer.evaluation.metrics import Floats, Labels, confidence_gap, gaps_of_draws

LOWEST, HIGHEST = 0.01, 100.0
"""The temperatures that are looked for lie between these."""
FEWEST, FEWEST_UNASKED, PER_CLASS = 10, 30, 10
"""Images that a temperature is fitted on: at least, and where nobody asked for it; and those of
each class that vector scaling is fitted on."""
MOST_FITTED = 100_000
"""Images that a scaling is fitted on at most: a few numbers are as sure of them as of more."""
FOLDS = 5
"""Parts of the images that are fitted on, each judged by what was fitted on the others."""
_DRAWS = 200
FAR = 50.0
"""How far a shift may go."""


@dataclass(frozen=True)
class Scaling:
    """What becomes of logits: ``scale`` times them plus ``shift``, both float64 (classes,). Whether
    a number ``ended`` where no further one is looked for."""

    method: Literal["temperature", "vector"]
    scale: Floats
    shift: Floats
    ended: bool = False

    def of(self, logits: npt.ArrayLike) -> Floats:
        """Logits (n, classes), scaled, in float64."""
        return np.asarray(np.asarray(logits, np.float64) * self.scale + self.shift)

    def undone(self, logits: npt.ArrayLike) -> Floats:
        """The reverse of :meth:`of`."""
        return np.asarray((np.asarray(logits, np.float64) - self.shift) / self.scale)

    def to_plain(self) -> Plain:
        """``temperature``, or ``scale`` and ``shift`` as lists."""
        if self.method == "temperature":
            return {"method": self.method, "temperature": float(1 / self.scale[0])}
        lists = {"scale": self.scale.tolist(), "shift": self.shift.tolist()}
        return {"method": self.method, **lists}


def scaling_of(facts: Plain, classes: int) -> Scaling:
    """The scaling that the facts of a checkpoint's card name."""
    if facts["method"] == "temperature":
        scale = np.full(classes, 1 / float(facts["temperature"]))
        return Scaling("temperature", scale, np.zeros(classes))
    return Scaling("vector", np.array(facts["scale"]), np.array(facts["shift"]))


Fit = Callable[[Floats, Labels], Scaling]
"""What fits a scaling on logits and labels."""


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Scaling:
    """One temperature, the number that all logits (n, classes) are divided by so that the log loss
    of ``labels`` is least.

    Temperature scaling is from Guo et al., *On calibration of modern neural networks* (2017). The
    targets are those of Platt (1999): (n + 1) / (n + 2) for the class of an image, so that images
    which are all answered correctly do not ask for certainty. The loss is convex in the inverse of
    the temperature, which Brent's method (scipy) solves for; it stays between :data:`LOWEST` and
    :data:`HIGHEST`. Raises ValueError for logits that are NaN or Inf, and without images.
    """
    z, truth = _checked(logits, labels)
    target = (z * _targets(truth, z.shape[1])).sum(axis=1)

    def slope(inverse: float) -> float:
        return float(((_softmax(z * inverse) * z).sum(axis=1) - target).mean())

    inverse, classes = best_inverse(slope), z.shape[1]
    ended = inverse in (1 / HIGHEST, 1 / LOWEST)
    return Scaling("temperature", np.full(classes, inverse), np.zeros(classes), ended)


def best_inverse(slope: Callable[[float], float]) -> float:
    """The inverse of the temperature at which the ``slope`` of a convex loss is 0, within the
    limits of what is looked for; 1 of a loss that is the same everywhere."""
    from scipy.optimize import brentq

    low, high = 1 / HIGHEST, 1 / LOWEST
    if slope(1.0) == 0:  # logits that are all equal have any temperature
        return 1.0
    if slope(low) >= 0:
        return low
    return high if slope(high) <= 0 else float(brentq(slope, low, high, xtol=1e-12, rtol=1e-12))


def fit_vector(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Scaling:
    """A positive scale and a shift for each class, of least log loss, found by scipy's L-BFGS-B
    from the temperature on; the shifts add up to zero.

    Vector scaling is from Guo et al. (2017); targets, limits and what is raised as in
    :func:`fit_temperature`.
    """
    from scipy.optimize import minimize

    z, truth = _checked(logits, labels)
    count, classes = z.shape
    target, begin = _targets(truth, classes), fit_temperature(z, truth).scale

    def loss(values: Floats) -> tuple[float, Floats]:
        scaled = z * values[:classes] + values[classes:]
        log_odds = scaled - _log_sum(scaled)
        apart = (np.exp(log_odds) - target) / count
        gradient = np.concatenate([(apart * z).sum(axis=0), apart.sum(axis=0)])
        return -float((target * log_odds).sum() / count), gradient

    limits = [(1 / HIGHEST, 1 / LOWEST)] * classes + [(-FAR, FAR)] * classes
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
    start = np.concatenate([begin, np.zeros(classes)])
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits, options=options).x
    scale, shift = fitted[:classes], fitted[classes:]
    ended = bool(((scale <= 1 / HIGHEST) | (scale >= 1 / LOWEST) | (abs(shift) >= FAR)).any())
    return Scaling("vector", scale, shift - shift.mean(), ended)


def cross_fitted(logits: npt.ArrayLike, labels: npt.ArrayLike, folds: Labels, fit: Fit) -> Floats:
    """The logits of each image, float64 (n, classes), scaled by what ``fit`` makes of the images
    that are not in its fold."""
    z, truth = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    scaled = np.empty_like(z)
    for fold in np.unique(folds):
        inside = folds == fold
        scaled[inside] = fit(z[~inside], truth[~inside]).of(z[inside])
    return scaled


@dataclass(frozen=True)
class Calibrated:
    """The outcome: the ``scaling``, and the ``facts`` about it, JSON-like, as ``result.json`` has
    them."""

    scaling: Scaling
    facts: Plain


def calibrate(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    folds: Labels,
    asked: Calibrating,
    classes: tuple[str, ...],
    may_shift: bool = True,
) -> Calibrated:
    """The scaling of ``logits`` (n, classes) that is ``asked`` for, fitted on all of them, or on
    :data:`MOST_FITTED` that are evenly spread over more.

    ``auto`` is a temperature; or vector scaling, if it ``may_shift`` classes, each has
    :data:`PER_CLASS` images, and its cross-fitted log loss is lower by more than the standard error
    of the difference. It is never nothing: the penalty of a solved head is the one of least loss on
    such images, so that the loss before it is flattered. ``before`` and ``after`` are measured on
    them, ``after`` cross-fitted in ``folds`` (n,); ``by_chance`` is the calibration error that the
    answers after it would show if they were calibrated perfectly.
    """
    z, truth = np.asarray(logits), np.asarray(labels)
    if len(z) > MOST_FITTED:  # evenly over all: a number is as sure of so many as of more
        at = np.linspace(0, len(z) - 1, MOST_FITTED).astype(np.int64)
        z, truth, folds = z[at], truth[at], folds[at]
    z, truth = _checked(z, truth)
    fit = fit_vector if asked == "vector" else fit_temperature
    scaled = cross_fitted(z, truth, folds, fit)
    fewest = int(np.bincount(truth, minlength=len(classes)).min())
    if asked == "auto" and may_shift and fewest >= PER_CLASS:
        other = cross_fitted(z, truth, folds, fit_vector)
        if wins(log_losses(other, truth), log_losses(scaled, truth)):
            fit, scaled = fit_vector, other
    facts: Plain = {
        "n": len(truth),
        "before": _measured(z, truth),
        "after": _measured(scaled, truth),
        "by_chance": ece_by_chance(_softmax(scaled).max(axis=1)),
    }
    scaling = fit(z, truth)
    warnings = _warnings(z, truth, scaling, classes)
    before, after = facts["before"]["loss"], facts["after"]["loss"]
    if asked != "auto" and after > before:
        rises = f"from {before:.4f} to {after:.4f} on images that it is not fitted on"
        warnings.append(f"calibration={asked} raises the loss {rises}")
    return Calibrated(scaling, {**scaling.to_plain(), **facts, "warnings": warnings})


def wins(ours: Floats, theirs: Floats) -> bool:
    """Whether the mean of the one's losses (n,) is lower than that of the other's by more than the
    standard error of the difference."""
    gain = theirs - ours
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))


def _measured(z: Floats, truth: Labels) -> Plain:
    return {"ece": ece(z, truth), "loss": float(log_losses(z, truth).mean())}


def _warnings(z: Floats, truth: Labels, scaling: Scaling, classes: tuple[str, ...]) -> list[str]:
    """What keeps a scaling from being worth much."""
    lines, n = [], len(truth)
    if scaling.ended:
        ends = f"{LOWEST:g} to {HIGHEST:g}"
        lines.append(
            f"calibration: the {scaling.method} scaling ended at the limit of what is looked for "
            f"(temperatures from {ends}): these logits say little about how sure to be"
        )
    if (z.argmax(axis=1) == truth).all():
        lines.append(
            f"calibration: all {n} answers that it is fitted on are right, so that nothing shows "
            f"how often the network is wrong; one mistake in {n + 2} is assumed"
        )
    if missing := [name for i, name in enumerate(classes) if not (truth == i).any()]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        lines.append(
            f"calibration: it is fitted without an image of {', '.join(missing[:3])}{more}, and "
            "may not hold for those"
        )
    return lines


def ece(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The calibration error of ``result.json``, of finite logits (n, classes): 15 bins."""
    z, truth = _checked(logits, labels)
    return confidence_gap(_softmax(z).max(axis=1), z.argmax(axis=1) == truth)


def ece_by_chance(confidence: Floats) -> float:
    """The calibration error that answers of this ``confidence`` (n,) show on the mean if each is
    right exactly so often as it is sure.

    It is far from 0 for few images, since each bin has a handful; a figure below it is luck. Drawn
    at random 200 times: consistency resampling, Bröcker and Smith (2007).
    """
    drawn = np.random.default_rng(derive("ece by chance", len(confidence)))
    return float(gaps_of_draws(confidence, drawn, _DRAWS).mean())


def log_losses(logits: Floats, labels: Labels) -> Floats:
    """The log loss of each image, float64 (n,)."""
    right = logits[np.arange(len(labels)), labels]
    return np.asarray(_log_sum(logits)[:, 0] - right)


def _checked(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Labels]:
    z, truth = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if not len(z) or not np.isfinite(z).all():
        raise ValueError("logits that are fitted on must be there, and finite")
    return z, truth


def _targets(truth: Labels, classes: int) -> Floats:
    """What each class of each image is to have, (n, classes), by Platt (1999)."""
    wrong = 1 / (len(truth) + 2)
    target = np.full((len(truth), classes), wrong / max(1, classes - 1))
    target[np.arange(len(truth)), truth] = 1 - wrong
    return target


def _log_sum(z: Floats) -> Floats:
    top = z.max(axis=1, keepdims=True)
    return np.asarray(top + np.log(np.exp(z - top).sum(axis=1, keepdims=True)))


def _softmax(z: Floats) -> Floats:
    return np.asarray(np.exp(z - _log_sum(z)))
