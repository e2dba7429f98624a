"""Calibration: a scale of the logits after which a network is as often right as it is sure.

Numpy and scipy only. What is fitted on some images is judged on others: see :func:`cross_fitted`.
``logits`` are (n, classes), ``labels`` int64 (n,). With several labels an image they are int64
(n, classes) of 1, 0 and -1 for unknown, and each class is a yes or no of its own: a label that is
unknown, or whose logit is none, has no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from xfer.core.long_array import copied, zeros
from xfer.core.probabilities import sigmoid
from xfer.core.seeds import derive
from xfer.core.types import Calibrating, Plain
from xfer.evaluation.metrics import Floats, Labels, confidence_gap, gaps_of_draws
from xfer.evaluation.multilabel_metrics import class_gaps, label_losses

LOWEST, HIGHEST = 0.01, 100.0
"""The temperatures that are looked for lie between these."""
FEWEST, FEWEST_UNASKED, PER_CLASS = 10, 30, 10
"""Images that a temperature is fitted on: at least, and where nobody asked for it; and those of
each class that vector scaling is fitted on."""
MOST_FITTED = 100_000
"""Images that a scaling is fitted on at most: a few numbers are as sure of them as of more."""
FOLDS = 5
"""Parts of the images that are fitted on, each judged by what was fitted on the others."""
_DRAWS, _LABEL_DRAWS = 200, 50
_FAR = 50.0  # how far a shift may go


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
        z = copied(logits, np.float64)
        z *= self.scale
        z += self.shift
        return z

    def undone(self, logits: npt.ArrayLike) -> Floats:
        """The reverse of :meth:`of`."""
        z = copied(logits, np.float64)
        z -= self.shift
        z /= self.scale
        return z

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
    """One temperature, the number that all ``logits`` are divided by so that the log loss of
    ``labels`` is least; with several labels an image the mean binary cross-entropy of the known.

    Temperature scaling is from Guo et al., *On calibration of modern neural networks* (2017). The
    targets are those of Platt (1999): (n + 1) / (n + 2) for the class of an image, so that images
    which are all answered correctly do not ask for certainty; and so for a label that an image has,
    of n such in all classes, beside 1 / (m + 2) for one that it has not, of m. The loss is convex
    in the inverse of the temperature, which Brent's method (scipy) solves for; it stays between
    0.01 and 100. Raises ValueError for logits that are NaN or Inf, and without images or a known
    label.
    """
    from scipy.optimize import brentq

    z, truth = _checked(logits, labels)
    slope = (_slope if truth.ndim == 1 else _slope_of_labels)(z, truth)
    low, high, classes = 1 / HIGHEST, 1 / LOWEST, z.shape[1]
    if slope(1.0) == 0:  # logits that are all equal have any temperature
        inverse = 1.0
    elif slope(low) >= 0:
        inverse = low
    elif slope(high) <= 0:
        inverse = high
    else:
        inverse = float(brentq(slope, low, high, xtol=1e-12, rtol=1e-12))
    ended = inverse in (low, high)
    return Scaling("temperature", np.full(classes, inverse), np.zeros(classes), ended)


def _slope(z: Floats, truth: Labels) -> Callable[[float], float]:
    """The derivative of the loss by the inverse of the temperature."""
    target = (z * _targets(truth, z.shape[1])).sum(axis=1)
    return lambda inverse: float(((_softmax(z * inverse) * z).sum(axis=1) - target).mean())


def _slope_of_labels(z: Floats, truth: Labels) -> Callable[[float], float]:
    known, has = truth >= 0, (truth == 1).sum()
    target, count = _label_targets(truth, has, known.sum() - has), known.sum()
    return lambda inverse: float(((sigmoid(z * inverse) - target) * z * known).sum() / count)


def fit_vector(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Scaling:
    """A positive scale and a shift for each class, of least log loss, found by scipy's L-BFGS-B
    from the temperature on.

    Vector scaling is from Guo et al. (2017); its shifts add up to zero. With several labels an
    image it is Platt's scaling (J. Platt, 1999), a class at a time, with targets by the counts of
    that class. Targets, limits and what is raised as in :func:`fit_temperature`.
    """
    z, truth = _checked(logits, labels)
    begin = fit_temperature(z, truth).scale
    scale, shift = (_vector if truth.ndim == 1 else _vector_of_labels)(z, truth, begin)
    limits = (scale <= 1 / HIGHEST) | (scale >= 1 / LOWEST) | (abs(shift) >= _FAR)
    if truth.ndim == 1:
        shift = shift - shift.mean()
    return Scaling("vector", scale, shift, bool(limits.any()))


def _vector(z: Floats, truth: Labels, begin: Floats) -> tuple[Floats, Floats]:
    count, classes = z.shape
    target = _targets(truth, classes)

    def loss(values: Floats) -> tuple[float, Floats]:
        scaled = z * values[:classes] + values[classes:]
        log_odds = scaled - _log_sum(scaled)
        apart = (np.exp(log_odds) - target) / count
        gradient = np.concatenate([(apart * z).sum(axis=0), apart.sum(axis=0)])
        return -float((target * log_odds).sum() / count), gradient

    found = _least(loss, begin)
    return found[:classes], found[classes:]


def _vector_of_labels(z: Floats, truth: Labels, begin: Floats) -> tuple[Floats, Floats]:
    known = truth >= 0
    has, every = (truth == 1).sum(axis=0), known.sum(axis=0)
    target = _label_targets(truth, has, every - has)
    scale, shift = begin.copy(), np.zeros(z.shape[1])
    for c in np.flatnonzero(every):
        scale[c], shift[c] = _platt(z[:, c], target[:, c], known[:, c], begin[c])
    return scale, shift


def _platt(z: Floats, target: Floats, known: npt.NDArray[np.bool_], begin: float) -> Floats:
    """Scale and shift of one class; all are (n,)."""
    count = int(known.sum())

    def loss(values: Floats) -> tuple[float, Floats]:
        scaled = values[0] * z + values[1]
        losses = np.logaddexp(0.0, scaled) - target * scaled
        apart = (sigmoid(scaled) - target) * known / count
        gradient = np.array([(apart * z).sum(), apart.sum()])
        return float((losses * known).sum() / count), gradient

    return _least(loss, np.array([begin]))


def _least(loss: Callable[[Floats], tuple[float, Floats]], begin: Floats) -> Floats:
    """Where the ``loss`` is least, which comes with its gradient: scales, looked for from ``begin``
    on, and as many shifts."""
    from scipy.optimize import minimize

    limits = [(1 / HIGHEST, 1 / LOWEST)] * len(begin) + [(-_FAR, _FAR)] * len(begin)
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
    start = np.concatenate([begin, np.zeros(len(begin))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits, options=options)
    return np.asarray(found.x)


def cross_fitted(logits: npt.ArrayLike, labels: npt.ArrayLike, folds: Labels, fit: Fit) -> Floats:
    """The logits of each image, float64 (n, classes), scaled by what ``fit`` makes of the images
    that are not in its fold; with one label an image of :data:`MOST_FITTED` of them."""
    z, truth = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    scaled = zeros(z.shape, np.float64)
    for fold in np.unique(folds):
        inside = folds == fold
        others = np.flatnonzero(~inside)
        others = others if truth.ndim == 2 else _spread(others)
        scaled[inside] = fit(z[others], truth[others]).of(z[inside])
    return scaled


def _spread(images: Labels) -> Labels:
    """So many of ``images`` (n,) as a few numbers are fitted on, evenly over all."""
    if len(images) <= MOST_FITTED:
        return images
    return images[np.linspace(0, len(images) - 1, MOST_FITTED).astype(np.int64)]


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
    """The scaling of ``logits`` that is ``asked`` for, fitted on all of them, or with one label an
    image on :data:`MOST_FITTED` that are evenly spread over more.

    ``auto`` is a temperature; or vector scaling, if it ``may_shift`` classes, each has
    :data:`PER_CLASS` images, and with several labels as many without it, and its cross-fitted loss
    is lower by more than the standard error of the difference. It is never nothing: the penalty of
    a solved head is the one of least loss on such images, so that the loss before it is flattered.
    ``before`` and ``after`` are measured on them, ``after`` cross-fitted in ``folds`` (n,);
    ``by_chance`` is the calibration error that the answers after it would show if they were
    calibrated perfectly. With several labels it is the mean over the classes, and ``per_class`` has
    it before and after for each.
    """
    z, truth = np.asarray(logits), np.asarray(labels)
    several = truth.ndim == 2
    if len(z) > MOST_FITTED and not several:
        at = _spread(np.arange(len(z)))
        z, truth, folds = z[at], truth[at], folds[at]
    z, truth = _checked(z, truth)
    if several:  # with each label, or without it where these are fewer
        counts = np.minimum((truth == 1).sum(axis=0), (truth == 0).sum(axis=0))
    else:
        counts = np.bincount(truth, minlength=len(classes))
    fit = fit_vector if asked == "vector" else fit_temperature
    scaled = cross_fitted(z, truth, folds, fit)
    if asked == "auto" and may_shift and counts.min() >= PER_CLASS:
        other = cross_fitted(z, truth, folds, fit_vector)
        gain = _losses(scaled, truth) - _losses(other, truth)
        if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)):
            fit, scaled = fit_vector, other
    scaling, before, after = fit(z, truth), _measured(z, truth), _measured(scaled, truth)
    facts: Plain = {"n": len(truth), "before": before, "after": after}
    if several:
        gaps = zip(classes, class_gaps(z, truth), class_gaps(scaled, truth), strict=True)
        facts["by_chance"] = _label_ece_by_chance(scaled, truth)
        facts["per_class"] = {
            name: {"before": float(one), "after": float(two)}
            for name, one, two in gaps
            if np.isfinite(one)
        }
    else:
        facts["by_chance"] = ece_by_chance(_softmax(scaled).max(axis=1))
    missing = [classes[c] for c in np.flatnonzero(counts == 0)]
    warnings = _warnings(z, truth, scaling, missing)
    if asked != "auto" and after["loss"] > before["loss"]:
        rises = f"from {before['loss']:.4f} to {after['loss']:.4f}"
        fitted = "on images that it is not fitted on"
        warnings.append(f"calibration={asked} raises the loss {rises} {fitted}")
    return Calibrated(scaling, {**scaling.to_plain(), **facts, "warnings": warnings})


def _losses(z: Floats, truth: Labels) -> Floats:
    """The loss of each image, (n,): with several labels the sum of those of the known."""
    return log_losses(z, truth) if truth.ndim == 1 else label_losses(z, truth).sum(axis=1)


def _measured(z: Floats, truth: Labels) -> Plain:
    if truth.ndim == 1:
        return {"ece": ece(z, truth), "loss": float(log_losses(z, truth).mean())}
    loss = label_losses(z, truth).sum() / (truth >= 0).sum()
    return {"ece": float(np.nanmean(class_gaps(z, truth))), "loss": float(loss)}


def _warnings(z: Floats, truth: Labels, scaling: Scaling, missing: Sequence[str]) -> list[str]:
    """What keeps a scaling from being worth much; classes that are ``missing`` are one of it."""
    lines, n, several = [], len(truth), truth.ndim == 2
    if scaling.ended:
        lines.append(
            f"calibration: the {scaling.method} scaling ended at the limit of what is looked for "
            f"(temperatures from {LOWEST:g} to {HIGHEST:g}): these logits say little about how "
            "sure to be"
        )
    if not several and (z.argmax(axis=1) == truth).all():
        lines.append(
            f"calibration: all {n} answers that it is fitted on are right, so that nothing shows "
            f"how often the network is wrong; one mistake in {n + 2} is assumed"
        )
    if missing:
        some = ", ".join(missing[:3]) + f" and {len(missing) - 3} more" * (len(missing) > 3)
        without = f"that has {some}, or without one that has it not" if several else f"of {some}"
        lines.append(
            f"calibration: it is fitted without an image {without}, and may not hold for those"
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


def _label_ece_by_chance(z: Floats, truth: Labels) -> float:
    """The same with several labels an image, where an answer is a yes or no: the mean over the
    classes."""
    shares, gaps = sigmoid(z), []
    for c in range(z.shape[1]):
        known = truth[:, c] >= 0
        if known.any():
            drawn = np.random.default_rng(derive("label ece by chance", len(z), c))
            gaps.append(gaps_of_draws(shares[known, c], drawn, _LABEL_DRAWS).mean())
    return float(np.mean(gaps))


def log_losses(logits: Floats, labels: Labels) -> Floats:
    """The log loss of each image, float64 (n,)."""
    right = logits[np.arange(len(labels)), labels]
    return np.asarray(_log_sum(logits)[:, 0] - right)


def _checked(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Labels]:
    """Logits that are all finite, and the labels."""
    z, truth = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if truth.ndim == 2:
        known = (truth >= 0) & np.isfinite(z)
        if not known.any():
            raise ValueError("labels that are fitted on must be known, and their logits finite")
        return np.where(known, z, 0.0), np.where(known, truth, -1)
    if not len(z) or not np.isfinite(z).all():
        raise ValueError("logits that are fitted on must be there, and finite")
    return z, truth


def _targets(truth: Labels, classes: int) -> Floats:
    """What each class of each image is to have, (n, classes), by Platt (1999)."""
    wrong = 1 / (len(truth) + 2)
    target = np.full((len(truth), classes), wrong / max(1, classes - 1))
    target[np.arange(len(truth)), truth] = 1 - wrong
    return target


def _label_targets(truth: Labels, has: npt.ArrayLike, lacks: npt.ArrayLike) -> Floats:
    """What each label is to have, (n, classes), by Platt (1999); ``has`` and ``lacks`` count the
    images that have it and that have it not, by class or together."""
    has, lacks = np.asarray(has), np.asarray(lacks)
    return np.asarray(np.where(truth == 1, (has + 1) / (has + 2), 1 / (lacks + 2)))


def _log_sum(z: Floats) -> Floats:
    top = z.max(axis=1, keepdims=True)
    return np.asarray(top + np.log(np.exp(z - top).sum(axis=1, keepdims=True)))


def _softmax(z: Floats) -> Floats:
    return np.asarray(np.exp(z - _log_sum(z)))
