"""Which job is first: ranks, groups of seeds, the baseline, and the first two against
each other."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from operator import ge
from pathlib import Path
from typing import Any

from xfer.config.provenance import override_key
from xfer.core.bounded_yaml import built
from xfer.core.errors import XferError
from xfer.core.files import read_bytes
from xfer.core.types import Plain
from xfer.evaluation.out_of_fold import TABLE
from xfer.plan.resume import flat
from xfer.report.comparison.paired import Paired, tested
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord, read_facts


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


def rank(sweep: SweepRecord, baseline: Collection[int] = ()) -> list[RankedJob]:
    """Every job, the best first and those without a value last; ``baseline`` are numbers of jobs.

    A job's rank is one more than the number of jobs that are as good in every objective and
    better in one (C. M. Fonseca and P. J. Fleming, 1993): with one objective its place, ties
    sharing the better one; with several 1 is the Pareto front.
    """
    gains: dict[int, tuple[float, ...]] = {}  # more is better
    for job in sweep.jobs:
        if job.has_value:
            pairs = zip(sweep.objectives, job.values, strict=True)
            gains[job.number] = tuple(o.gain(v) for o, v in pairs if v is not None)

    def ranked(job: JobRecord) -> RankedJob:
        mine = gains.get(job.number)
        better = mine and [g for g in gains.values() if g != mine and all(map(ge, g, mine))]
        place = None if better is None else 1 + len(better)
        return RankedJob(job, place, job.number in baseline)

    def place(row: RankedJob) -> tuple[float, float, int]:
        number = row.job.number
        return row.rank or math.inf, -gains[number][0] if row.rank else 0.0, number

    return sorted(map(ranked, sweep.jobs), key=place)


def groups(sweep: SweepRecord) -> list[Group]:
    """Jobs that differ only in ``seed``, one for each, the best mean of the first objective first;
    empty when no two jobs share their other parameters."""
    by_rest: dict[str, dict[str, JobRecord]] = {}
    for job in sweep.jobs:
        if job.parameters:
            seeds, seed = by_rest.setdefault(job.seedless, {}), str(job.parameters.get("seed"))
            # A sampler may propose the same job twice, which says nothing of a spread.
            if seed not in seeds or not seeds[seed].has_value:
                seeds[seed] = job
    if all(len(seeds) < 2 for seeds in by_rest.values()):
        return []
    made = [_group(tuple(seeds.values())) for seeds in by_rest.values()]
    gain = sweep.objectives[0].gain
    return sorted(made, key=lambda g: -gain(g.means[0]) if g.means else math.inf)


def _group(jobs: tuple[JobRecord, ...]) -> Group:
    columns = zip(*(job.values for job in jobs if job.has_value), strict=True)
    known = [[value for value in column if value is not None] for column in columns]
    means = tuple(statistics.fmean(column) for column in known)
    spreads = tuple(statistics.stdev(c) if len(c) > 1 else None for c in known)
    return Group(jobs, len(known[0]) if known else 0, means, spreads)


def duel(rows: Sequence[RankedJob], split: str) -> Paired:
    """The first two rows against each other, on the images of ``split`` that both answered."""
    best = [row.job for row in rows if row.rank is not None][:2]
    if len(best) < 2:
        return Paired("", "", why="fewer than two jobs have a value")
    first, second = (f"job {job.number}" for job in best)
    one, other = (_answers(_table(job, split)) for job in best)
    for job, answers in zip(best, (one, other), strict=True):
        if not answers:
            why = f"job {job.number} has no readable {_table(job, split).name}"
            return Paired(first, second, why=why)
    if {k: label for k, (label, _) in one.items()} != {k: label for k, (label, _) in other.items()}:
        why = "they did not answer the same images with the same labels"
        shared = len(one.keys() & other.keys())
        why = f"{why}: {len(one)} and {len(other)}, of which {shared} share their path"
        return Paired(first, second, why=why)
    hits = [(one[k][0] == one[k][1], other[k][0] == other[k][1]) for k in one]
    return tested(first, second, hits)


def _table(job: JobRecord, split: str) -> Path:
    """The file of a job's answers: those of all folds, where it is a cross-validation."""
    folded = split == "val" and job.folded
    return job.folder / (TABLE if folded else f"predictions_{split}.csv")


def _answers(path: Path) -> dict[str, tuple[str, str]]:
    """The (label, prediction) of every image by its path; empty where they cannot be read.

    An image that was answered in several repeats has one answer: the most frequent, of equally
    frequent ones the most confident. To count each would be to count the same image several times.
    """
    try:
        text = read_bytes(path).decode(errors="surrogateescape")
        labels: dict[str, str] = {}
        votes: dict[str, dict[str, list[float]]] = {}
        for row in csv.DictReader(io.StringIO(text, newline="")):
            labels[row["path"]] = row["label"]
            of_image = votes.setdefault(row["path"], {})
            of_image.setdefault(row["prediction"], []).append(float(row["confidence"]))
    except (OSError, csv.Error, KeyError, ValueError, TypeError):
        return {}
    return {
        name: (label, max(votes[name].items(), key=lambda vote: (len(vote[1]), sum(vote[1])))[0])
        for name, label in labels.items()
    }


Compose = Callable[[Sequence[str]], Plain]
"""The configuration that overrides make."""


def baseline(sweep: SweepRecord, compose: Compose | None) -> frozenset[int]:
    """The numbers of the jobs that are the baseline, with whatever seed."""
    if sweep.baseline is not None:
        wanted = _values(sweep.baseline)
        return frozenset(job.number for job in sweep.jobs if _has(job, wanted))
    plain = _unvaried(sweep, compose) if compose else None
    if plain is None:
        return frozenset()
    return frozenset(job.number for job in sweep.jobs if _config(job) == plain)


def _has(job: JobRecord, wanted: Plain) -> bool:
    if not (job.parameters or job.overrides):
        return False
    values = _values(job.overrides) | job.parameters
    keys = (job.parameters.keys() | (wanted.keys() & values.keys())) - {"seed"}
    return all(key in wanted and wanted[key] == values[key] for key in keys)


def _values(overrides: Sequence[str]) -> Plain:
    return {override_key(text): _value(text.partition("=")[2]) for text in overrides}


def _value(text: str) -> Any:
    try:
        value = built(text)
    except ValueError:
        return text
    try:
        # YAML takes 1e-3 for a text, Hydra does not. What is in quotes is one for both.
        return float(value) if isinstance(value, str) and text[0] not in "'\"" else value
    except ValueError:
        return value


def _unvaried(sweep: SweepRecord, compose: Compose) -> Plain | None:
    """What the jobs' commands make without what the sweep varies; ``None`` where they do not say,
    or make nothing any more."""
    typed = []
    for text in [str(job.result["command"]) for job in sweep.jobs if job.result.get("command")]:
        try:
            typed.append(shlex.split(text)[3:])
        except ValueError:
            typed.append([])
    if len(typed) < 2 or not sweep.varied:
        return None
    shared = [text for text in typed[0] if all(text in other for other in typed[1:])]
    fixed = [text for text in shared if override_key(text) not in sweep.varied]
    try:
        return _comparable(compose(fixed))
    except XferError:
        return None  # options of another place or version: there is no telling


def _config(job: JobRecord) -> Plain | None:
    config = read_facts(job.folder / "plan.json")[0].get("config")
    return _comparable(config) if isinstance(config, dict) else None


def _comparable(config: Plain) -> Plain:
    """What decides a run, its seed apart."""
    facts: Plain = json.loads(json.dumps(flat(config), default=str, sort_keys=True))
    return {key: value for key, value in facts.items() if key != "seed"}
