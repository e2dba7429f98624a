"""Two runs on the same validation images: which were right in one alone, and what chance does."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from xfer.core.errors import CommandError
from xfer.evaluation.statistics import mcnemar
from xfer.report.comparison.read_run import RunRecord, Said


@dataclass(frozen=True)
class Paired:
    """Two runs, ``one`` and ``other``: how many of ``images`` ``both`` got right, how many only the
    one or only the other, and McNemar's exact p. ``why`` says why there is no test."""

    one: str
    other: str
    images: int = 0
    both: int = 0
    first: int = 0
    second: int = 0
    p: float | None = None
    why: str = ""

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
            f"p = {self.p:.2g}"
        )


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
        if set(one.classes) != set(other.classes):
            only = sorted(set(one.classes) ^ set(other.classes))
            shown = ", ".join(f"'{name[:40]}'" for name in only[:3]) + ", ..." * (len(only) > 3)
            what = f"has other classes than {one.folder}: {shown} in one of them alone"
            fix = "compare runs of the same data"
            raise CommandError(other.folder, what, fix, 22)
        if not one.said.keys() & other.said.keys():
            what = f"shares no validation image with {one.folder}"
            fix = "compare runs of the same data"
            raise CommandError(other.folder, what, fix, 23)


def pairs(runs: Sequence[RunRecord]) -> list[Paired]:
    """Every two runs against each other."""
    return [_pair(one, other) for one, other in itertools.combinations(runs, 2)]


def _pair(one: RunRecord, other: RunRecord) -> Paired:
    if why := unlike(one, other):
        return Paired(one.name, other.name, why=why)
    hits = [(said.right, other.said[path].right) for path, said in one.said.items()]
    first, second = hits.count((True, False)), hits.count((False, True))
    p, both = mcnemar(first, second), hits.count((True, True))
    return Paired(one.name, other.name, len(hits), both, first, second, p)


def unlike(one: RunRecord, other: RunRecord) -> str:
    """Why two runs were not measured on the same validation images, or nothing."""
    shared = one.said.keys() & other.said.keys()
    if one.said.keys() != other.said.keys():
        return (
            f"they answered {len(one.said):,} and {len(other.said):,} validation images, of which "
            f"{len(shared):,} are the same; what one was trained on may be among the others"
        )
    if any(one.said[path].label != other.said[path].label for path in shared):
        return "the same images have other labels in the two runs"
    if one.digest and other.digest and one.digest != other.digest:
        return "the images have the same names in both runs and other contents"
    return ""


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
