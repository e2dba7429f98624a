"""Scores of a whole split at once, computed in float64 without torch.

A metric is one row of ``METRICS``: everything else that names one reads it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from xfer.core.errors import ConfigError
from xfer.core.long_array import copied
from xfer.core.protocols import CustomMetric
from xfer.core.types import LabelScore, Score
from xfer.evaluation.statistics import wilson

Floats: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = npt.NDArray[np.int64]

FEW = 100
"""Up to so many classes, each has a column of its own in the predictions and in the confusion."""
RANKED = 1000
"""Up to so many classes, the images are ranked once for each of them."""
_BINS = 15
_AT_ONCE = 1 << 13  # images whose logits are worked on at a time


@dataclass(frozen=True)
class Answers:
    """A network's answers on a split, and what several metrics need of them.

    ``logits`` (n, classes); by image its ``truth``, the class ``chosen`` for it, the ``largest``
    of its logits, and the ``total`` of all exponentials over that one's.
    """

    logits: Floats
    truth: Labels
    chosen: Labels
    largest: Floats
    total: Floats


@dataclass(frozen=True)
class Metric:
    """A number computed from the answers on a split: :class:`Answers`, or with several labels an
    image :class:`xfer.evaluation.multilabel_metrics.LabelAnswers`.

    ``name`` is its key in ``result.json`` and, after the split, its column in ``metrics.csv``;
    ``better`` the end at which it is best; ``label`` its heading in a table. It is defined for
    ``least`` to ``most`` classes. A ``share`` of images has Wilson's interval. Where ``on_line``,
    the line that the log has for every epoch shows it.
    """

    name: str
    compute: Callable[[Any], float]
    better: Literal["max", "min"]
    label: str
    least: int = 1
    most: float = math.inf
    share: bool = False
    on_line: bool = True

    @property
    def is_limited(self) -> bool:
        """Whether it is undefined for some number of classes."""
        return self.least > 1 or self.most < math.inf

    def has(self, classes: int) -> bool:
        """Whether it is defined for that many classes."""
        return self.least <= classes <= self.most


Parts = Mapping[str, CustomMetric]
"""The user's metrics, by name."""
_NO_PARTS: Parts = {}


def values(
    logits: npt.ArrayLike, labels: npt.ArrayLike, parts: Parts = _NO_PARTS
) -> dict[str, float]:
    """Every metric of ``logits`` (n, classes) against ``labels`` (n,), without prefix.

    Accuracy counts images. F1 is the mean over the classes that occur, as truth or as answer; AUROC
    the mean over all classes, NaN where one of them has no or only images, and left out above 1,000
    classes. The calibration error has 15 bins (Guo et al., 2017). Of equal logits the first class
    is the answer, and the first five are the top five. A value that logits of NaN would make up is
    NaN.
    """
    z, truth = copied(logits, np.float64), np.asarray(labels, np.int64)
    defined = [metric for metric in with_parts(parts) if metric.has(z.shape[1])]
    if not all(np.isfinite(block).all() for block in _blocks(z)):
        return {metric.name: math.nan for metric in defined}
    answers = Answers(z, truth, z.argmax(axis=1), *by_image(sums, z))
    return {metric.name: float(metric.compute(answers)) for metric in defined}


def names(classes: int, rows: Iterable[Metric] | None = None) -> list[str]:
    """The metric names a run over ``classes`` classes can be monitored by, of ``rows`` or those of
    one label an image."""
    known = [metric for metric in (METRICS if rows is None else rows) if metric.has(classes)]
    return [f"val_{metric.name}" for metric in known] + ["train_loss"]


def with_parts(parts: Parts) -> tuple[Metric, ...]:
    """Every metric of a run: the table's, then a row for each of ``parts``."""
    return (*METRICS, *rows_of(parts))


def rows_of(parts: Parts) -> tuple[Metric, ...]:
    """A row for each of the user's metrics, which are given logits and labels as they are."""
    return tuple(_row_of(name, part) for name, part in parts.items())


