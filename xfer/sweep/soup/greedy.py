"""The greedy recipe: who goes into a soup, on which images that is chosen, and whether it pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from xfer.core.errors import SweepError
from xfer.core.seeds import derive
from xfer.core.types import Dataset, Predictions, Samples
from xfer.data.dataset import part_of
from xfer.evaluation.multilabel_bootstrap import map_gap
from xfer.evaluation.statistics import paired_difference


@dataclass(frozen=True)
class Taste:
    """What a network is worth on the images that choose: its ``score``, which is the accuracy or of
    several labels an image mAP, and mean log loss."""

    score: float
    loss: float


@dataclass(frozen=True)
class Try:
    """A member in its turn: what it is worth alone, what the average with it was worth (``None``
    for the first, which is nobody's average), and whether it is in the soup."""

    job: int
    alone: Taste
    together: Taste | None
    joins: bool


def greedy(alone: Mapping[int, Taste], taste: Callable[[tuple[int, ...]], Taste]) -> list[Try]:
    """Try every member in the order of its score alone, ties by loss, then by number.

    ``taste`` gives what the average of some jobs is worth. A member joins where the average with
    it is at least as good as that without it (Wortsman et al. 2022, recipe 1); an average
    whose loss is no finite number is never joined.
    """
    order = sorted(alone, key=lambda job: (-alone[job].score, alone[job].loss, job))
    first, *others = order
    soup: tuple[int, ...] = (first,)
    tries, best = [Try(first, alone[first], None, True)], alone[first].score
    for job in others:
        together = taste((*soup, job))
        joins = math.isfinite(together.loss) and together.score >= best
        tries.append(Try(job, alone[job], together, joins))
        if joins:
            soup, best = (*soup, job), together.score
    return tries


@dataclass(frozen=True)
class Tables:
    """The images that choose and those that judge, and how ``result.json`` names them."""

    choosing: Samples
    judging: Samples
    chosen_on: str
    judged_on: str


def tables_of(dataset: Dataset, seed: int) -> Tables:
    """With a split ``test``, val chooses and test judges; without, a half of val each.

    Raises SweepError where there is no val, or too little of it for two halves, or to rank several
    labels by.
    """
    val, test = dataset.splits.get("val"), dataset.splits.get("test")
    if val is None or len(val) < 2:
        what = "there are no two validation images: one part chooses, and the other judges"
        raise SweepError("data", what, "give data with val, and with test if you can", 35)
    if test is not None:
        tables = Tables(val, test, "val", "test")
    else:
        first, second = halves(val, seed)
        parts = part_of(val, first), part_of(val, second)
        tables = Tables(*parts, "a half of val", "the other half")
    for samples, of in ((tables.choosing, tables.chosen_on), (tables.judging, tables.judged_on)):
        has, lacks = ((samples.labels == side).any(axis=0) for side in (1, 0))
        if samples.labels.ndim == 2 and not (has & lacks).any():  # there is no mAP of these
            what = f"{of} has no label that some of its images have and others have not"
            raise SweepError("data", what, "give more images of val, and test if you can", 35)
    return tables


def halves(samples: Samples, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of two halves of ``samples``, int64 and ascending: of each class, or combination of
    labels, half in either.

    The images of a class are ranked by a hash of ``seed``, class and name and dealt out in turn,
    so that neither the order of the files nor another class decides where an image goes; of an odd
    number the half with fewer images takes the more.
    """
    parts: tuple[list[int], list[int]] = ([], [])
    labels = samples.labels
    if labels.ndim == 2:
        labels = np.array([" ".join(map(str, row)) for row in labels.tolist()])
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label).tolist()
        ranked = sorted(
            members,
            key=lambda i: derive("soup", seed, label, normalize("NFC", samples.names[i])),
        )
        more = int(len(parts[0]) > len(parts[1]))
        for place, position in enumerate(ranked):
            parts[(place + more) % 2].append(position)
    first, second = (np.array(sorted(part), np.int64) for part in parts)
    return first, second


@dataclass(frozen=True)
class Verdict:
    """The soup against the best single member on the ``n`` images that judge: ``score`` is how much
    higher its accuracy or mAP is, ``ci95`` the interval of that. Of one label an image, ``gained``
    images it alone got right, ``lost`` the member alone."""

    score: float
    ci95: tuple[float, float]
    n: int
    gained: int | None = None
    lost: int | None = None

    def pays(self, least: float) -> bool:
        """Whether the interval lies above ``least`` as a whole."""
        return self.ci95[0] > least


def verdict(soup: npt.NDArray[np.bool_], member: npt.NDArray[np.bool_]) -> Verdict:
    """Compare two networks on the same images: which each got right, bool (n,)."""
    gained, lost = int((soup & ~member).sum()), int((member & ~soup).sum())
    n = len(soup)
    interval = paired_difference(gained, lost, n)
    return Verdict((gained - lost) / n, interval, n, gained, lost)


def label_verdict(soup: Predictions, member: Predictions) -> Verdict:
    """The same of two networks' answers to images with several labels, which rank some of them."""
    if soup.labels is None:
        raise ValueError("answers without labels are compared with nothing")
    ours, theirs = (answers.logits.astype(np.float64) for answers in (soup, member))
    if (found := map_gap(soup.labels, ours, theirs)) is None:
        raise ValueError("the labels of these images rank nothing")
    return Verdict(found.gap, (found.low, found.high), len(soup.labels))
