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
from collections.abc import Callable, Sequence
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
_SHOWN = 2.71
"""The likelihood ratio that chance reaches once in twenty times where no label is wrong. A share
that cannot be below 0 lies on the limit half of the time, so that it is the 90 % quantile of one
degree of freedom (Self and Liang, 1987)."""
_FEW = 5  # classes that a remark names


@dataclass(frozen=True)
class Judged:
    """What is to be thought of every label.

    ``suggested`` int64 (n,) is the likeliest other class; ``p_wrong`` float64 (n,) the probability
    that the label is wrong; ``fdr`` float64 (n,) the expected share of right labels among this one
    and all that are more suspect (the false-discovery rate); ``order`` int64 (n,) the images from
    the most suspect on; ``rate`` the estimated share of wrong labels. ``ratio`` is twice the
    logarithm by which the labels are likelier with that share of wrong ones than with none, by the
    curve that says less. An image alone in its class is not judged, and its ``p_wrong`` 0.
    """

    suggested: Labels
    p_wrong: Floats
    fdr: Floats
    order: Labels
    rate: float
    ratio: float

    @property
    def shown(self) -> bool:
        """Whether the images show that some label is wrong: else hard ones with right labels would
        explain the answers about as well."""
        return self.ratio > _SHOWN

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
    # Without an image that is alone in its class nothing is known of the class.
    kept = np.bincount(labels)[labels] > 1
    p_wrong, rate, ratio = np.zeros(count), 0.0, 0.0
    if kept.any():
        logistic = _contaminated(answers, spread, labels, kept, _logistic)
        normal = _contaminated(apart, spread, labels, kept, _normal)
        p_wrong = np.where(kept, (logistic[0] + normal[0]) / 2, 0)
        rate, ratio = (logistic[1] + normal[1]) / 2, min(logistic[2], normal[2])
    order = np.lexsort((given, -p_wrong))
    fdr = np.empty(count)
    fdr[order] = 1 - np.cumsum(p_wrong[order]) / np.arange(1, count + 1)
    others = answers.copy()
    others[rows, labels] = -np.inf
    return Judged(others.argmax(axis=1), p_wrong, fdr, order, rate, ratio)


def _contaminated(
    answers: Floats,
    spread: float,
    labels: Labels,
    kept: npt.NDArray[np.bool_],
    curve: Callable[[Floats], Floats],
) -> tuple[Floats, float, float]:
    """How likely each label is wrong, (n,), the share of wrong labels and :attr:`Judged.ratio`,
    where ``curve`` turns answers, scaled from their ``spread``, into odds of the classes; fitted on
    the images that are ``kept``, bool (n,)."""
    from scipy.optimize import minimize, minimize_scalar

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
        return -float(np.log(of_labels(values)[1][kept]).mean())

    # Two numbers, and a likelihood that may be flat in one of them.
    best = minimize(loss, _BEGIN, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-8})
    none = minimize_scalar(lambda scale: loss((scale, -20)), bounds=(-6, 6), method="bounded")
    right, said, rate = of_labels(best.x)
    ratio = 2 * int(kept.sum()) * max(0.0, float(none.fun) - float(best.fun))
    return rate / (classes - 1) * (1 - right) / said, rate, ratio


def doubts(judged: Judged, labels: Labels, classes: Sequence[str]) -> list[str]:
    """Remarks on what the images are too few for: to say that any label is wrong, and to judge a
    class."""
    lines = []
    if len(judged.accused) and not judged.shown:
        lines.append(
            f"audit: {len(labels):,} images do not show that any label is wrong: those that are "
            "listed may be hard images with right labels, and more of them than the rate says"
        )
    alone = [f"'{classes[k]}'" for k in np.flatnonzero(np.bincount(labels) == 1).tolist()]
    if alone:
        names = ", ".join(alone[:_FEW]) + ", ..." * (len(alone) > _FEW)
        lines.append(f"audit: an image alone in its class is not judged: {names}")
    return lines


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