def _row_of(name: str, part: CustomMetric) -> Metric:
    def compute(answers: Any) -> float:
        logits, truth = answers.logits.view(), answers.truth.view()
        logits.flags.writeable = truth.flags.writeable = False
        value = part.compute(logits, truth)
        if isinstance(value, str | bool) or not hasattr(value, "__float__"):
            what = f"{type(part).__name__}.compute gave {type(value).__name__} and no number"
            raise ConfigError(f"trainer.metrics.{name}", what, "have it return a float", 21)
        number = float(value)
        return number if math.isfinite(number) else math.nan

    return Metric(name, compute, part.better, name)


def check_names(parts: Parts, several: bool = False) -> None:
    """Raise ConfigError where one of ``parts`` has a name that means something else in a score, of
    images that may have ``several`` labels or have one."""
    fields = LabelScore.__annotations__ if several else Score.__annotations__
    for name in parts:
        if name in {*fields, *(metric.name for metric in METRICS)}:
            what, fix = f"'{name}' means something else in result.json", "give it another name"
            raise ConfigError("trainer.metrics", what, fix, 21)


def _loss(answers: Answers) -> float:
    right = answers.logits[np.arange(len(answers.truth)), answers.truth]
    return float(np.mean(answers.largest - right + np.log(answers.total)))


def sums(z: Floats) -> tuple[Floats, Floats]:
    """The largest logit of each image, and the sum of all exponentials over that one's."""
    largest = z.max(axis=1)
    return largest, np.exp(z - largest[:, None]).sum(axis=1)


