"""The head of a frozen network solved on parts of its training images: on all of them for the
final model, on all but one fold for what the procedure is worth.

Everything that a fit takes from its images is taken from its part alone: the moments by which
features are standardised, the weights of classes, and the strength of the penalty, which is chosen
by folds inside the part (nested cross-validation: S. Varma and R. Simon, 2006).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xfer.core.seeds import derive
from xfer.data.folds import inner, none_held_out
from xfer.training import logistic

if TYPE_CHECKING:
    from xfer.training.soft_targets import SoftTargets

    Matrix = npt.NDArray[Any]


@dataclass(frozen=True)
class HeadProblem:
    """A linear head to solve, and the images that it may be solved on.

    ``views`` are arrays (n, d), one a view, ``held`` the view (n, d) that held-out images are
    judged by, ``labels`` int64 (n,), ``groups`` a name an image or nothing. ``weigh`` gives the
    weight of each class for the images a class; where ``balanced``, every class counts the same.
    ``strengths`` are tried by ``parts`` inner folds, drawn from ``seed``. ``soft`` is what a
    teacher answers to these images, view by view.
    """

    views: Sequence[Matrix]
    held: Matrix
    labels: npt.NDArray[np.int64]
    groups: Sequence[str]
    classes: int
    weigh: Callable[[Sequence[int]], Sequence[float] | None]
    balanced: bool
    smoothing: float
    strengths: tuple[float, ...]
    parts: int
    seed: int
    soft: SoftTargets | None = None

    def rows(
        self, members: npt.NDArray[np.int64] | None = None, *position: int
    ) -> logistic.TrainingRows:
        """The problem on the images at ``members``, or on all; ``position`` is of its random
        numbers, beside the seed.

        Raises CombinationError where the strength cannot be chosen: no image of the part may be
        held out, since each of its classes is in one group, or has one image.
        """
        labels = self.labels if members is None else self.labels[members]
        counts = np.bincount(labels, minlength=self.classes)
        weights = np.broadcast_to(1.0, len(labels))  # one number, of which nothing is copied
        if self.balanced:
            weights = len(labels) / (self.classes * counts[labels])
        drawn = derive("folds", self.seed, *position)
        chosen = range(len(labels)) if members is None else members
        groups = [self.groups[i] for i in chosen] if self.groups else None
        folds = inner(labels, groups, self.parts, drawn)
        folds = logistic.folds(labels, self.parts, drawn) if folds is None else folds
        refuse_blind(self.strengths, folds)
        return logistic.TrainingRows(
            self.views if members is None else [view[members] for view in self.views],
            self.held if members is None else self.held[members],
            labels,
            weights,
            np.array(self.weigh(counts.tolist()) or np.ones(self.classes)),
            self.smoothing,
            folds,
            self.soft if members is None or self.soft is None else self.soft.of(members),
        )


def refuse_blind(strengths: Sequence[float], folds: npt.NDArray[np.int64]) -> None:
    """Raise CombinationError where one of several ``strengths`` is to be chosen and no image is
    held out by ``folds`` to choose it by."""
    if len(strengths) > 1 and (folds < 0).all():
        raise none_held_out()
