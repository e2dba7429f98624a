"""A convex loss along the principal axes of standardised features, and its least.

Along an axis the curvature is the spread of the features times that of the loss, so that steps
scaled by it make L-BFGS (Nocedal, 1980) arrive in tens of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from xfer.core.long_array import zeros
from xfer.training.feature_moments import blocks, moments

Matrix = npt.NDArray[Any]

SMALL = 1 << 22
"""Numbers of a problem that one thread is enough for."""
_IN_MEMORY = 1 << 27  # numbers that may stay in memory in double precision (1 GiB)
_FLAT = 1e-12  # of the largest spread: along an axis below it nothing varies
_STEPS = 500


class Axes(ABC):
    """The principal axes of standardised features, and the least of a convex loss along them.

    ``views`` are arrays (n, d), one a view, ``held`` the view that held-out images are judged by,
    ``folds`` int64 (n,) the fold that holds an image out, -1 for none. Parameters are
    (classes, r + 1): the weights along the r axes, and the bias.
    """

    def __init__(self, views: Sequence[Matrix], held: Matrix, folds: Matrix, classes: int) -> None:
        self.views, self.held, self.folds, self.classes = views, held, folds, classes
        self.mean, self.std = moments(views)
        count, width = len(views) * len(held), held.shape[1]
        self.dtype = np.float64 if count * min(count, width) <= _IN_MEMORY else np.float32
        self.small = count * min(count, width) <= SMALL
        self.inside = count <= width
        self.whole: list[Matrix] | None = None
        if self.inside or self.dtype is np.float64:
            self.whole = [self._whole(view) for view in views]
        with self.threads():
            self._turn(count)

    def threads(self) -> threadpool_limits:
        """Within, BLAS has one thread for a small problem: on small matrices several cost more than
        they gain, and much more beside other work."""
        import scipy.optimize  # noqa: F401  it brings a BLAS of its own, which is limited once it is there

        return threadpool_limits(1 if self.small else None)

    def _standard(self, block: Matrix) -> Matrix:
        x: Matrix = np.subtract(block, self.mean.astype(self.dtype), dtype=self.dtype)
        x /= self.std.astype(self.dtype)
        return x

    def _whole(self, view: Matrix) -> Matrix:
        whole: Matrix = zeros(view.shape, self.dtype)
        for part in blocks(view):
            whole[part] = self._standard(view[part])
        return whole

    def _turn(self, count: int) -> None:
        """Find the principal axes. Of fewer rows than features, every solution lies in the span of
        the rows: then the rows are turned to the axes, and the features forgotten."""
        if self.inside and self.whole:
            z = self.whole[0] if len(self.whole) == 1 else np.concatenate(self.whole)
            gram = z @ z.T
        else:
            width = self.held.shape[1]
            gram = np.zeros((width, width))
            for _, _, z in self._blocks():
                gram += z.T @ z
        values, vectors = np.linalg.eigh(gram / count)
        varies = values > max(values.max(), 0) * _FLAT
        self.spread, self.axes = values[varies], vectors[:, varies]
        if self.inside:
            scale = np.sqrt(self.spread * count)
            self.whole = np.split(self.axes * scale, len(self.views))
            # The axes themselves, one per row of features, would be as large as all images, and
            # take as long to compute as the whole path does.
            self.spanning, self.axes = z, self.axes / scale

    def weights(self, theta: Matrix) -> Matrix:
        """The weights (classes, d) that parameters are, for standardised features."""
        along: Matrix = theta[:, :-1] @ self.axes.T
        return along @ self.spanning if self.inside else along

    def _blocks(self) -> Iterator[tuple[int, slice, Matrix]]:
        """Which view of which images, and its features in the coordinates that are worked in."""
        for i, view in enumerate(self.views):
            for part in blocks(view):
                yield i, part, self.whole[i][part] if self.whole else self._standard(view[part])

    @abstractmethod
    def shares(self, fold: int | None) -> Matrix:
        """What each image counts in the mean, nothing where ``fold`` holds it out: (n,) or, where
        classes differ, (n, classes)."""

    @abstractmethod
    def slopes(
        self, view: int, part: slice, z: Matrix, head: tuple[Matrix, Matrix], shares: Matrix
    ) -> tuple[float, Matrix]:
        """The loss of the images ``part`` of a view, whose features are ``z``, under the ``head``:
        weight (classes, r) and bias (classes,); and its slope by each logit, (classes, m)."""

    def loss(self, theta: Matrix, shares: Matrix, l2: float) -> tuple[float, Matrix]:
        """The loss of parameters with each image's share in it, penalised, and its gradient."""
        inner = theta[:, :-1] if self.inside else theta[:, :-1] @ self.axes.T
        head = inner.astype(self.dtype), theta[:, -1].astype(self.dtype)
        gradient, of_bias, total = np.zeros(inner.shape), np.zeros(self.classes), 0.0
        for view, part, z in self._blocks():
            loss, slope = self.slopes(view, part, z, head, shares)
            total += loss
            gradient += slope @ z
            of_bias += slope.sum(axis=1)
        along = gradient if self.inside else gradient @ self.axes
        total += l2 / 2 * float((theta[:, :-1] ** 2).sum())
        return total, np.column_stack([along + l2 * theta[:, :-1], of_bias])

    @abstractmethod
    def judged(self, held_out: npt.NDArray[np.float32]) -> tuple[float, float]:
        """Mean loss and accuracy of logits (n, classes) of images that a fold held out."""

    @property
    @abstractmethod
    def curvature(self) -> Matrix:
        """Of the loss along an axis of spread 1, before the fit: a number or (classes, 1)."""

    def mean_loss(self, theta: Matrix) -> float:
        """The mean loss of all images, not penalised."""
        return self.loss(theta, self.shares(None), 0.0)[0]

    def minimum(
        self, l2: float, fold: int | None, start: Matrix | None, nearly: bool = False
    ) -> tuple[Matrix, int]:
        """The parameters of least loss, and the evaluations that were needed; ``nearly`` is no
        nearer than answers ask for, where only those count."""
        from scipy.optimize import fmin_l_bfgs_b

        flat = np.asarray(self.curvature)
        along = flat * self.spread + l2
        scale = 1 / np.sqrt(np.append(along, np.broadcast_to(flat, (*along.shape[:-1], 1)), -1))
        theta = np.zeros((self.classes, scale.shape[-1])) if start is None else start
        shares = self.shares(fold)

        def at(values: Matrix) -> tuple[float, Matrix]:
            value, gradient = self.loss(values.reshape(theta.shape) * scale, shares, l2)
            return value, (gradient * scale).ravel()

        # Under a weak penalty all gradients are small where images are told apart: with 1e-7 alone
        # any start would do, also a fit that has seen what this one holds out.
        penalty = float(abs(l2 * theta * scale).max())
        precise = self.dtype is np.float64 and not nearly
        # A fold's answers choose a strength and a temperature, to five digits.
        least = 1e-7 if fold is None else 1e-6
        factr, pgtol = (10.0, min(least, 1e-4 * penalty or least)) if precise else (1e7, 1e-5)
        if nearly and fold is not None:
            factr, pgtol = 1e8, 1e-4  # it tells strengths apart, and is no answer
        minimum, _, facts = fmin_l_bfgs_b(
            at,
            (theta / scale).ravel(),
            factr=factr,
            pgtol=pgtol,
            maxiter=_STEPS,
            maxfun=2 * _STEPS,
        )
        theta, steps = minimum.reshape(theta.shape) * scale, int(facts["funcalls"])
        if start is None and precise:  # now that there is one to say what is small
            theta, more = self.minimum(l2, fold, theta)
            steps += more
        return theta, steps

    def head(self, theta: Matrix) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Weight (classes, d) and bias (classes,) for features that are not standardised."""
        weight = self.weights(theta) / self.std
        return weight, theta[:, -1] - weight @ self.mean

    def answer(self, theta: Matrix, fold: int, into: npt.NDArray[np.float32]) -> None:
        """Write the logits of the images that ``fold`` holds out."""
        members = np.flatnonzero(self.folds == fold)
        seen = next((i for i, view in enumerate(self.views) if view is self.held), None)
        whole = self.whole[seen] if self.whole and seen is not None else None
        weight = (theta[:, :-1] if self.inside and whole is not None else self.weights(theta)).T
        weight = weight.astype(self.dtype) if whole is None else weight
        for part in blocks(self.held, len(members)):
            chosen = members[part]
            z = self._standard(self.held[chosen]) if whole is None else whole[chosen]
            into[chosen] = z @ weight + theta[:, -1]
            del z  # before the next block is copied


class Rows(Protocol):
    """Images of a solved head, with one label each (:class:`xfer.training.logistic.TrainingRows`)
    or several (:class:`xfer.training.multilabel_logistic.LabelRows`)."""

    @property
    def views(self) -> Sequence[Matrix]:
        """Features (n, d), one a view."""

    @property
    def held(self) -> Matrix:
        """The view that a held-out image is judged by, (n, d)."""

    @property
    def labels(self) -> Matrix:
        """What is known of each image, n rows."""

    @property
    def folds(self) -> npt.NDArray[np.int64]:
        """The fold that holds an image out, (n,), -1 for none."""

    def problem(self) -> Axes:
        """The loss of a head for these images."""

    def divided(self, count: int, seed: int) -> Self:
        """The same in ``count`` other folds, drawn from ``seed``."""
