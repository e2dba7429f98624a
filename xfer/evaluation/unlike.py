"""How unlike all training images a picture is: the distance of its features, and where that stands
among those of images that were held out. numpy only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.certificate import MOST_BYTES, Unlike

if TYPE_CHECKING:
    import numpy.typing as npt

    Matrix = npt.NDArray[Any]

_RANK = 64
_RIDGE = 1.0  # of the mean variance, added to that of every direction
_NUMBERS = int(0.9 * MOST_BYTES) // 4  # the rest is for the probabilities of sets
_ROWS = 4_096  # images that are looked at, spread evenly
_FOLDS, _MANY_FOLDS, _FEW_ROWS = 5, 15, 1_000
_CONSTANT = 1e-12  # of the mean square: a variance below it is rounding


def fit_unlike(
    layer: str, features: Matrix, labels: npt.NDArray[np.int64], held: Matrix | None = None
) -> Unlike | None:
    """The Gaussian of ``features`` (n, d) of training images with ``labels`` int64 (n,).

    Its reference are the distances of ``held`` (m, d), features of images that nothing was trained
    on; without them of the training images themselves, in folds, each from the Gaussian of the
    others. That is for features that no training has changed. ``None`` for features that do not
    vary, or are too wide for a certificate.
    """
    rows = _spread(len(features), _ROWS)
    x, y = np.asarray(features[rows], np.float64), labels[rows]
    classes = len(np.unique(y))
    rank = (_NUMBERS - x.shape[1] - _ROWS - classes) // (x.shape[1] + classes + _RANK)
    whole = _gaussian(layer, x, y, min(_RANK, rank))
    if whole is None:
        return None
    if held is not None:
        return _with_reference(whole, whole.distance(held[_spread(len(held), _ROWS)]))
    # A class at a time, so that each is in every fold.
    fold = np.empty(len(y), np.int64)
    count = min(_MANY_FOLDS if len(y) <= _FEW_ROWS else _FOLDS, len(y))
    fold[np.argsort(y, kind="stable")] = np.arange(len(y)) % count
    distances = np.full(len(y), np.nan)
    for k in range(count):
        rest = _gaussian(layer, x[fold != k], y[fold != k], min(_RANK, rank))
        if rest is not None:
            distances[fold == k] = rest.distance(x[fold == k])
    distances = distances[np.isfinite(distances)]
    return _with_reference(whole, distances) if len(distances) else None


def _with_reference(gaussian: Unlike, distances: Matrix) -> Unlike:
    return replace(gaussian, reference=np.sort(distances).astype(np.float32))


def _spread(n: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many of ``n`` positions, spread evenly."""
    count = min(n, most)
    return np.arange(count) * n // max(1, count)


def _gaussian(layer: str, x: Matrix, y: npt.NDArray[np.int64], rank: int) -> Unlike | None:
    """One centre a class and one covariance, without a reference; ``None`` for features (n, d) that
    do not vary, and for a ``rank`` below 1."""
    mean = x.mean(axis=0)
    away = x - mean
    total, width = float((away**2).mean()), x.shape[1]
    if rank < 1 or total <= _CONSTANT * float((x**2).mean()):
        return None
    basis = _axes(away, rank)
    inside = away @ basis.T
    names, place = np.unique(y, return_inverse=True)
    centres = np.stack([inside[place == i].mean(axis=0) for i in range(len(names))])
    within = inside - centres[place]
    covariance = within.T @ within / max(1, len(x) - len(names))
    # Directions in which training images hardly vary would decide alone; with so much added to
    # each, as in a ridge, those in which they vary count for more.
    ridge = _RIDGE * total
    root = np.linalg.cholesky(covariance + ridge * np.eye(len(basis)))
    whiten = np.linalg.inv(root)
    left = max(0.0, float((away**2).sum(axis=1).mean() - (inside**2).sum(axis=1).mean()))
    noise = 1 / (left / (width - len(basis)) + ridge) if width > len(basis) else 0.0
    parts = (mean, basis, whiten, centres @ whiten.T, np.array([noise]), np.empty(0))
    return Unlike(layer, *(part.astype(np.float32) for part in parts))


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
