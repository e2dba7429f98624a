"""How unlike all training images a picture is: the distance of its features, and where that stands
among those of images that were held out. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xfer.core.certificate import MOST_BYTES, Unlike

Matrix = npt.NDArray[Any]

_RANK = 64
_RIDGE = 3.0  # of the mean variance, added to that of every direction
_OUTSIDE = 0.5  # the weight of the distance outside of the directions
_NEAR = 3  # neighbours of a training image, the mean of whose distances is its radius,
_COMMON = 2.0  # and so many times the mean over all images is added to each
_HEAD = 0.5  # of all variance is what enters the head; the other layers have equal shares
_FLOOR = 0.1  # of a layer's mean deviation, added to that of each of its features
_NUMBERS = int(0.9 * MOST_BYTES) // 4  # the rest is for the probabilities of sets
_ROWS = 4_096  # images that are looked at, spread evenly
_POINTS = 1_024  # of them are in the certificate
_FOLDS, _MANY_FOLDS, _FEW_ROWS = 5, 15, 1_000
_CONSTANT = 1e-12  # of the mean square: a variance below it is rounding


def fit_unlike(
    features: Mapping[str, Matrix],
    labels: npt.NDArray[np.int64],
    held: Mapping[str, Matrix] | None = None,
) -> Unlike | None:
    """Where ``features`` of training images with ``labels`` int64 (n,) lie: (n, d) by the path of
    the layer that they enter, the head's last. With several labels an image, (n, classes), each
    combination counts as a class.

    Its reference are the distances of ``held``, features of images that nothing was trained on;
    without them of the training images themselves, in folds, each from those of the others. That is
    for features that no training has changed. ``None`` for features that do not vary, or are too
    wide for a certificate.
    """
    rows = _spread(len(labels), _ROWS)
    x, y = _beside(features, rows), np.unique(labels[rows], axis=0, return_inverse=True)[1]
    y = y.reshape(-1)  # numpy 2.0 gives a column
    fitted = _Fitting(tuple(features), tuple(part.shape[1] for part in features.values()))
    whole = fitted.to(x, y)
    if whole is None:
        return None
    if held is not None:
        count = len(next(iter(held.values())))
        return _with_reference(whole, whole.distance(_beside(held, _spread(count, _ROWS))))
    # A class at a time, so that each is in every fold.
    fold = np.empty(len(y), np.int64)
    count = min(_MANY_FOLDS if len(y) <= _FEW_ROWS else _FOLDS, len(y))
    fold[np.argsort(y, kind="stable")] = np.arange(len(y)) % count
    distances = np.full(len(y), np.nan)
    for k in range(count):
        rest = fitted.to(x[fold != k], y[fold != k])
        if rest is not None:
            distances[fold == k] = rest.distance(x[fold == k])
    distances = distances[np.isfinite(distances)]
    return _with_reference(whole, distances) if len(distances) else None


def _beside(features: Mapping[str, Matrix], rows: npt.NDArray[np.int64]) -> Matrix:
    """These rows of all features side by side, float64."""
    return np.concatenate([part[rows] for part in features.values()], axis=1, dtype=np.float64)


def _with_reference(fitted: Unlike, distances: Matrix) -> Unlike:
    return replace(fitted, reference=np.sort(distances).astype(np.float32))


def _spread(n: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many of ``n`` positions, spread evenly."""
    count = min(n, most)
    return np.arange(count) * n // max(1, count)


class _Fitting(NamedTuple):
    """The ``layers`` that features enter, and how many of a row enter each."""

    layers: tuple[str, ...]
    widths: tuple[int, ...]

    def to(self, x: Matrix, y: npt.NDArray[np.int64]) -> Unlike | None:
        """What rows (n, d) with labels (n,) give, without a reference; ``None`` for features that
        do not vary, and for those that are too wide."""
        mean, width = x.mean(axis=0), x.shape[1]
        # Images, not the means of classes: a class is not round.
        points = np.argsort(y, kind="stable")[_spread(len(y), _POINTS)]
        rank = (_NUMBERS - 2 * width - _ROWS - len(points)) // (width + len(points) + _RANK)
        scale = self._scale(x, mean)
        away = (x - mean) * scale
        if rank < 1 or not scale.any():
            return None
        basis = _axes(away, min(rank, _RANK))
        inside = away @ basis.T
        names, place = np.unique(y, return_inverse=True)
        centres = np.stack([inside[place == i].mean(axis=0) for i in range(len(names))])
        within = inside - centres[place]
        covariance = within.T @ within / max(1, len(x) - len(names))
        # Directions in which training images hardly vary would decide alone; with so much added to
        # each, as in a ridge, those in which they vary count for more.
        ridge = _RIDGE * float((away**2).mean())
        whiten = np.linalg.inv(np.linalg.cholesky(covariance + ridge * np.eye(len(basis))))
        left = max(0.0, float((away**2).sum(axis=1).mean() - (inside**2).sum(axis=1).mean()))
        outside = width - len(basis)
        noise = _OUTSIDE / (left / outside + ridge) if outside else 0.0
        near = inside[points] @ whiten.T
        radius = _radius(near) + left * noise
        parts = (mean, scale, basis, whiten, near, radius, np.array([noise]), np.empty(0))
        return Unlike(self.layers, *(part.astype(np.float32) for part in parts))

    def _scale(self, x: Matrix, mean: Matrix) -> Matrix:
        """By which each feature is multiplied, (d,): features of a layer vary alike, and a layer
        has its share of all variance, however wide it is; 0 for one that does not vary."""
        scales = []
        for i, end in enumerate(np.cumsum(self.widths)):
            part = slice(end - self.widths[i], end)
            variances = ((x[:, part] - mean[part]) ** 2).mean(axis=0)
            if variances.mean() <= _CONSTANT * float((x[:, part] ** 2).mean()):
                scales.append(np.zeros(self.widths[i]))
                continue
            # What hardly varies is not blown up.
            alike = 1 / (np.sqrt(variances) + _FLOOR * np.sqrt(variances.mean()))
            last = i == len(self.widths) - 1
            share = _HEAD if last else (1 - _HEAD) / (len(self.widths) - 1)
            scales.append(alike * np.sqrt(share / (variances * alike**2).sum()))
        return np.concatenate(scales)


def _radius(points: Matrix) -> Matrix:
    """How far from each of some points (m, r) others are, squared, (m,); 1 where all are one."""
    squares = (points**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * points @ points.T
    np.fill_diagonal(distances, np.inf)
    near = np.sort(np.maximum(distances, 0), axis=1)[:, : min(_NEAR, len(points) - 1)]
    own = near.mean(axis=1) if near.size else np.zeros(len(points))
    radius: Matrix = own + _COMMON * own.mean()
    return radius if radius.any() else np.ones(len(points))


def _axes(away: Matrix, rank: int) -> Matrix:
    """The principal axes (r, d) of centred rows (n, d), orthonormal, of largest variance first."""
    n, width = away.shape
    square = away.T @ away if width <= n else away @ away.T
    values, vectors = np.linalg.eigh(square)
    order = np.argsort(values)[::-1][:rank]
    order = order[values[order] > _CONSTANT * values.sum()]
    if width <= n:
        return np.ascontiguousarray(vectors[:, order].T)
    axes: Matrix = (away.T @ vectors[:, order] / np.sqrt(values[order])).T
    return axes
