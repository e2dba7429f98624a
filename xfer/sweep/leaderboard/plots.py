"""The charts of a leaderboard: values over jobs, parameter importance, the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from xfer.report import overlay
from xfer.report.svg import Chart, Points
from xfer.sweep.leaderboard.importance import Importance
from xfer.sweep.leaderboard.ranking import RankedJob
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord
from xfer.sweep.objective import Objective

_NAMED = 20
_MOST = 5000


def trials(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Chart | None:
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
    numbers, found = [*(n for n, _ in points), *lost], [value for _, value in points]
    panel = overlay.scatter("job", objective.metric, numbers, found)
    panel.steps([(n, value) for (n, _), value in zip(points, so_far, strict=True)], "t2")
    for lost_one in lost:
        panel.cross(lost_one, f"job {lost_one}, no value")
    for n, value in points:
        if n in baseline:
            panel.dot(n, value, "ring", radius=6)
        panel.dot(n, value, "t0", f"job {n:.0f}: {value:.4g}")
    first = next(n for (n, _), value in zip(points, so_far, strict=True) if value == so_far[-1])
    alt = (
        f"{objective.metric} of {len(points)} jobs over their numbers, from "
        f"{min(v for _, v in points):.4g} to {max(v for _, v in points):.4g}; the best, "
        f"{so_far[-1]:.4g}, is job {first:.0f}"
    )
    caption = "Dots are jobs, the line is the best that was known by then."
    caption += " Rings are the baseline." if baseline else ""
    caption += " Crosses at the bottom are jobs without a value." if lost else ""
    return panel.draw(f"{objective.metric} by job", alt, caption)


def bars(importance: Importance) -> Chart | None:
    """How much R² a forest loses without each parameter; ``None`` when there is no forest."""
    if not importance.drops:
        return None
    shown = dict(itertools.islice(importance.drops.items(), _NAMED))
    said = "; ".join(
        f"{name} {drop:.3f}, sd {spread:.3f}" for name, (drop, spread) in shown.items()
    )
    more = len(importance.drops) - len(shown)
    alt = f"Loss of R² by parameter, the largest first: {said}"
    caption = (
        "How much of the explained variance (R²) a random forest loses when a parameter is "
        "shuffled among the jobs; the lines are standard deviations over 20 shuffles."
        + (f" The first {len(shown)} of {len(importance.drops)} parameters." if more else "")
    )
    return overlay.bars(shown, "loss of R² when shuffled", alt, caption)


def pareto(sweep: SweepRecord, rows: Sequence[RankedJob]) -> Chart | None:
    """The first objective over the second with the front; ``None`` unless there are two."""
    known = [row for row in rows if row.rank is not None][:_MOST]
    if len(sweep.objectives) != 2 or not known:
        return None
    # By the second objective, which is the horizontal axis.
    known.sort(key=lambda row: (row.job.values[1] or 0.0, row.job.number))
    front = [row.job for row in known if row.rank == 1]
    rest = [row.job for row in known if row.rank != 1]
    first, second = sweep.objectives
    every = _over([*front, *rest])
    panel = overlay.scatter(_aim(second), first.metric, *zip(*every, strict=True))
    # Between two of its jobs the front offers what the one with less of the second does.
    panel.steps(_over(front), "t0", early=second.maximize)
    for job in rest:
        panel.dot(*_at(job), "rest", _said(job))
    for job in front:
        panel.dot(*_at(job), "t0", _said(job), 4)
    places: dict[tuple[float, float], list[int]] = {}
    for job in front[:_NAMED]:
        places.setdefault(_at(job), []).append(job.number)
    for (x, y), numbers in places.items():
        text = ", ".join(map(str, numbers[:2])) + (", …" if len(numbers) > 2 else "")
        panel.beside(x, y, text)
    alt = (
        f"{len(known)} jobs, {_aim(first)} over {_aim(second)}. On the Pareto front are "
        + ", ".join(_said(job) for job in front[:_NAMED])
        + (f" and {len(front) - _NAMED} more" if len(front) > _NAMED else "")
    )
    caption = (
        f"Upwards is {_aim(first)}. Dots on the line, with their numbers, are the front: no job is "
        "better than one of them in one objective without being worse in the other."
    )
    return panel.draw(f"{first.metric} over {second.metric}", alt, caption)


def _at(job: JobRecord) -> tuple[float, float]:
    return job.values[1] or 0.0, job.values[0] or 0.0


def _over(jobs: Sequence[JobRecord]) -> Points:
    return [_at(job) for job in jobs]


def _said(job: JobRecord) -> str:
    x, y = _at(job)
    return f"job {job.number} ({y:.4g} at {x:,.4g})"


def _aim(objective: Objective) -> str:
    return f"{objective.metric} ({'more' if objective.maximize else 'less'} is better)"