def _blocks(z: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    return (z[i : i + _AT_ONCE] for i in range(0, len(z), _AT_ONCE))


def by_image(
    of: Callable[[npt.NDArray[Any]], tuple[Floats, ...]], z: npt.NDArray[Any]
) -> tuple[Floats, ...]:
    """What ``of`` gives of each image, an array or more of (n,), without a copy of all of ``z``."""
    parts = [of(block) for block in _blocks(z)] or [of(z)]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _macro_f1(answers: Answers) -> float:
    truth, chosen, classes = answers.truth, answers.chosen, answers.logits.shape[1]
    counts = np.bincount(truth, minlength=classes) + np.bincount(chosen, minlength=classes)
    right = np.bincount(truth[truth == chosen], minlength=classes)
    occur = counts > 0
    return float(np.mean(2 * right[occur] / counts[occur]))


def _auroc(answers: Answers) -> float:
    """How often an image of a class is ranked above one of another; equal ranks count half.

    The rank is the class's log-odds, ``z_c - log(sum of the others' exponentials)``: a softmax of
    certain answers is 1 for many images, which it can no longer tell apart.
    """
    z, truth = answers.logits, answers.truth
    counts = np.bincount(truth, minlength=z.shape[1])
    if (counts == 0).any() or (counts == len(truth)).any():
        return math.nan  # undefined for a class without, or with only, positive images
    largest, total, second, rest = by_image(_in_order, z)
    # Of the largest apart: what is left of the total without it may be lost in rounding.
    certain = (largest - second) - np.log(rest)
    del second, rest
    areas = []
    for c in range(z.shape[1]):
        ranks = z[:, c] - largest
        first = ranks == 0
        ranks -= np.log(np.maximum(total - np.exp(ranks), 1))
        ranks[first] = certain[first]
        areas.append(_area(ranks, truth == c))
    return float(np.mean(areas))


def _in_order(z: Floats) -> tuple[Floats, ...]:
    """:func:`sums` of all logits of an image, and of all but the largest. They are summed in order
    of size: images with the same logits in other places are equals."""
    ordered = np.sort(z, axis=1)
    return (*sums(ordered), *sums(ordered[:, :-1]))


def _area(ranks: Floats, positive: npt.NDArray[np.bool_]) -> float:
    above, others = np.sort(ranks[positive]), ranks[~positive]
    # Twice the number of positive images below each of the others, equal ones counted half.
    below = above.searchsorted(others, "left") + above.searchsorted(others, "right")
    return 1 - float(below.sum()) / (2 * len(above) * len(others))


def _calibration_error(answers: Answers) -> float:
    return confidence_gap(1 / answers.total, answers.chosen == answers.truth)


def confidence_gap(confidence: Floats, right: npt.NDArray[np.bool_]) -> float:
    """The mean gap of accuracy and confidence (n,) in equal bins, each closed on the left, the last
    one on both sides."""
    gaps = np.bincount(_bins(confidence), weights=right - confidence, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def gaps_of_draws(confidence: Floats, drawn: np.random.Generator, count: int) -> Floats:
    """The gap ``count`` times (count,), each answer drawn to be right as often as it is sure."""
    bins = _bins(confidence)
    gaps = np.empty(count)
    for i in range(count):
        right = drawn.random(len(confidence)) < confidence
        each = np.bincount(bins, weights=right - confidence, minlength=_BINS)
        gaps[i] = np.abs(each).sum() / len(confidence)
    return gaps


def _bins(confidence: Floats) -> Labels:
    return np.asarray(np.linspace(0, 1, _BINS + 1)[1:-1].searchsorted(confidence, "right"))


def _top5(answers: Answers) -> float:
    z, truth = answers.logits, answers.truth
    right = z[np.arange(len(z)), truth][:, None]
    before = np.arange(z.shape[1]) < truth[:, None]
    ahead = (z > right) | ((z == right) & before)
    return float(np.mean(ahead.sum(axis=1) < 5))


# In the order of the tables. The line of an epoch shows the accuracy and what is added here.
METRICS = (
    Metric("acc", lambda a: float(np.mean(a.chosen == a.truth)), "max", "accuracy", share=True),
    Metric("macro_f1", _macro_f1, "max", "macro F1", on_line=False),
    Metric("loss", _loss, "min", "loss", on_line=False),
    Metric("auroc", _auroc, "max", "AUROC", most=RANKED, on_line=False),
    Metric("ece", _calibration_error, "min", "calibration error", on_line=False),
    Metric("top5", _top5, "max", "top-5", least=6, share=True, on_line=False),
)


def score(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    classes: tuple[str, ...],
    used_for_selection: bool,
    parts: Parts = _NO_PARTS,
) -> Score:
    """The full score of one split."""
    count = len(classes)
    computed = values(logits, labels, parts)
    truth, predicted = np.asarray(labels, np.int64), np.asarray(logits).argmax(axis=1)
    right = int((truth == predicted).sum())
    answered = (truth[truth == predicted], truth, predicted)
    totals = (np.bincount(labels, minlength=count).tolist() for labels in answered)
    per_class = {
        name: {
            "n": n,
            "precision": correct / chosen if chosen else 0.0,
            "recall": correct / n if n else 0.0,
            "f1": 2 * correct / (n + chosen) if n + chosen else 0.0,
        }
        for name, correct, n, chosen in zip(classes, *totals, strict=True)
    }
    auroc = computed.get("auroc", math.nan)
    # Score has a field for each of those that every caller knows.
    others = {name: v for name, v in computed.items() if name not in Score.__annotations__}
    return Score(
        n=len(truth),
        acc=right / len(truth),
        acc_ci95=wilson(right, len(truth)),
        loss=computed["loss"],
        macro_f1=computed["macro_f1"],
        auroc=None if math.isnan(auroc) else auroc,
        ece=computed["ece"],
        top5=computed.get("top5"),
        confusion=confusion(truth, predicted, count).tolist() if count <= FEW else None,
        per_class=per_class,
        used_for_selection=used_for_selection,
        others={name: None if math.isnan(v) else v for name, v in others.items()},
    )


def confusion(truth: Labels, predicted: Labels, count: int) -> Labels:
    """Images by true class (row) and predicted class (column), int64 (count, count)."""
    counts = np.bincount(truth * count + predicted, minlength=count**2).reshape(count, count)
    return counts.astype(np.int64)
