"""The rows of a leaderboard, for a spreadsheet and for a reader."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from xfer.core.types import Plain
from xfer.evaluation.predict import cell
from xfer.report.format import ABSENT, number, seconds, short
from xfer.report.tables import Table
from xfer.sweep.leaderboard.ranking import Group, RankedJob
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord
from xfer.sweep.objective import Objective, entry, number_at

_OPEN = 100
_FACTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "best.epoch": ("epoch", number),
    "timing.total_s": ("time", seconds),
    "params.total": ("parameters", number),
    "params.trainable": ("trainable", number),
    "features": ("features", number),
}


def text(sweep: SweepRecord, rows: Sequence[RankedJob]) -> str:
    """``leaderboard.csv``: every job, every parameter, unrounded."""
    names = list(dict.fromkeys(key for job in sweep.jobs for key in job.parameters))
    metrics = [
        name
        for objective in sweep.objectives
        for name in (objective.metric, *_ends(objective, "{}_low", "{}_high"))
    ]
    head = ["rank", "job", "state", "baseline", *names, *metrics, "images", "epoch", "total_s"]
    head += ["params_total", "params_trainable", "features", "folder", "why"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(_safe, head))
    for row in rows:
        job = row.job
        known: list[Any] = [row.rank, job.number, job.state, row.baseline]
        known += [job.parameters.get(name) for name in names]
        for objective, value in zip(sweep.objectives, job.values, strict=True):
            known.append(value)
            if objective.is_share:
                ends = value is not None and objective.interval(value, job.images)
                known += ends or (None, None)
        known += [job.images if value_of(job) else None, *facts(job).values(), job.folder.name]
        writer.writerow(map(_safe, [*known, job.why]))
    return stream.getvalue()


def value_of(job: JobRecord) -> bool:
    """Whether the job has any value."""
    return any(value is not None for value in job.values)


def _ends(objective: Objective, *forms: str) -> list[str]:
    return [form.format(objective.metric) for form in forms] if objective.is_share else []


def facts(job: JobRecord) -> Plain:
    """What ``result.json`` says besides values; ``None`` for what it does not say."""
    known: Plain = {key: number_at(job.result, key) for key in _FACTS}
    made = "hit" if entry(job.result, "features.hit") else "made"
    known["features"] = made if entry(job.result, "features.cached") else None
    return known


def _safe(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: ""}[value]
    return value if isinstance(value, int | float) else cell(plain(value))


def plain(value: Any) -> str:
    """A parameter's value as it is typed."""
    return value if isinstance(value, str) else json.dumps(value)


def board(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Table:
    """Every job in its place. Parameters that all jobs share, and facts that none has or that are
    an objective, are left out."""
    jobs = [row.job for row in rows]
    columns = {
        "rank": [number(row.rank) for row in rows],
        "job": [f"{row.job.number}{' (baseline)' if row.baseline else ''}" for row in rows],
        "state": [job.state for job in jobs],
    }
    for name in sweep.varied:
        columns[name] = [short(shown(job.parameters.get(name)), 40) for job in jobs]
    for i, objective in enumerate(sweep.objectives):
        columns[objective.metric] = [figure(job.values[i]) for job in jobs]
        if objective.is_share:
            name = "95 % interval" if i == 0 else f"{objective.metric}, 95 % interval"
            columns[name] = [_interval(objective, job.values[i], job) for job in jobs]
    named = {objective.metric for objective in sweep.objectives}
    for key, (name, form) in _FACTS.items():
        cells = [form(facts(job)[key]) for job in jobs]
        if key not in named and {*cells} != {ABSENT}:
            columns[name] = cells
    cells_by_row = tuple(zip(*columns.values(), strict=True))
    return Table("", tuple(columns), cells_by_row, 0, _OPEN)


def _interval(objective: Objective, value: float | None, job: JobRecord) -> str:
    ends = None if value is None else objective.interval(value, job.images)
    return ABSENT if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def shown(value: Any) -> str:
    """A parameter's value, rounded to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ABSENT if value is None else plain(value)


def figure(value: float | None) -> str:
    """A value with four decimals, as the log has them; whole and large numbers without."""
    if value is None or not 0.001 <= abs(value) < 1e9:
        return "0" if value == 0 else number(value)
    whole = abs(value) >= 100 and value == round(value)
    return f"{value:,.0f}" if whole or abs(value) >= 1e4 else f"{value:,.4f}"


def lost(rows: Sequence[RankedJob], sweep: SweepRecord) -> tuple[Table, ...]:
    """The jobs without a value, and why."""
    found = [row.job for row in rows if row.rank is None]
    cells = tuple(
        (str(job.number), job.state, _asked(job, sweep), short(job.why or ABSENT, 400))
        for job in found
    )
    head = ("job", "state", "parameters", "why")
    return (Table("Jobs without a value", head, cells, 4, _OPEN),) if cells else ()


def _asked(job: JobRecord, sweep: SweepRecord) -> str:
    known = (f"{k}={shown(v)}" for k, v in job.parameters.items() if k in sweep.varied)
    return short(", ".join(known) or ABSENT)


def seeds(sweep: SweepRecord, found: Sequence[Group]) -> tuple[Table, ...]:
    """Mean and standard deviation over the jobs that differ only in their seed."""
    if not found:
        return ()
    names = [name for name in sweep.varied if name != "seed"]
    head = ["jobs", *names, "n"]
    for objective in sweep.objectives:
        head += [f"{objective.metric}, mean", "standard deviation"]
    rows = []
    for group in found:
        known = [shown(group.jobs[0].parameters.get(name)) for name in names]
        of = f" of {len(group.jobs)}" if group.n < len(group.jobs) else ""
        cells = [", ".join(str(job.number) for job in group.jobs), *known, f"{group.n}{of}"]
        for i in range(len(sweep.objectives)):
            cells += [figure(group.means[i]), figure(group.spreads[i])] if group.n else [ABSENT] * 2
        rows.append(tuple(map(short, cells)))
    return (Table("", tuple(head), tuple(rows), 1, _OPEN),)
