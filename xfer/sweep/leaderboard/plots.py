"""The figures of a leaderboard: values over jobs, parameter importance, the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xfer.report.plot import GREY, RATE, TRAIN, VAL, drawable, fit
from xfer.sweep.leaderboard.importance import Importance
from xfer.sweep.leaderboard.ranking import RankedJob
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord
from xfer.sweep.objective import Objective

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 20
_ROOM = 150  # points for the name of a parameter


def trials(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Figure | None:
    """The first objective over the jobs' numbers with the best so far; ``None`` without values."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    objective = sweep.objectives[0]
    known = [(job.number, job.values[0]) for job in sweep.jobs if job.has_value]
    points = [(n, value) for n, value in known if value is not None]
    if not points:
        return None
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    best = max if objective.maximize else min
    numbers, values = zip(*points, strict=True)
    so_far = list(itertools.accumulate(values, best))
    axes.step(numbers, so_far, where="post", color=RATE, lw=1.4, label="best so far")
    axes.plot(numbers, values, "o", color=VAL, ms=4.5, label="job")
    if at := [(r.job.number, r.job.values[0]) for r in rows if r.baseline and r.rank is not None]:
        ring = axes.plot(*zip(*at, strict=True), "o", ms=10, label="baseline")[0]
        ring.set(mfc="none", mec=TRAIN, mew=1.8)
    if lost := [job.number for job in sweep.jobs if not job.has_value]:
        bottom = axes.get_xaxis_transform()
        axes.plot(lost, [0.02] * len(lost), "x", color=GREY, transform=bottom, label="no value")
    axes.set(xlabel="job", ylabel=drawable(objective.metric))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    axes.grid(axis="y")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def bars(importance: Importance) -> Figure | None:
    """How much R² a forest loses without each parameter; ``None`` when there is no forest."""
    if not importance.drops:
        return None
    from matplotlib.figure import Figure

    shown = list(importance.drops.items())[:_NAMED]
    figure = Figure(figsize=(7.2, 0.9 + 0.32 * len(shown)), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    drops, spreads = zip(*(drop for _, drop in shown), strict=True)
    axes.barh(places, drops, xerr=spreads, color=VAL, height=0.6, ecolor=GREY)
    axes.set_yticks(places, [fit(name, _ROOM, 9) for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(left=min(0.0, *drops))
    axes.set_xlabel("loss of R² when shuffled")
    axes.grid(axis="x")
    return figure


def pareto(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Figure | None:
    """The first objective over the second with the front; ``None`` unless there are two."""
    known = [row for row in rows if row.rank is not None]
    if len(sweep.objectives) != 2 or not known:
        return None
    from matplotlib.figure import Figure

    # By the second objective, which is the horizontal axis.
    known.sort(key=lambda row: (row.job.values[1] or 0.0, row.job.number))
    front = [row.job for row in known if row.rank == 1]
    rest = [row.job for row in known if row.rank != 1]
    first, second = sweep.objectives
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    if rest:
        axes.plot(*_over(rest), "o", color=GREY, ms=4.5, label="job")
    # Between two of its jobs the front offers what the one with less of the second does.
    steps = "steps-pre" if second.maximize else "steps-post"
    axes.plot(*_over(front), "o-", color=VAL, ms=6, drawstyle=steps, label="Pareto front")
    places: dict[tuple[float, float], list[int]] = {}
    for job, x, y in zip(front[:_NAMED], *_over(front[:_NAMED]), strict=True):
        places.setdefault((x, y), []).append(job.number)
    for place, numbers in places.items():
        text = ", ".join(map(str, numbers[:2])) + (", …" if len(numbers) > 2 else "")
        axes.annotate(text, place, (6, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel=_aim(second), ylabel=_aim(first))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
    axes.margins(0.1)
    axes.grid()
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _over(jobs: Sequence[JobRecord]) -> tuple[list[float], list[float]]:
    return [job.values[1] or 0.0 for job in jobs], [job.values[0] or 0.0 for job in jobs]


def _aim(objective: Objective) -> str:
    more = "more" if objective.maximize else "less"
    return f"{drawable(objective.metric)} ({more} is better)"
