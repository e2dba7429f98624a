"""What a teacher answers, as targets of a head that is solved. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from xfer.core.probabilities import sigmoid

Matrix = npt.NDArray[Any]


@dataclass(frozen=True)
class SoftTargets:
    """The teacher's part of the loss of :class:`xfer.training.loss.Distill`: ``logits`` are arrays
    (n, classes), one a view, the ``temperature`` T that both networks' logits are divided by, and
    the part's ``weight`` in the loss."""

    logits: Sequence[Matrix]
    temperature: float
    weight: float

    def of(self, members: npt.NDArray[np.int64]) -> SoftTargets:
        """The same of the images at ``members`` alone."""
        return replace(self, logits=[view[members] for view in self.logits])

    def add(
        self, view: int, part: slice, answers: Matrix, shares: Matrix, gradient: Matrix
    ) -> float:
        """The part of the loss that the images ``part`` of a view have, each with its share of the
        mean in ``shares`` (m, 1); its gradient is added to ``gradient`` (m, classes).

        ``answers`` (m, classes) are the logits of the head. The loss T^2 H(p, q) with p the
        softmax of the teacher's logits over T, and q of the head's, has the gradient T (q - p) and
        is convex in the head's logits.
        """
        from scipy.special import log_softmax

        heat, kind = self.temperature, answers.dtype
        taught = log_softmax(np.asarray(self.logits[view][part], kind) / heat, axis=1)
        np.exp(taught, out=taught)
        guessed = log_softmax(answers / heat, axis=1)
        loss = -self.weight * heat**2 * float(np.vdot(shares * taught, guessed))
        np.exp(guessed, out=guessed)
        gradient += self.weight * heat * shares * (guessed - taught)
        return loss

    def add_labels(
        self, view: int, part: slice, answers: Matrix, shares: Matrix, gradient: Matrix
    ) -> float:
        """As :meth:`add` with several labels an image: the sum over the classes of binary
        cross-entropies, p and q the sigmoids."""
        heat, kind = self.temperature, answers.dtype
        taught = sigmoid(np.asarray(self.logits[view][part], kind) / heat)
        guessed = answers / heat
        losses = np.logaddexp(0, guessed) - taught * guessed
        gradient += self.weight * heat * shares * (sigmoid(guessed) - taught)
        return self.weight * heat**2 * float((shares * losses).sum())
