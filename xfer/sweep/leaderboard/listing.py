"""The rows of a leaderboard, for a spreadsheet and for a reader."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from xfer.config.schema import value_at
from xfer.core.types import Plain
from xfer.evaluation.table_file import cell
from xfer.report.board import OPEN, card_of, reaches
from xfer.report.format import ABSENT, number, seconds, short
from xfer.report.tables import Cell, Table
from xfer.sweep.leaderboard.ranking import Group, RankedJob
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord
from xfer.sweep.objective import number_at

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
    head = ["rank", "job", "state", "baseline", *names]
    for objective in sweep.objectives:
        ends = ("low", "high") if objective.is_share else ()
        head += [objective.metric, *(f"{objective.metric}_{end}" for end in ends)]
    head += ["images", "epoch", "total_s", "params_total", "params_trainable", "features"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(_safe, [*head, "folder", "why"]))
    for row in rows:
        job = row.job
        cells: list[Any] = [row.rank, job.number, job.state, row.baseline]
        cells += [job.parameters.get(name) for name in names]
        for objective, value in zip(sweep.objectives, job.values, strict=True):
            cells.append(value)
            if objective.is_share:
                cells += objective.interval(value, job.images, job.result) or (None, None)
        valued = any(value is not None for value in job.values)
        cells += [job.images if valued else None, *_facts(job).values(), job.folder.name, job.why]
        writer.writerow(map(_safe, cells))
    return stream.getvalue()


def _facts(job: JobRecord) -> Plain:
    """What ``result.json`` says besides values; ``None`` for what it does not say."""
    known: Plain = {key: number_at(job.result, key) for key in _FACTS}
    if value_at(job.result, "solved") is not None:
        known["best.epoch"] = None  # there it counts strengths of the penalty
    made = "hit" if value_at(job.result, "features.hit") else "made"
    return {**known, "features": made if value_at(job.result, "features.cached") else None}


def _safe(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return "yes" if value else ""
    return value if isinstance(value, int | float) else cell(_typed(value))


def _typed(value: Any) -> str:
    """A parameter's value as it is typed."""
    return value if isinstance(value, str) else json.dumps(value)


def board(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Table:
    """Every job in its place. Parameters that all jobs share, and facts that none has or that are
    an objective, are left out."""
    jobs = [row.job for row in rows]
    cards = [card_of(job.folder, sweep.folder) for job in jobs]
    columns: dict[str, Sequence[str | Cell]] = {
        "rank": [Cell(number(row.rank), row.rank) for row in rows],
        "job": [
            Cell(f"{job.number}{' (baseline)' * row.baseline}", job.number, card)
            for row, job, card in zip(rows, jobs, cards, strict=True)
        ],
        "state": [job.state for job in jobs],
    }
    for name in sweep.varied:
        columns[name] = [_valued(job.parameters.get(name)) for job in jobs]
    for i, objective in enumerate(sweep.objectives):
        columns[objective.metric] = [Cell(figure(job.values[i]), job.values[i]) for job in jobs]
        if objective.is_share:
            ends = [objective.interval(job.values[i], job.images, job.result) for job in jobs]
            name = "95 % interval" if i == 0 else f"{objective.metric}, 95 % interval"
            columns[name] = reaches(ends, [job.values[i] for job in jobs])
    named = {objective.metric for objective in sweep.objectives}
    for key, (name, form) in _FACTS.items():
        known = [_facts(job)[key] for job in jobs]
        if key not in named and {form(value) for value in known} != {ABSENT}:
            columns[name] = [Cell(form(value), value) for value in known]
    return Table("", tuple(columns), tuple(zip(*columns.values(), strict=True)), 0, OPEN)


def _valued(value: Any) -> Cell:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(short(_shown(value), 40), value if number else None)


def _shown(value: Any) -> str:
    """A parameter's value, rounded to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ABSENT if value is None else _typed(value)


def figure(value: float | None) -> str:
    """A value with four decimals, as the log has them; whole and large numbers without."""
    if value is None or not 0.001 <= abs(value) < 1e9:
        return "0" if value == 0 else number(value)
    whole = abs(value) >= 100 and value == round(value)
    return f"{value:,.0f}" if whole or abs(value) >= 1e4 else f"{value:,.4f}"


def lost(rows: Sequence[RankedJob], sweep: SweepRecord) -> tuple[Table, ...]:
    """The jobs without a value, and why."""
    cells = []
    for job in (row.job for row in rows if row.rank is None):
        varied = (f"{k}={_shown(v)}" for k, v in job.parameters.items() if k in sweep.varied)
        typed, why = short(", ".join(varied) or ABSENT), short(job.why or ABSENT, 400)
        cells.append((str(job.number), job.state, typed, why))
    head = ("job", "state", "parameters", "why")
    return (Table("Jobs without a value", head, tuple(cells), 4, OPEN),) if cells else ()


def seeds(sweep: SweepRecord, groups: Sequence[Group]) -> tuple[Table, ...]:
    """Mean and standard deviation over the jobs that differ only in their seed."""
    names = [name for name in sweep.varied if name != "seed"]
    head = ["jobs", *names, "n"]
    for objective in sweep.objectives:
        head += [f"{objective.metric}, mean", "standard deviation"]
    rows = []
    for group in groups:
        of = f" of {len(group.jobs)}" if group.n < len(group.jobs) else ""
        cells = [", ".join(str(job.number) for job in group.jobs)]
        cells += [_shown(group.jobs[0].parameters.get(name)) for name in names]
        cells.append(f"{group.n}{of}")
        for i in range(len(sweep.objectives)):
            cells += [figure(group.means[i]), figure(group.spreads[i])] if group.n else [ABSENT] * 2
        rows.append(tuple(map(short, cells)))
    return (Table("", tuple(head), tuple(rows), 1, OPEN),) if rows else ()
