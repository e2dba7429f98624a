"""The stage ``audit``: images and labels to look at again, from features at the head's input.

Nothing is trained but a linear head on these features, and nothing is changed: what is noticed goes
into tables and a page, and the user decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xfer.core.device import device_name
from xfer.core.errors import CombinationError, DataError
from xfer.core.log import log
from xfer.core.long_array import concatenated
from xfer.core.types import Plain
from xfer.evaluation.leave_one_out import (
    BLOCK,
    Coordinates,
    LeftOut,
    coordinates,
    leave_one_out,
)
from xfer.evaluation.multilabel_leave_one_out import LabelsLeftOut, labels_left_out
from xfer.evaluation.multilabel_wrong_labels import JudgedLabels, judge_labels
from xfer.evaluation.neighbours import (
    AXES,
    TILE,
    Nearest,
    alike_from,
    directions,
    nearest,
    nearest_among,
    outliers,
    pairs,
)
from xfer.evaluation.statistics import wilson
from xfer.evaluation.wrong_labels import SCALES, Judged, doubts, judge
from xfer.training import exact
from xfer.training.backbone_features import head_input, source_answers
from xfer.training.features import AutoFeatures
from xfer.training.features.feature_loader import CachedFeatures

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from xfer.plan.plan import Plan

_NEAREST = 8
"""Neighbours of each image that are looked at for near-duplicates."""
_MOST_EFFECT = 10
_MANY_WRONG = 0.25
_NAMED = 5  # labels that a remark names


class Twin(NamedTuple):
    """Two images that are the same or nearly so; ``how`` is "same bytes", "looks alike" (both as
    :mod:`xfer.data.leakage` compares files) or "alike features"."""

    image: int
    other: int
    cosine: float
    how: str


@dataclass(frozen=True)
class Audited:
    """What was noticed about the images of a run, all splits after each other.

    ``names``, ``splits`` and ``labels`` int64 are of length n; where an image has several labels
    these are (n, classes) of 1, 0 and -1 for unknown. ``judged`` is about the labels,
    ``twins`` are near-duplicates, ``outliers`` int64 (m,) the images unlike all others, the
    farthest first, ``influential`` those whose removal moves the answers most with how many other
    images would then be given another class (or other labels), ``left_out`` the regression all
    this is of, and ``vectors`` float32 (n, r) the directions of the images. ``facts`` is what
    ``audit.json`` says of the whole; ``groups`` are of length n, or nothing without data.group.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    judged: Judged | JudgedLabels
    twins: list[Twin]
    outliers: npt.NDArray[np.int64]
    influential: dict[int, int]
    left_out: LeftOut | LabelsLeftOut
    vectors: npt.NDArray[np.float32]
    facts: Plain
    features: Plain
    device: str
    seconds: tuple[float, float]
    warnings: list[str]
    groups: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def blind(self) -> bool:
        """Whether the features tell no label: held out, no more images are taken for what they are
        labelled than are in the largest class; or no label is told better than by chance."""
        if isinstance(self.left_out, LeftOut):
            right = int((self.left_out.held_out(self.labels).argmax(axis=1) == self.labels).sum())
            return _blind(right, int(np.bincount(self.labels).max()), len(self.labels))
        return isinstance(self.judged, JudgedLabels) and not np.isfinite(self.judged.cuts).any()

    @property
    def counts(self) -> Plain:
        """What ``result.json`` says of the audit."""
        rates = self.judged.rates
        across = sum(self.splits[t.image] != self.splits[t.other] for t in self.twins)
        return {
            "images": len(self.labels),
            "known": int((self.labels >= 0).sum()),
            "labels": len(rates),
            "fdr": float(rates[-1]) if len(rates) else None,
            "rate": self.judged.rate,
            "duplicates": len(self.twins),
            "across_splits": across,
            "outliers": len(self.outliers),
            "influential": len(self.influential),
            "seconds": self.seconds[1],
        }

    def like(self, image: int, label: int, count: int, has: int = 1) -> list[int]:
        """The images of a class that are most like an image, ``count`` at most; where an image has
        several labels those that are known to have it, or, with 0 for ``has``, to lack it."""
        inside = np.flatnonzero(_members(self.labels, label, has))
        return nearest_among(self.vectors, image, inside, count)


