"""Which labels are probably wrong, judged by answers to images that the model had not seen.

A label is taken to be another class than the true one with one probability, the same for every
image, and answers are turned into probabilities of the true class by a normal curve of one scale:
the contaminated regression of Copas (1988), with one coefficient. No curve has the right labels of
images that a network misreads with confidence, and by answers alone they are not told from wrong
ones. They are more the harder the images are: of those that the curve expects to be taken for
another class a fixed share counts as misread however far the answer is (bench/audit.py measures
what that comes to). Scale and probability are not estimated but averaged over, weighed by how
likely they make the given labels, so that few images are no reason to be sure. By Bayes' rule
follows for every label how likely it is to be wrong, and the mean of that over a list is the share
of wrong ones that can be expected in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xfer.core.errors import first_few
from xfer.evaluation.leave_one_out import blocks

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

MISREAD = 0.07
"""How many of the images that the curve expects to be taken for another class are misread with
confidence, whatever their answers."""
_BEFORE = 9
"""Before any label is seen the share of wrong ones has the distribution Beta(1, 9): a tenth on the
mean, and a small share likelier than a large one."""
SCALES = 16
_LOG_SCALES = (-2.0, 4.0)
_LOG_ODDS = (-8.0, 6.0)
"""Logarithms of the scales, and log-odds of a wrong label, that are averaged over at first: so many
of each, then as many in that part where the labels are likely."""
_NARROWED = 3  # times
_LIGHT = 1e-6  # of all weight
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
    logarithm by which the labels are likelier with wrong ones among them than with none. An image
    alone in its class is not judged, and its ``p_wrong`` 0.
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
    more matrices like ``answers`` and ``SCALES`` numbers an image.
    """
    count = len(labels)
    rows = np.arange(count)
    apart = margins(answers)
    given = apart[rows, labels]
    apart /= float(given.std()) or 1.0
    # Without an image that is alone in its class nothing is known of the class.
    kept = np.bincount(labels)[labels] > 1
    p_wrong, rate, ratio = np.zeros(count), 0.0, 0.0
    if kept.any():
        p_wrong[kept], rate, ratio = _contaminated(apart[kept], labels[kept])
    order = np.lexsort((given, -p_wrong))
    fdr = np.empty(count)
    fdr[order] = 1 - np.cumsum(p_wrong[order]) / np.arange(1, count + 1)
    others = answers.copy()
    others[rows, labels] = -np.inf
    return Judged(others.argmax(axis=1), p_wrong, fdr, order, rate, ratio)


class _Averaged(NamedTuple):
    """How likely each label is wrong, (n,), the share of wrong labels and :attr:`Judged.ratio`."""

    p_wrong: Floats
    rate: float
    ratio: float


def _contaminated(apart: Floats, labels: Labels) -> _Averaged:
    """The average over all scales and shares of wrong labels, where ``apart`` (n, classes) are the
    margins of answers of spread one."""
    from scipy.special import expit

    others = apart.shape[1] - 1
    chance = others / (others + 1)  # a larger share is not looked for
    scales, odds = (np.linspace(*limits, SCALES) for limits in (_LOG_SCALES, _LOG_ODDS))
    for narrowed in range(_NARROWED + 1):
        right = _right(apart, labels, np.exp(scales))
        rates = chance * expit(odds)
        likely = np.array(
            [[np.log(_mixed(some, rate, others)).sum() for rate in (0.0, *rates)] for some in right]
        )
        none, likely = likely[:, 0], likely[:, 1:]
        # The density of a share is multiplied by its derivative after the log-odds.
        before = expit(odds) * expit(-odds) * (1 - rates) ** (_BEFORE - 1)
        weights = np.exp(likely - likely.max()) * before
        weights /= weights.sum()
        if narrowed < _NARROWED:
            of_scale = weights.sum(axis=1) + np.exp(none - none.max())
            scales, odds = _heavy(scales, of_scale), _heavy(odds, weights.sum(axis=0))
    p_wrong = np.zeros(len(labels))
    for i, j in np.argwhere(weights > _LIGHT):
        wrong = rates[j] / others * (1 - right[i])
        p_wrong += weights[i, j] * wrong / _mixed(right[i], rates[j], others)
    ratio = 2 * max(0.0, float(likely.max() - none.max()))
    return _Averaged(p_wrong, float(weights.sum(axis=0) @ rates), ratio)


def _right(apart: Floats, labels: Labels, scales: Floats) -> Floats:
    """How likely each label is that of the image at each scale, (scales, n)."""
    from scipy.special import ndtr

    right, missed = np.empty((len(scales), len(labels))), np.zeros(len(scales))
    for part in blocks(*apart.shape):
        some, at = apart[part], labels[part, None]
        for i, scale in enumerate(scales):
            share = ndtr(scale * some)
            share /= share.sum(axis=1, keepdims=True)
            right[i, part] = np.take_along_axis(share, at, axis=1)[:, 0]
            missed[i] += (1 - share.max(axis=1)).sum()
    misread = MISREAD * missed[:, None] / len(labels)
    return np.maximum(_mixed(right, misread, apart.shape[1] - 1), _LEAST)


def _mixed(right: Floats, rate: float | Floats, others: int) -> Floats:
    """The probability of a label where, with the probability ``rate``, one of the ``others`` takes
    the place of the one that is there by ``right``."""
    return (1 - rate) * right + rate / others * (1 - right)


def _heavy(values: Floats, weights: Floats) -> Floats:
    """As many values over the part that has the weight, and one step around it."""
    some = np.flatnonzero(weights > _LIGHT * weights.sum())
    low, high = max(0, some[0] - 1), min(len(values) - 1, some[-1] + 1)
    return np.linspace(values[low], values[high], len(values))


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
        what = "an image alone in its class is not judged"
        lines.append(f"audit: {what}: {first_few(alone, _FEW)}")
    return lines


def margins(answers: Floats) -> Floats:
    """The answer for each class less the largest of the others, float64 (n, classes)."""
    apart = np.empty(answers.shape)
    for part in blocks(*answers.shape):
        some = answers[part]
        top = np.partition(some, -2, axis=1)[:, -2:]
        apart[part] = some - np.where(some == top[:, 1:], top[:, :1], top[:, 1:])
    return apart
