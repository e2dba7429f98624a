"""The error as a function of the number of training images, with a band: a power law with a floor.

``error(n) = floor + scale * n ** -rate`` is the form that learning curves are most often seen to
have (Viering and Loog, *The Shape of Learning Curves: A Review*, 2022). Its uncertainty is drawn:
each draw weighs the images anew (the Bayesian bootstrap, Rubin 1981), so that what all sizes
share, because the same images judge them, moves them together; and takes one of the rates that
fit, by a prior around one half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

DRAWS = 1_000
LEVEL = 0.95
_RATES = np.geomspace(0.1, 2.0, 31)
_USUAL, _SPREAD = 0.5, 0.6  # the prior of the rate: log-normal, median and deviation
_ROUGH = 0.004  # by how much, at least, a size may lie off any such curve
_TELLING, _UNKNOWN = 4, 0.2  # repeats that tell how far training sets are apart, and what else


@dataclass(frozen=True)
class Curve:
    """Draws of one learning curve, each float64 (draws,). ``unit`` images are what ``scale`` is
    the error above the floor at; ``shake`` is by how much, of that part of the error, one training
    set differs from another. ``luck`` is the deviation of a score that one image would judge, of
    many their root less; ``None`` where it is a share of right answers, whose luck is known."""

    floor: Numbers
    scale: Numbers
    rate: Numbers
    unit: float
    shake: float
    luck: float | None = None

    def error(self, size: float) -> Numbers:
        """The mean error of heads solved on ``size`` images, draw by draw (draws,)."""
        return np.asarray(self.floor + self.scale * (size / self.unit) ** -self.rate)

    def expected(self, size: float) -> Band:
        """The score of a head solved on ``size`` images, on any number of images: the accuracy, or
        what else is 1 less the error."""
        return band_of(1 - self._of_one_set(size))

    def score(self, size: float, judged: int) -> Band:
        """The score of such a head on ``judged`` images: wider by the luck of those."""
        drawn = np.random.default_rng(1)
        error = self._of_one_set(size)
        if self.luck is not None:
            apart = self.luck / judged**0.5 * drawn.standard_normal(len(error))
            return band_of(1 - np.clip(error + apart, 0.0, 1.0))
        return band_of(1 - drawn.binomial(judged, error) / judged)

    def gain(self, size: float, more: float) -> Band:
        """How much score ``more`` images add to ``size``, in the mean over training sets."""
        return band_of(self.error(size) - self.error(size + more))

    def limit(self) -> Band:
        """The score that no number of images takes the head beyond."""
        return band_of(1 - self.floor)

    def _of_one_set(self, size: float) -> Numbers:
        drawn = np.random.default_rng(0)
        error = self.error(size)
        apart = self.shake * drawn.standard_normal(len(error)) * (error - self.floor)
        return np.clip(error + apart, 0.0, 1.0)


@dataclass(frozen=True)
class Band:
    """A median with the two ends between which 95 of 100 draws lie."""

    value: float
    low: float
    high: float


def band_of(values: Numbers) -> Band:
    """The median and the central 95 % of draws (draws,)."""
    tail = (1 - LEVEL) / 2
    low, value, high = np.quantile(values, [tail, 0.5, 1 - tail])
    return Band(float(value), float(low), float(high))


def weights(count: int, seed: int) -> Numbers:
    """Weights of ``count`` images and of one right and one wrong answer, (DRAWS, count + 2), each
    row adding up to 1. Those two are Jeffreys' half an answer each: without them the error of a
    head that is never wrong would be known to be 0."""
    drawn = np.random.default_rng(seed)
    drawn_weights = np.empty((DRAWS, count + 2))
    drawn_weights[:, :count] = drawn.standard_exponential((DRAWS, count))
    drawn_weights[:, count:] = drawn.standard_gamma(0.5, (DRAWS, 2))
    return np.asarray(drawn_weights / drawn_weights.sum(axis=1, keepdims=True))


def fit(
    sizes: npt.NDArray[np.int64],
    right: npt.NDArray[np.float32],
    by_repeat: Numbers,
    folds: int,
    seed: int,
) -> Curve:
    """The curve of heads solved on ``sizes`` int64 (sizes,) images: ``right`` float32 (sizes, n)
    is the share of the repeats in which each image was answered rightly, NaN where it never was
    answered, and ``by_repeat`` float64 (sizes, repeats) the accuracy of each repeat, which is that
    of ``folds`` heads."""
    known = right[:, ~np.isnan(right).any(axis=0)].astype(np.float64)
    drawn = weights(known.shape[1], seed)
    outside = np.tile([0.0, 1.0], (len(sizes), 1))
    errors = drawn @ np.concatenate([1 - known, outside], axis=1).T
    repeats = by_repeat.shape[1]
    # Images that are answered now so, now otherwise move a repeat as well, each by itself.
    alone = (known * (1 - known)).mean(axis=1) / known.shape[1] * repeats / max(1, repeats - 1)
    return fit_errors(sizes, errors, by_repeat, alone, folds, seed)


def fit_errors(
    sizes: npt.NDArray[np.int64],
    errors: Numbers,
    by_repeat: Numbers,
    alone: Numbers,
    folds: int,
    seed: int,
) -> Curve:
    """The curve through ``errors`` float64 (draws, sizes), each draw with weights of its own;
    ``alone`` (sizes,) is the variance between repeats that no training set is the reason of."""
    unit, repeats = float(sizes[-1]), by_repeat.shape[1]
    between = by_repeat.var(axis=1, ddof=1) if repeats > 1 else np.zeros(len(sizes))
    noise = np.hypot(_ROUGH, np.sqrt(between / repeats))
    floor, scale, rate = _fitted(sizes / unit, errors, noise, seed)
    if repeats < _TELLING:
        return Curve(floor, scale, rate, unit, _UNKNOWN)
    above = np.maximum(errors.mean(axis=0) - float(np.median(floor)), _ROUGH)
    shake = np.sqrt((folds * np.maximum(between - alone, 0.0)).mean() / (above**2).mean())
    return Curve(floor, scale, rate, unit, float(min(shake, 1.0)))


def _fitted(
    x: Numbers, errors: Numbers, noise: Numbers, seed: int
) -> tuple[Numbers, Numbers, Numbers]:
    """Floor, scale and rate of each draw of ``errors`` (draws, sizes): for every rate the best
    floor and scale that are not negative, then one rate by how well it fits."""
    inverse = 1 / noise**2
    floors, scales, costs = [], [], []
    for rate in _RATES:
        falls = x**-rate
        total, sum_x = inverse.sum(), inverse @ falls
        sum_xx, sum_y, sum_xy = inverse @ falls**2, errors @ inverse, errors @ (inverse * falls)
        determinant = total * sum_xx - sum_x**2
        scale = (total * sum_xy - sum_x * sum_y) / determinant if determinant > 0 else 0 * sum_y
        floor = (sum_y - scale * sum_x) / total
        scale = np.where(floor < 0, sum_xy / sum_xx, scale)
        floor = np.where(scale < 0, sum_y / total, np.maximum(floor, 0.0))
        scale = np.maximum(scale, 0.0)
        off = errors - floor[:, None] - scale[:, None] * falls
        usual = np.log(rate / _USUAL) / _SPREAD
        floors.append(floor)
        scales.append(scale)
        costs.append((off**2 @ inverse + usual**2) / 2)
    cost = np.array(costs)
    # The largest of what Gumbel's numbers are added to is a draw with these odds.
    chosen = (np.random.default_rng(seed + 1).gumbel(size=cost.shape) - cost).argmax(axis=0)
    every = np.arange(len(errors))
    return np.array(floors)[chosen, every], np.array(scales)[chosen, every], _RATES[chosen]