def audit(plan: Plan) -> Audited:
    """Look at all images of ``plan`` with its pretrained network.

    Features come from the cache where a fit has left them, and are left there for one. Raises
    CombinationError for a network without features at its head, DataError for features that tell
    nothing apart.
    """
    began = time.perf_counter()
    plan = as_evaluated(plan)
    try:
        cached, matrix, device = features(plan)
    except exact.NotExact as error:
        what = f"the audit needs the input of the head, and {error}"
        fix = "type head=linear and features=auto, or choose another backbone"
        raise CombinationError("backbone", what, fix, 26) from error
    log.info(cached.summary())
    splits = dict(cached.work.splits)
    belonging = tuple(name for samples in splits.values() for name in samples.groups)
    # The group of each image by its number.
    groups = np.unique(belonging, return_inverse=True)[1].astype(np.int64) if belonging else None
    largest = 1 if groups is None else int(np.bincount(groups).max())
    answers = source_answers(plan, matrix)
    working = _working_bytes(matrix, len(plan.card.classes), largest, answers.shape[1])
    log.info(f"audit: {len(matrix):,} images take about {working / 1e6:,.0f} MB of memory")
    ready = time.perf_counter()
    names = tuple(name for samples in splits.values() for name in samples.names)
    labels = np.concatenate([samples.labels for samples in splits.values()])
    exact.refuse_no_numbers(matrix, names)
    classes = plan.card.classes
    apart, alone = _left_out_together(groups, labels, len(classes))
    of_labels, vectors, likest = look(matrix, labels, classes, groups, apart, answers)
    least = alike_from(likest)
    whole = {
        "images": len(labels),
        **of_labels.facts,
        "source_classes": answers.shape[1],
        "near_duplicate": {"cosine": least},
        "working_bytes": working,
        "groups": None if groups is None else int(groups.max()) + 1,
    }
    return Audited(
        names=names,
        splits=tuple(name for name, samples in splits.items() for _ in range(len(samples))),
        labels=labels,
        classes=classes,
        judged=of_labels.judged,
        twins=_twins(plan, names, likest, least),
        outliers=outliers(likest),
        influential=of_labels.influential,
        left_out=of_labels.left_out,
        vectors=vectors,
        facts=whole,
        features=cached.facts({"hit": None}),
        device=device,
        seconds=(ready - began, time.perf_counter() - ready),
        warnings=[*of_labels.remarks, *_alone([classes[k] for k in alone]), *_of_network(plan)],
        groups=belonging,
    )


def _left_out_together(
    groups: npt.NDArray[np.int64] | None, labels: npt.NDArray[np.int64], classes: int
) -> tuple[npt.NDArray[np.int64] | None, list[int]]:
    """The groups whose images are judged by the others, int64 (n,), and the classes that are in
    one group: without it nothing would be known of them, so each of their images is one."""
    if groups is None:
        return None, []
    apart = groups.copy()
    members = [_members(labels, k) for k in range(classes)]
    alone = [k for k, some in enumerate(members) if len(np.unique(groups[some])) == 1]
    single = np.zeros(len(labels), bool)
    for k in alone:
        single |= members[k]
    apart[single] = groups.max() + 1 + np.arange(np.count_nonzero(single))
    return apart, alone


def _members(labels: npt.NDArray[np.int64], label: int, has: int = 1) -> npt.NDArray[np.bool_]:
    """The images of a class, or of several labels those that are known to have it, or, with 0 for
    ``has``, to lack it."""
    return np.asarray(labels[:, label] == has if labels.ndim == 2 else labels == label)


def _alone(names: Sequence[str]) -> list[str]:
    """A remark on classes whose images are judged by others of their group."""
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
    why = "audit: all images of a class are in one group, and judged by each other"
    return [f"{why}: {shown}"] if names else []


class Looked(NamedTuple):
    """What the features say: see :class:`Audited`; ``likest`` are the nearest of each image."""

    of_labels: _OfLabels
    vectors: npt.NDArray[np.float32]
    likest: Nearest


def look(
    matrix: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    groups: npt.NDArray[np.int64] | None = None,
    apart: npt.NDArray[np.int64] | None = None,
    answers: npt.NDArray[np.float32] | None = None,
) -> Looked:
    """All that is computed from features (n, d) with ``labels`` of images in ``groups``; those of
    one group in ``apart`` do not judge each other. Labels are judged by the source's ``answers``
    (n, its classes) as well. Raises DataError for features that tell nothing apart."""
    at = coordinates(matrix)
    if not len(at.squares):
        what = f"the features of all {len(labels)} images are the same"
        raise DataError("features", what, "use other weights, or another backbone", 58)
    vectors, lengths = directions(at)
    if answers is not None and answers.size:
        at = coordinates(concatenated([matrix, answers], 1), answers.shape[1])
    judged = (_at_labels if labels.ndim == 2 else _at_classes)(at, labels, classes, apart)
    return Looked(judged, vectors, nearest(vectors, lengths, _NEAREST, groups))


def as_evaluated(plan: Plan) -> Plan:
    """The plan with images as they are evaluated, on one device."""
    specs = plan.specs
    features = specs.features
    if isinstance(features, AutoFeatures):
        features = replace(features, views=1)
    trainer = replace(specs.trainer, devices=1, nodes=1)
    return replace(plan, specs=replace(specs, features=features, trainer=trainer))


def features(plan: Plan) -> tuple[CachedFeatures, npt.NDArray[np.float32], str]:
    """The features of all splits after each other, float32 (n, d), and the device."""
    entering = head_input(plan)
    parts = [entering.of(split) for split in entering.cached.work.splits]
    return entering.cached, concatenated(parts), device_name(entering.frozen.device)


