"""Two runs on the same validation images: which were right in one alone, and what chance does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xfer.core.errors import CommandError, first_few
from xfer.evaluation.multilabel_bootstrap import MapGap, map_gap
from xfer.evaluation.statistics import mcnemar
from xfer.report.comparison.read_run import RunRecord, Said


@dataclass(frozen=True)
class Paired:
    """Two runs, ``one`` and ``other``: how many of ``images`` ``both`` got right, how many only the
    one or only the other, and McNemar's exact p. With several labels an image, right is an image
    with every known label right, and ``gap`` is that of mAP. ``why`` says why there is no test."""

    one: str
    other: str
    images: int = 0
    both: int = 0
    first: int = 0
    second: int = 0
    p: float | None = None
    why: str = ""
    gap: MapGap | None = None

    @property
    def neither(self) -> int:
        """How many images both got wrong."""
        return self.images - self.both - self.first - self.second

    def in_words(self) -> str:
        """One line of what came out."""
        if self.p is None:
            return f"{self.one} and {self.other}: not tested: {self.why}"
        return (
            f"{self.one} and {self.other}, {self.images:,} images: {self.first:,} right in "
            f"{self.one} alone, {self.second:,} in {self.other} alone; McNemar's exact test "
            f"p = {self.p:.2g}{self._of_labels()}"
        )

    def _of_labels(self) -> str:
        if self.gap is None:
            return ""
        reach = f"95 % interval {self.gap.low:+.4f} to {self.gap.high:+.4f}"
        return f"; mAP of {self.one} less that of {self.other} {self.gap.gap:+.4f} ({reach})"


@dataclass(frozen=True)
class Disputed:
    """An image on which runs differ: what each said, by the runs' order."""

    path: str
    said: tuple[Said, ...]

    @property
    def decides(self) -> bool:
        """Whether one is right and another wrong."""
        return len({said.right for said in self.said}) > 1


def check_together(runs: Sequence[RunRecord]) -> None:
    """Raise CommandError where two runs are of other classes, or share no validation image."""
    for one, other in itertools.combinations(runs, 2):
        if one.several != other.several:
            several, single = (one, other) if one.several else (other, one)
            what = f"has one label an image, and {several.folder} has several"
            raise CommandError(single.folder, what, "compare runs of one task", 22)
        if set(one.classes) != set(other.classes):
            only = [f"'{name[:40]}'" for name in sorted(set(one.classes) ^ set(other.classes))]
            shown = first_few(only, 3)
            what = f"has other classes than {one.folder}: {shown} in one of them alone"
            fix = "compare runs of the same data"
            raise CommandError(other.folder, what, fix, 22)
        if not one.said.keys() & other.said.keys():
            what = f"shares no validation image with {one.folder}"
            fix = "compare runs of the same data, read in the same way: images are known by name"
            raise CommandError(other.folder, what, fix, 23)


def pairs(runs: Sequence[RunRecord]) -> list[Paired]:
    """Every two runs against each other."""
    return [_pair(one, other) for one, other in itertools.combinations(runs, 2)]


def _pair(one: RunRecord, other: RunRecord) -> Paired:
    if why := unlike(one, other):
        return Paired(one.name, other.name, why=why)
    hits = [(said.right, other.said[path].right) for path, said in one.said.items()]
    pair = tested(one.name, other.name, hits)
    return replace(pair, gap=_gap(one, other)) if one.several else pair


def tested(one: str, other: str, hits: Sequence[tuple[bool, bool]]) -> Paired:
    """The test of two runs: whether each was right, image by image."""
    first, second = hits.count((True, False)), hits.count((False, True))
    counts = (len(hits), hits.count((True, True)), first, second)
    return Paired(one, other, *counts, mcnemar(first, second))


def _gap(one: RunRecord, other: RunRecord) -> MapGap | None:
    """The difference of their mAP, the classes in the order of the ``one``."""
    at = [other.classes.index(name) for name in one.classes]
    labels = np.array([said.known for said in one.said.values()], np.int64)
    ours = np.array([said.shares for said in one.said.values()])
    theirs = np.array([other.said[path].shares for path in one.said])[:, at]
    return map_gap(labels, ours, theirs)


def unlike(one: RunRecord, other: RunRecord) -> str:
    """Why two runs were not measured on the same validation images, or nothing."""
    shared = one.said.keys() & other.said.keys()
    if one.said.keys() != other.said.keys():
        return (
            f"they answered {len(one.said):,} and {len(other.said):,} validation images, of which "
            f"{len(shared):,} are the same; what one was trained on may be among the others"
        )
    if any(_labels(one, path) != _labels(other, path) for path in shared):
        return "the same images have other labels in the two runs"
    if one.digest and other.digest and one.digest != other.digest:
        return "the images have the same names in both runs and other contents"
    return ""


def _labels(run: RunRecord, path: str) -> object:
    """The labels of an image, whatever order the classes are in."""
    said = run.said[path]
    return sorted(zip(run.classes, said.known, strict=True)) if run.several else said.label


def disputed(runs: Sequence[RunRecord]) -> list[Disputed]:
    """The images that all runs answered and not in the same way: first those that one got right
    and another wrong, the most confident mistake first."""
    shared = set.intersection(*(set(run.said) for run in runs))
    rows = [
        Disputed(path, tuple(run.said[path] for run in runs))
        for path in runs[0].said
        if path in shared
    ]
    differing = [row for row in rows if len({said.prediction for said in row.said}) > 1]

    def place(row: Disputed) -> tuple[bool, float, str]:
        wrong = [said.confidence for said in row.said if not said.right]
        return not row.decides, -max(wrong, default=0.0), row.path

    return sorted(differing, key=place)
