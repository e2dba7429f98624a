"""Which of several labels an image are probably wrong: has and lacks, each judged by an answer that
had not seen it.

As :mod:`xfer.evaluation.wrong_labels`, a label at a time: a contaminated regression (Copas, 1988),
here with an offset, since most images lack a rare label, and two probabilities of a wrong answer,
since a label is forgotten more often than invented; scale, offset and both are those under which
what is said is likeliest. What comes out is one probability for every answer, so that those of all
labels are ranked together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xfer.evaluation.wrong_labels import MISREAD

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

_SCALE, _ODDS = 1.0, -3.0
"""Logarithm of the scale, and log-odds of a wrong answer, that the search begins with."""
_LEAST = 1e-300
_STEPS = 800  # of a search for four numbers
_SURE = 1.96  # standard errors by which an answer has to be better than chance


@dataclass(frozen=True)
class JudgedLabels:
    """What is to be thought of every label of every image.

    ``labels`` int64 (n, classes) are those that are judged. ``wrong`` float64 (n, classes) is the
    probability that what is said is wrong, ``has`` that the image has the label by its answer
    alone; both are 0 where a label is unknown, or ``blind``: not told by the answers. ``down_to``
    float64 (n, classes) is the expected share of right ones among this one and all that are more
    suspect (the false-discovery rate). ``cuts`` float64 (classes,) are the answers from which on a
    label is rather there than not; ``rate`` the estimated share of wrong ones.
    """

    labels: Labels
    wrong: Floats
    has: Floats
    down_to: Floats
    cuts: Floats
    blind: tuple[int, ...]
    rate: float

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Image and label that are more likely wrong than right, the most suspect first."""
        images, labels = np.nonzero(self.wrong > 0.5)
        order = np.argsort(-self.wrong[images, labels], kind="stable")
        return list(zip(images[order].tolist(), labels[order].tolist(), strict=True))

    @cached_property
    def accused(self) -> Labels:
        """The images of :attr:`pairs`, the most suspect first."""
        return np.array(list(dict.fromkeys(image for image, _ in self.pairs)), np.int64)

    @property
    def rates(self) -> Floats:
        """The false-discovery rate down to each of :attr:`pairs`, rising."""
        return np.array([self.down_to[pair] for pair in self.pairs])

    @cached_property
    def worst(self) -> Labels:
        """The most suspect label of each image, int64 (n,)."""
        return np.asarray(self.wrong.argmax(axis=1))

    @cached_property
    def p_wrong(self) -> Floats:
        """The probability that the most suspect label of an image is wrong, (n,)."""
        return np.asarray(self.wrong[np.arange(len(self.worst)), self.worst])

    @cached_property
    def fdr(self) -> Floats:
        """The false-discovery rate of the list down to the most suspect label of an image, (n,)."""
        return np.asarray(self.down_to[np.arange(len(self.worst)), self.worst])

    @cached_property
    def suggested(self) -> Labels:
        """The labels as they would be with those that are accused the other way round, int64
        (n, classes)."""
        return np.asarray(np.where(self.wrong > 0.5, 1 - self.labels, self.labels))


def judge_labels(answers: Floats, labels: Labels) -> JudgedLabels:
    """Judge every known label by the answer to its image of a model that had not seen the image.

    ``answers`` float64 (n, classes), the larger the likelier, each class on any one scale;
    ``labels`` int64 (n, classes) of 1, 0 and -1 for unknown.
    """
    wrong, has = np.zeros(labels.shape), np.zeros(labels.shape)
    cuts, blind, counted = np.full(labels.shape[1], math.inf), [], 0
    for label, said in enumerate(labels.T):
        known = np.flatnonzero(said >= 0)
        if not _tells(answers[known, label], said[known]):
            blind.append(label)
            continue
        fit = _contaminated(answers[known, label], said[known])
        wrong[known, label], has[known, label], cuts[label] = fit
        counted += len(known)
    order = np.argsort(-wrong, axis=None, kind="stable")
    down_to = np.empty(wrong.size)
    down_to[order] = 1 - np.cumsum(wrong.flat[order]) / np.arange(1, wrong.size + 1)
    rate = float(wrong.sum()) / max(1, counted)
    return JudgedLabels(labels, wrong, has, down_to.reshape(wrong.shape), cuts, tuple(blind), rate)


def _tells(answers: Floats, said: Labels) -> bool:
    """Whether images that have a label are answered higher than others more often than chance
    allows: the rank test of Mann and Whitney (1947)."""
    from scipy.stats import rankdata

    count, has = len(said), int((said == 1).sum())
    lacks = count - has
    if not has or not lacks:
        return False
    above = float(rankdata(answers)[said == 1].sum()) - has * (has + 1) / 2
    error = math.sqrt((count + 1) / (12 * has * lacks))
    return above / (has * lacks) > 0.5 + _SURE * error


class _Fit(NamedTuple):
    """How likely each answer is wrong, and that the image has the label, both (n,); the answer at
    which one is as likely as the other."""

    wrong: Floats
    has: Floats
    cut: float


def _contaminated(answers: Floats, said: Labels) -> _Fit:
    """The fit to the answers (n,) for one label, and whether it is said to be there (n,)."""
    from scipy.optimize import minimize
    from scipy.special import expit, ndtr

    spread = float(answers.std()) or 1.0
    apart, there = answers / spread, said == 1
    middle = (apart[there].mean() + apart[~there].mean()) / 2

    def of_said(values: Any) -> tuple[Floats, Floats, Floats]:
        scale, at, *odds = values
        invented, forgotten = (0.5 * expit(float(value)) for value in odds)  # at most by chance
        has = ndtr(math.exp(np.clip(scale, -20, 6)) * (apart - at))
        misread = MISREAD * np.minimum(has, 1 - has).mean()
        has = has + misread * (1 - 2 * has)
        missed = np.where(there, invented * (1 - has), forgotten * has)
        right = np.where(there, (1 - forgotten) * has, (1 - invented) * (1 - has))
        return has, missed, np.maximum(missed + right, _LEAST)

    def loss(values: Any) -> float:
        return -float(np.log(of_said(values)[2]).mean())

    options = {"xatol": 1e-3, "fatol": 1e-8, "maxiter": _STEPS}
    # Four numbers, and a likelihood that may be flat in some of them.
    best = minimize(loss, (_SCALE, middle, _ODDS, _ODDS), method="Nelder-Mead", options=options)
    has, missed, whole = of_said(best.x)
    return _Fit(missed / whole, has, float(best.x[1]) * spread)
