"""The charts of a leaderboard: values over jobs, parameter importance, the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from markupsafe import Markup

from xfer.report.overlay import Drawing, Points, axes, row
from xfer.sweep.leaderboard.importance import Importance
from xfer.sweep.leaderboard.ranking import RankedJob
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord
from xfer.sweep.objective import Objective

_NAMED = 20
_MOST = 5000


def trials(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Drawing | None:
    """The first objective over the jobs' numbers with the best so far; ``None`` without values."""
    objective = sweep.objectives[0]
    known = [(job.number, job.values[0]) for job in sweep.jobs if job.has_value]
    points = [(float(n), value) for n, value in known if value is not None][:_MOST]
    if not points:
        return None
    best = max if objective.maximize else min
    so_far = list(itertools.accumulate((value for _, value in points), best))
    baseline = [job.number for job in (r.job for r in rows if r.baseline and r.rank is not None)]
    lost = [job.number for job in sweep.jobs if not job.has_value]
    frame = axes("job", objective.metric, [*(n for n, _ in points), *lost], [v for _, v in points])
    line = [(x, best_) for (x, _), best_ in zip(points, so_far, strict=True)]
    marks = [frame.steps(line, "t2"), *(frame.cross(n, f"job {n}, no value") for n in lost)]
    for n, value in points:
        if n in baseline:
            marks.append(frame.dot(n, value, "ring", "", 6))
        marks.append(frame.dot(n, value, "t0", f"job {n:.0f}: {value:.4g}"))
    first = next(n for (n, _), value in zip(points, so_far, strict=True) if value == so_far[-1])
    alt = (
        f"{objective.metric} of {len(points)} jobs over their numbers, from "
        f"{min(v for _, v in points):.4g} to {max(v for _, v in points):.4g}; the best, "
        f"{so_far[-1]:.4g}, is job {first:.0f}"
    )
    caption = "Dots are jobs, the line is the best that was known by then."
    caption += " Rings are the baseline." if baseline else ""
    caption += " Crosses at the bottom are jobs without a value." if lost else ""
    return Drawing(
        f"{objective.metric} by job", frame.background + Markup().join(marks), alt, caption=caption
    )


def bars(importance: Importance) -> Drawing | None:
    """How much R² a forest loses without each parameter; ``None`` when there is no forest."""
    if not importance.drops:
        return None
    shown = list(importance.drops.items())[:_NAMED]
    low = min(0.0, *(drop - spread for _, (drop, spread) in shown))
    high = max(drop + spread for _, (drop, spread) in shown)
    marks = [
        row(i, name, drop, spread, (low, high)) for i, (name, (drop, spread)) in enumerate(shown)
    ]
    said = "; ".join(f"{name} {drop:.3f}, sd {spread:.3f}" for name, (drop, spread) in shown)
    more = len(importance.drops) - len(shown)
    alt = f"Loss of R² by parameter, the largest first: {said}"
    caption = (
        "How much of the explained variance (R²) a random forest loses when a parameter is "
        "shuffled among the jobs; the lines are standard deviations over 20 shuffles."
        + (f" The first {len(shown)} of {len(importance.drops)} parameters." if more else "")
    )
    high_ = 34 * len(shown) + 8
    return Drawing(
        "loss of R² when shuffled", Markup().join(marks), alt, height=high_, caption=caption
    )


def pareto(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Drawing | None:
    """The first objective over the second with the front; ``None`` unless there are two."""
    known = [row_ for row_ in rows if row_.rank is not None][:_MOST]
    if len(sweep.objectives) != 2 or not known:
        return None
    # By the second objective, which is the horizontal axis.
    known.sort(key=lambda row_: (row_.job.values[1] or 0.0, row_.job.number))
    front = [row_.job for row_ in known if row_.rank == 1]
    rest = [row_.job for row_ in known if row_.rank != 1]
    first, second = sweep.objectives
    every = _over([*front, *rest])
    frame = axes(_aim(second), first.metric, [x for x, _ in every], [y for _, y in every])
    # Between two of its jobs the front offers what the one with less of the second does.
    marks = [frame.steps(_over(front), "t0", early=second.maximize)]
    marks += [frame.dot(*_at(job), "rest", _said(job)) for job in rest]
    marks += [frame.dot(*_at(job), "t0", _said(job), 4) for job in front]
    places: dict[tuple[float, float], list[int]] = {}
    for job in front[:_NAMED]:
        places.setdefault(_at(job), []).append(job.number)
    for (x, y), numbers in places.items():
        text = ", ".join(map(str, numbers[:2])) + (", …" if len(numbers) > 2 else "")
        marks.append(frame.text(x, y, text))
    alt = (
        f"{len(known)} jobs, {_aim(first)} over {_aim(second)}. On the Pareto front are "
        + ", ".join(_said(job) for job in front[:_NAMED])
        + (f" and {len(front) - _NAMED} more" if len(front) > _NAMED else "")
    )
    caption = (
        f"Upwards is {_aim(first)}. Dots on the line, with their numbers, are the front: no job is "
        "better than one of them in one objective without being worse in the other."
    )
    return Drawing(
        f"{first.metric} over {second.metric}",
        frame.background + Markup().join(marks),
        alt,
        caption=caption,
    )


def _at(job: JobRecord) -> tuple[float, float]:
    return job.values[1] or 0.0, job.values[0] or 0.0


def _over(jobs: Sequence[JobRecord]) -> Points:
    return [_at(job) for job in jobs]


def _said(job: JobRecord) -> str:
    x, y = _at(job)
    return f"job {job.number} ({y:.4g} at {x:,.4g})"


def _aim(objective: Objective) -> str:
    return f"{objective.metric} ({'more' if objective.maximize else 'less'} is better)"
