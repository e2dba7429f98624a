"""The figures of a leaderboard: values over jobs, parameter importance, the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xfer.report.plot import GREY, RATE, TRAIN, VAL, drawable, fit
from xfer.sweep.leaderboard.importance import Importance
from xfer.sweep.leaderboard.ranking import RankedJob, has_value
from xfer.sweep.leaderboard.read_sweep import SweepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 20
_ROOM = 150  # points for the name of a parameter


def trials(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Figure | None:
    """The first objective over the jobs' numbers with the best so far; ``None`` without values."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    objective = sweep.objectives[0]
    known = [(job.number, job.values[0]) for job in sweep.jobs if has_value(job)]
    points = [(n, value) for n, value in known if value is not None]
    if not points:
        return None
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    best = max if objective.maximize else min
    line = [(n, best(value for _, value in points[: i + 1])) for i, (n, _) in enumerate(points)]
    axes.step(*zip(*line, strict=True), where="post", color=RATE, lw=1.4, label="best so far")
    axes.plot(*zip(*points, strict=True), "o", color=VAL, ms=4.5, label="job")
    marked = [row.job for row in rows if row.baseline and row.rank is not None]
    if marked:
        at = [(job.number, job.values[0]) for job in marked]
        ring = axes.plot(*zip(*at, strict=True), "o", ms=10, label="baseline")[0]
        ring.set(mfc="none", mec=TRAIN, mew=1.8)
    if lost := [job.number for job in sweep.jobs if not has_value(job)]:
        bottom = axes.get_xaxis_transform()
        axes.plot(lost, [0.02] * len(lost), "x", color=GREY, transform=bottom, label="no value")
    axes.set(xlabel="job", ylabel=drawable(objective.metric))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.12)
    axes.grid(axis="y")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def bars(found: Importance) -> Figure | None:
    """How much R² a forest loses without each parameter; ``None`` when there is no forest."""
    if not found.drops:
        return None
    from matplotlib.figure import Figure

    shown = list(found.drops.items())[:_NAMED]
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
    known = [(row, row.job.values) for row in rows if row.rank is not None]
    if len(sweep.objectives) != 2 or not known:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    rest = [values for row, values in known if row.rank != 1]
    if rest:
        axes.plot(*_over(rest), "o", color=GREY, ms=4.5, label="job")
    front = sorted(
        ((row.job.number, row.job.values) for row, _ in known if row.rank == 1),
        key=lambda entry: entry[1][1] or 0.0,
    )
    first, second = sweep.objectives
    # Between two of its jobs the front offers what the one with less of the second does.
    steps = "steps-pre" if second.maximize else "steps-post"
    line = _over([values for _, values in front])
    axes.plot(*line, "o-", color=VAL, ms=6, drawstyle=steps, label="Pareto front")
    _number(axes, front[:_NAMED])
    axes.set(xlabel=_aim(second.metric, second.maximize), ylabel=_aim(first.metric, first.maximize))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.margins(0.1)
    axes.grid()
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _number(axes: Axes, front: Sequence[tuple[int, tuple[float | None, ...]]]) -> None:
    """The jobs' numbers beside their points; of those in one place the first two."""
    places: dict[tuple[float | None, ...], list[int]] = {}
    for number, values in front:
        places.setdefault(values, []).append(number)
    for (y, x), numbers in places.items():
        text = ", ".join(map(str, numbers[:2])) + (", …" if len(numbers) > 2 else "")
        at = (x or 0.0, y or 0.0)
        axes.annotate(text, at, (6, 5), textcoords="offset points", fontsize=8)


def _over(values: Sequence[tuple[float | None, ...]]) -> tuple[list[float], list[float]]:
    return [v[1] or 0.0 for v in values], [v[0] or 0.0 for v in values]


def _aim(metric: str, maximize: bool) -> str:
    return f"{drawable(metric)} ({'more' if maximize else 'less'} is better)"