def _twins(plan: Plan, names: tuple[str, ...], likest: Nearest, least: float) -> list[Twin]:
    """Near-duplicates, each pair once: those that the checks of the data have noticed by their
    names for it, the others by their features."""
    position = {name: i for i, name in enumerate(names)}
    known = {
        frozenset((position[held], position[twin])): kind
        for held, twin, kind in (plan.dataset.leaks if plan.dataset else ())
    }
    alike = {frozenset((i, j)): cosine for i, j, cosine in pairs(likest, least)}
    rows = []
    for pair in sorted({*known, *alike}, key=lambda pair: (-alike.get(pair, 1.0), sorted(pair))):
        i, j = sorted(pair)
        rows.append(Twin(i, j, alike.get(pair, math.nan), known.get(pair, "alike features")))
    return rows


def _working_bytes(
    matrix: npt.NDArray[np.float32], classes: int, largest: int = 1, answers: int = 0
) -> int:
    """What the audit takes beside the features: blocks, tiles, some numbers an image, of which so
    many are ``answers``, and the features of the ``largest`` group."""
    count, width = len(matrix), matrix.shape[1] + answers
    square = min(count, width) ** 2 + (count * width if count <= width else 0)
    numbers = 3 * BLOCK + 3 * square + (6 + (largest > 1)) * count * classes
    numbers += count * (min(AXES, width) + SCALES)
    numbers += 3 * (largest > 1) * largest * (min(count, width) + 1)
    copied = 4 * count * (width + answers) * (answers > 0)
    return int(8 * numbers + 48 * TILE**2 + copied)


class _OfLabels(NamedTuple):
    """What the audit finds out about labels; see :class:`Audited`. ``remarks`` are what makes it
    worth less."""

    judged: Judged | JudgedLabels
    left_out: LeftOut | LabelsLeftOut
    influential: dict[int, int]
    facts: Plain
    remarks: list[str]


def _at_classes(
    at: Coordinates,
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    apart: npt.NDArray[np.int64] | None,
) -> _OfLabels:
    """One label an image."""
    left_out = leave_one_out(at, labels, len(classes), groups=apart)
    judged = judge(left_out.held_out(labels), labels)
    strongest = _strongest(left_out)
    right = int((left_out.held_out(labels).argmax(axis=1) == labels).sum())
    largest, count = int(np.bincount(labels).max()), len(labels)
    facts = {
        "right_held_out": right,
        "largest_class": largest,
        "wrong_labels": {"rate": judged.rate, "expected": float(judged.p_wrong.sum())},
        "head": {"kind": "ridge regression", "penalty": left_out.penalty},
    }
    remarks = [*_of_rate(judged.rate), *doubts(judged, labels, classes)]
    if _blind(right, largest, count):
        remarks = [
            f"audit: the features do not tell the labels: {right} of {count} images are taken for "
            f"what they are labelled, and {largest} are in the largest class; so no label can be "
            "judged"
        ]
    influential = dict(zip(strongest, left_out.changed(strongest), strict=True))
    return _OfLabels(judged, left_out, influential, facts, remarks)


def _at_labels(
    at: Coordinates,
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    apart: npt.NDArray[np.int64] | None,
) -> _OfLabels:
    """Several labels an image."""
    left_out = labels_left_out(at, labels, apart)
    judged = judge_labels(left_out.held_out, labels)
    strongest = _strongest(left_out)
    penalties = dict(zip(classes, left_out.penalties.tolist(), strict=True))
    blind = [classes[label] for label in judged.blind]
    facts = {
        "not_judged": blind,
        "wrong_labels": {"rate": judged.rate, "expected": float(judged.wrong.sum())},
        "head": {"kind": "ridge regression a label", "penalty": penalties},
    }
    remarks = _of_rate(judged.rate)
    if blind:
        names = ", ".join(f"'{name}'" for name in blind[:_NAMED]) + ", ..." * (len(blind) > _NAMED)
        remarks.append(
            f"audit: the features do not tell {names} better than chance, so it is not judged "
            "which images have it"
        )
    changed = left_out.changed(strongest, judged.cuts)
    influential = dict(zip(strongest, changed, strict=True))
    return _OfLabels(judged, left_out, influential, facts, remarks)


def _strongest(left_out: LeftOut | LabelsLeftOut) -> list[int]:
    return [int(i) for i in np.argsort(-left_out.effect, kind="stable")[:_MOST_EFFECT]]


def _blind(right: int, largest: int, count: int) -> bool:
    return wilson(right, count)[0] <= largest / count


def _of_rate(rate: float) -> list[str]:
    many = f"audit: {100 * rate:.0f} % of the labels seem wrong: so many that right and wrong ones "
    return [f"{many}cannot be told apart well"] if rate > _MANY_WRONG else []


def _of_network(plan: Plan) -> list[str]:
    if plan.state:
        return []
    return ["audit: the network has random weights, which tell little of what images show"]
