"""Who is first: ranks, the baseline, the groups of seeds, and the first two against each other."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from xfer.core.files import read_bytes
from xfer.evaluation.statistics import mcnemar
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord
from xfer.sweep.objective import Objective


@dataclass(frozen=True)
class RankedJob:
    """A job in its place. ``rank`` is ``None`` for a job without a value."""

    job: JobRecord
    rank: int | None
    baseline: bool


@dataclass(frozen=True)
class Group:
    """Jobs that differ only in ``seed``. ``means`` and ``spreads`` (standard deviation with n - 1,
    ``None`` for one job) have an entry an objective and are over the ``n`` jobs with a value."""

    jobs: tuple[JobRecord, ...]
    n: int
    means: tuple[float, ...]
    spreads: tuple[float | None, ...]


@dataclass(frozen=True)
class Duel:
    """McNemar's exact test of two jobs: how many ``images`` only the ``first`` or only the
    ``second`` got right. ``why`` says why there is no test."""

    images: int = 0
    first: int = 0
    second: int = 0
    p: float | None = None
    why: str = ""


def rank(sweep: SweepRecord, baseline: Collection[int] = ()) -> list[RankedJob]:
    """Every job, the best first and those without a value last; ``baseline`` are numbers of jobs.

    A job's rank is one more than the number of jobs that are as good in every objective and
    better in one (C. M. Fonseca and P. J. Fleming, 1993): with one objective its place, ties
    sharing the better one; with several 1 is the Pareto front.
    """
    scored = {job.number: gains(job, sweep.objectives) for job in sweep.jobs if has_value(job)}
    ranks = {n: 1 + sum(_dominates(b, a) for b in scored.values()) for n, a in scored.items()}
    rows = [RankedJob(job, ranks.get(job.number), job.number in baseline) for job in sweep.jobs]
    return sorted(rows, key=lambda row: _place(row, scored))


def has_value(job: JobRecord) -> bool:
    """Whether the job can be compared."""
    return None not in job.values


def gains(job: JobRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The job's values, more being better."""
    pairs = zip(objectives, job.values, strict=True)
    return tuple(objective.gain(value) for objective, value in pairs if value is not None)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))


def _place(row: RankedJob, scored: dict[int, tuple[float, ...]]) -> tuple[float, float, int]:
    number = row.job.number
    if row.rank is None:
        return float("inf"), 0.0, number
    return row.rank, -scored[number][0], number


def groups(sweep: SweepRecord) -> list[Group]:
    """Jobs that differ only in ``seed``, one for each, the best mean of the first objective first;
    empty when no two jobs share their other parameters."""
    found: dict[str, dict[str, JobRecord]] = {}
    for job in sweep.jobs:
        if job.parameters:
            group, seed = found.setdefault(job.seedless, {}), str(job.parameters.get("seed"))
            # A sampler may propose the same job twice, which says nothing of a spread.
            if seed not in group or not has_value(group[seed]):
                group[seed] = job
    if all(len(jobs) < 2 for jobs in found.values()):
        return []
    made = [_group(list(jobs.values())) for jobs in found.values()]
    sign = sweep.objectives[0].gain
    return sorted(made, key=lambda g: -sign(g.means[0]) if g.means else float("inf"))


def _group(jobs: Sequence[JobRecord]) -> Group:
    columns = list(zip(*(job.values for job in jobs if has_value(job)), strict=True))
    known = [[value for value in column if value is not None] for column in columns]
    means = tuple(statistics.fmean(column) for column in known)
    spreads = tuple(statistics.stdev(c) if len(c) > 1 else None for c in known)
    return Group(tuple(jobs), len(known[0]) if known else 0, means, spreads)


def duel(rows: Sequence[RankedJob], split: str) -> Duel:
    """The first two rows against each other, on the images of ``split`` that both answered."""
    best = [row.job for row in rows if row.rank is not None][:2]
    if len(best) < 2:
        return Duel(why="fewer than two jobs have a value")
    answers = [_answers(job.folder / f"predictions_{split}.csv") for job in best]
    for job, found in zip(best, answers, strict=True):
        if not found:
            return Duel(why=f"job {job.number} has no readable predictions_{split}.csv")
    one, other = answers
    if {k: label for k, (label, _) in one.items()} != {k: label for k, (label, _) in other.items()}:
        shared = len(one.keys() & other.keys())
        return Duel(
            why=f"they did not answer the same images with the same labels: {len(one)} and "
            f"{len(other)}, of which {shared} share their path"
        )
    hits = [(one[k][0] == one[k][1], other[k][0] == other[k][1]) for k in one]
    first, second = sum(a and not b for a, b in hits), sum(b and not a for a, b in hits)
    return Duel(len(hits), first, second, mcnemar(first, second))


def _answers(path: Path) -> dict[str, tuple[str, str]]:
    """The (label, prediction) of every image by its path; empty where they cannot be read."""
    try:
        text = read_bytes(path).decode(errors="surrogateescape")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        return {row["path"]: (row["label"], row["prediction"]) for row in rows}
    except (OSError, csv.Error, KeyError):
        return {}
