"""Which labels are probably wrong, judged by answers to images that the model had not seen.

A label is taken to be another class than the true one with one probability, the same for every
image, and answers are turned into probabilities of the true class by one scale. Scale and
probability are those under which the given labels are likeliest: the contaminated regression of
Copas (1988), with one coefficient. By Bayes' rule follows for every label how likely it is to be
wrong, and the mean of that over a list is the share of wrong ones that can be expected in it. How
probable a far answer is depends on the curve that is assumed: the logistic one says more often than
there are that far answers are right ones with hard images, the normal one less often, and the mean
of both is taken (bench/audit.py measures all three).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.evaluation.leave_one_out import blocks

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Labels = npt.NDArray[np.int64]

_BEGIN = (0.5, -3.0)
"""Logarithm of the scale, and log-odds of a wrong label, that the search begins with."""
_LEAST = 1e-300


@dataclass(frozen=True)
class Judged:
    """What is to be thought of every label.

    ``suggested`` int64 (n,) is the likeliest other class; ``p_wrong`` float64 (n,) the probability
    that the label is wrong; ``fdr`` float64 (n,) the expected share of right labels among this one
    and all that are more suspect (the false-discovery rate); ``order`` int64 (n,) the images from
    the most suspect on; ``rate`` the estimated share of wrong labels.
    """

    suggested: Labels
    p_wrong: Floats
    fdr: Floats
    order: Labels
    rate: float

    @property
    def accused(self) -> Labels:
        """The images whose labels are more likely wrong than right, the most suspect first."""
        return np.asarray(self.order[self.p_wrong[self.order] > 0.5])

    @property
    def rates(self) -> Floats:
        """The false-discovery rate down to each label that is accused, rising."""
        return self.fdr[self.accused]


def judge(answers: Floats, labels: Labels) -> Judged:
    """Judge every label by the answer to its image of a model that had not seen the image.

    ``answers`` float64 (n, classes), the larger the likelier, on any one scale; ``labels`` int64
    (n,). Images of one probability are in the order of their margins. Works in blocks, beside two
    more matrices like ``answers``.
    """
    count = len(labels)
    rows = np.arange(count)
    apart = margins(answers)
    given = apart[rows, labels]
    spread = float(given.std()) or 1.0
    curves = [
        _contaminated(answers, spread, labels, _logistic),
        _contaminated(apart, spread, labels, _normal),
    ]
    p_wrong = np.mean([wrong for wrong, _ in curves], axis=0)
    rate = float(np.mean([share for _, share in curves]))
    order = np.lexsort((given, -p_wrong))
    fdr = np.empty(count)
    fdr[order] = 1 - np.cumsum(p_wrong[order]) / np.arange(1, count + 1)
    others = answers.copy()
    others[rows, labels] = -np.inf
    return Judged(others.argmax(axis=1), p_wrong, fdr, order, rate)


def _contaminated(
    answers: Floats, spread: float, labels: Labels, curve: Callable[[Floats], Floats]
) -> tuple[Floats, float]:
    """How likely each label is wrong, (n,), and the share of wrong labels, where ``curve`` turns
    answers, scaled from their ``spread``, into odds of the classes."""
    from scipy.optimize import minimize

    count, classes = answers.shape

    def of_labels(values: Any) -> tuple[Floats, Floats, float]:
        scale, odds = (
            float(np.clip(value, -20, limit)) for value, limit in zip(values, (6, 20), strict=True)
        )
        rate = (1 - 1 / classes) / (1 + math.exp(-odds))  # at most that of chance
        right = np.empty(count)
        for part in blocks(count, classes):
            odds_of = curve(math.exp(scale) / spread * answers[part])
            given = odds_of[np.arange(len(odds_of)), labels[part]]
            right[part] = given / odds_of.sum(axis=1)
        said = (1 - rate) * right + rate / (classes - 1) * (1 - right)
        return right, np.maximum(said, _LEAST), rate

    def loss(values: Any) -> float:
        return -float(np.log(of_labels(values)[1]).mean())

    # Two numbers, and a likelihood that may be flat in one of them.
    best = minimize(loss, _BEGIN, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-8})
    right, said, rate = of_labels(best.x)
    return rate / (classes - 1) * (1 - right) / said, rate


def _logistic(scaled: Floats) -> Floats:
    return np.asarray(np.exp(scaled - scaled.max(axis=1, keepdims=True)))


def _normal(scaled: Floats) -> Floats:
    from scipy.special import ndtr

    return np.asarray(ndtr(scaled))


def margins(answers: Floats) -> Floats:
    """The answer for each class less the largest of the others, float64 (n, classes)."""
    apart = np.empty(answers.shape)
    for part in blocks(*answers.shape):
        some = answers[part]
        top = np.partition(some, -2, axis=1)[:, -2:]
        apart[part] = some - np.where(some == top[:, 1:], top[:, :1], top[:, 1:])
    return apart
