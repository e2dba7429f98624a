"""The curves of a sweep's jobs over each other, and its parameters as parallel coordinates."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from xfer.core.files import read_text
from xfer.report.card import Section
from xfer.report.overlay import TONES, Line, axis_of, panel, parallel
from xfer.report.svg import Chart
from xfer.sweep.leaderboard.ranking import RankedJob
from xfer.sweep.leaderboard.read_sweep import SweepRecord

_LARGEST = 1 << 24
_MOST_CURVES, _MOST_LINES = 200, 1000
_KEYS = ("val_loss", "val_acc", "train_loss")
Row = dict[str, float]


def charts(sweep: SweepRecord, rows: Sequence[RankedJob]) -> list[Section]:
    """Both panels; each is left out where there is nothing to draw."""
    return [_curves(sweep, rows), _coordinates(sweep, rows)]


def _tone(place: int) -> int | None:
    return place if place < TONES else None


def _curves(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Section:
    shown = [row for row in rows if row.job.state != "not started"][:_MOST_CURVES]
    histories = [history(row.job.folder / "metrics.csv") for row in shown]
    solved = [any("l2" in row for row in rows) for rows in histories]
    ours = sweep.objectives[0].metric
    keys = dict.fromkeys([ours, *_KEYS])
    drawn: list[Chart | None] = []
    for by_strength in sorted(set(solved)):
        across = "l2" if by_strength else "epoch"
        for key in dict.fromkeys(["cv_loss", *keys]) if by_strength else keys:
            lines = [
                Line(f"job {row.job.number}", points(rows, across, key), _tone(place))
                for place, (row, rows) in enumerate(zip(shown, histories, strict=True))
                if solved[place] == by_strength
            ]
            # A strength that is given is one point a job, which the table has.
            if by_strength and all(len(line.points) < 2 for line in lines):
                continue
            title = f"{key} by {'strength of the penalty' if by_strength else 'epoch'}"
            drawn.append(panel(title, across, lines, log=by_strength))
    made = tuple(chart for chart in drawn if chart)
    return Section("Curves", tuple(_remarks(rows, solved)) if made else (), charts=made)


def _remarks(rows: Sequence[RankedJob], solved: Sequence[bool]) -> list[str]:
    texts = []
    if len(solved) > TONES:
        texts.append(f"The first {TONES} jobs are in colour, the others in grey.")
    if sum(row.job.state != "not started" for row in rows) > len(solved):
        texts.append(f"The curves of the first {len(solved)} jobs are drawn.")
    if any(solved):
        texts.append(
            "The curve of a solved head is over the strength of its penalty (l2) in place of "
            "epochs."
        )
    return texts


def _coordinates(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Section:
    """What the sweep varied, and what came out, one line a job; nothing for a single key less
    than that."""
    known = [row.job for row in rows if row.rank is not None and row.job.parameters][:_MOST_LINES]
    if not sweep.varied or len(known) < 2:
        return Section("Parameters")
    axes = [axis_of(key, [job.parameters.get(key) for job in known]) for key in sweep.varied]
    for i, objective in enumerate(sweep.objectives):
        axes.append(axis_of(objective.metric, [job.values[i] for job in known]))
    names = [f"job {job.number}" for job in known]
    chart = parallel("Parameters", axes, names, [_tone(i) for i in range(len(known))])
    text = (
        "A line is a job: from top to bottom through the values that it was given to what came "
        "out. Pointed at, it says which job it is."
    )
    return Section("Parallel coordinates", (text,), charts=(chart,))


def history(path: Path) -> list[Row]:
    """The numbers of ``metrics.csv`` row by row; none where it is not there yet, or half
    written by a stranger."""
    try:
        table = list(csv.DictReader(read_text(path, _LARGEST).splitlines()))
        return [
            {key: float(text) for key, text in row.items() if isinstance(key, str) and text}
            for row in table
        ]
    except (OSError, ValueError, TypeError, csv.Error):
        return []  # the job has its row all the same, which says what became of it


def points(rows: Sequence[Row], across: str, key: str) -> list[tuple[float, float]]:
    """The finite points of one curve."""
    known = [(row[across], row[key]) for row in rows if across in row and key in row]
    return sorted((x, y) for x, y in known if math.isfinite(x) and math.isfinite(y))
