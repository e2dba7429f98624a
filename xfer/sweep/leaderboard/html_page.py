"""What the page of a leaderboard says, as the plain sections that the run card is made of."""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from collections.abc import Sequence

from xfer.config.provenance import override_key
from xfer.config.schema import value_at
from xfer.core.errors import first_few, printable
from xfer.evaluation.statistics import wilson
from xfer.report import overlay
from xfer.report.card import Section
from xfer.report.comparison.paired import Paired
from xfer.report.svg import Chart, Points
from xfer.sweep.leaderboard import listing, overlaid
from xfer.sweep.leaderboard.importance import Importance
from xfer.sweep.leaderboard.ranking import Group, RankedJob
from xfer.sweep.leaderboard.read_sweep import JobRecord, SweepRecord
from xfer.sweep.objective import Objective

_OF_THE_SWEEP = ("run.dir", "checkpoint.resume")
_STATES = ("finished", "pruned", "failed", "unfinished", "not started")


def verdict(sweep: SweepRecord, rows: Sequence[RankedJob]) -> list[str]:
    """The leaderboard in a few lines: the best, how many jobs there are, and what that is worth."""
    counts = Counter(row.job.state for row in rows)
    states = ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state])
    jobs = f"{len(rows)} job{'s' * (len(rows) > 1)}: {states}" if rows else "No job has begun"
    first = [row.job for row in rows if row.rank == 1]
    if not first:
        return ["No job has a value yet", jobs]
    best, objective = first[0], sweep.objectives[0]
    score = f"job {best.number}, {objective.metric} {listing.figure(best.values[0])}"
    ends = objective.interval(best.values[0], best.images, best.result)
    if ends and best.images and best.values[0] is not None:
        right = round(best.values[0] * best.images)
        interval = f"95 % interval {ends[0]:.3f} to {ends[1]:.3f}"
        counted = (
            f"{best.images:,} images in folds" if best.folded else f"{right:,} of {best.images:,}"
        )
        score += f" ({counted}; {interval})"
    if len(sweep.objectives) > 1:
        aims = " and ".join(
            f"{o.metric} ({'more' if o.maximize else 'less'} is better)" for o in sweep.objectives
        )
        are = "is" if len(first) == 1 else "are"
        lead = f"{len(first)} of {len(rows)} jobs {are} on the Pareto front of {aims}"
        return [lead, f"First by {objective.metric}: {score}", jobs]
    others = [str(job.number) for job in first[1:]]
    ties = f", tied with job{'s' * (len(others) > 1)} {first_few(others, 8)}" if others else ""
    return [f"Best: {score}{ties}", jobs]


def command(rows: Sequence[RankedJob]) -> str:
    """The command of the first job, quoted for a shell; empty when there is none.

    Where the sweep put the job is left out: the command would resume a run that is finished.
    """
    first = next((row.job for row in rows if row.rank == 1), None)
    if first is None:
        return ""
    text = str(first.result.get("command") or "")
    try:
        words = shlex.split(text)
    except ValueError:
        return printable(text)
    return printable(shlex.join(w for w in words if override_key(w) not in _OF_THE_SWEEP))


def sections(
    sweep: SweepRecord,
    rows: Sequence[RankedJob],
    grouped: Sequence[Group],
    tests: tuple[Paired, Importance],
) -> list[Section]:
    """All parts in reading order; those without content are left out."""
    duel, importance = tests
    texts = _caveats(sweep, rows)
    if not any(row.baseline for row in rows):
        texts.append(_NO_BASELINE)
    decided = f"Left out: {importance.why}."
    if not importance.why:
        decided = (
            f"Permutation importance for {sweep.objectives[0].metric}, by scikit-learn's random "
            "forest of 200 trees; on jobs that a tree has not seen it explains R² "
            f"{importance.r2:.2f} of the variance. It says what mattered among these jobs, and "
            "nothing about other values."
        )
    parts = [
        Section(
            "Jobs",
            tuple(texts),
            tables=(listing.board(sweep, rows), *listing.lost(rows, sweep)) if rows else (),
        ),
        _best(rows),
        *overlaid.charts(sweep, rows),
        Section("Seeds", (_SEEDS,) if grouped else (), tables=listing.seeds(sweep, grouped)),
        Section("First against second", _compared(sweep, rows, duel)),
        Section("Pareto front", charts=_drawn(pareto(sweep, rows))),
        Section("Jobs in their order", charts=_drawn(trials(sweep, rows))),
        Section("Parameter importance", (decided,), charts=_drawn(bars(importance))),
    ]
    return [part for part in parts if part.says_anything]


def _drawn(chart: Chart | None) -> tuple[Chart, ...]:
    return (chart,) if chart else ()


def so_far(
    sweep: SweepRecord, rows: Sequence[RankedJob], charts: Sequence[Section]
) -> list[Section]:
    """The parts of a page that is written while the sweep is at work."""
    tables = (listing.board(sweep, rows), *listing.lost(rows, sweep)) if rows else ()
    parts = [Section("Jobs", tuple(_caveats(sweep, rows)), tables=tables), *charts]
    return [part for part in parts if part.says_anything]


SILENT = (
    "Nothing has been written here for {}: the sweep has probably been killed. The same command, "
    "with its sweep.dir, runs what is missing."
)


def at_work(rows: Sequence[RankedJob]) -> str:
    """One line about a sweep that is at work."""
    ended = sum(row.job.state in ("finished", "pruned", "failed") for row in rows)
    have = "has" if ended == 1 else "have"
    return f"The sweep is at work: {ended:,} of {len(rows):,} jobs {have} ended."


_RANKS = (
    "A job's rank is one more than the number of jobs that are at least as good in every objective "
    "and better in one; 1 is the Pareto front."
)
_NO_BASELINE = "No job is marked as the baseline: none has the values that the sweep began from."
_SEEDS = "Jobs that differ only in seed. The standard deviation is that of a sample (n - 1)."


def _caveats(sweep: SweepRecord, rows: Sequence[RankedJob]) -> list[str]:
    """What choosing the best of many on the same images is worth."""
    valued = [row.job for row in rows if row.rank is not None]
    if not valued:
        return []
    objective, best = sweep.objectives[0], valued[0]
    lines = [_RANKS] if len(sweep.objectives) > 1 else []
    splits = {job.split for job in valued if job.split}
    if len(splits) > 1:
        lines.append(
            f"The jobs were measured on {len(splits)} different sets of {objective.split} images: "
            "their values cannot be compared."
        )
    elif best.images and objective.is_share:
        whose = f"{objective.split} images that its value is measured on"
        if value_at(best.result, f"scores.{objective.split}.used_for_selection") is True:
            whose += ", as was its epoch"
        if best.folded:
            whose = "cross-validated images that its value is measured on"
        if len(valued) > 1:
            lines.append(
                f"The best of {len(valued)} jobs was chosen on the same {best.images:,} {whose}: "
                "the value is optimistic, the more so the more jobs there are, and its interval "
                "does not account for that."
            )
        share, n = (value_at(best.result, f"scores.test.{key}") for key in ("acc", "n"))
        clean = value_at(best.result, "scores.test.used_for_selection") is False
        if objective.split == "val" and isinstance(share, float) and isinstance(n, int) and clean:
            right, (low, high) = round(share * n), wilson(round(share * n), n)
            lines.append(
                f"On the {n:,} test images, which chose nothing, job {best.number} has an accuracy "
                f"of {share:.4f} ({right:,} of {n:,}; 95 % interval {low:.3f} to {high:.3f})."
            )
        else:
            lines.append(
                "For an unbiased value, score the chosen job alone on images that chose nothing."
            )
    return lines


def _best(rows: Sequence[RankedJob]) -> Section:
    first = next((row.job for row in rows if row.rank == 1), None)
    if first is None:
        return Section("Best run")
    name = value_at(first.result, "best.checkpoint")
    path = first.folder / str(name)
    missing = "" if path.is_file() else " (missing)"
    checkpoint = f"{path}{missing}" if name else "none: it did not train"
    return Section("Best run", facts=(("Folder", str(first.folder)), ("Checkpoint", checkpoint)))


def _compared(sweep: SweepRecord, rows: Sequence[RankedJob], tested: Paired) -> tuple[str, ...]:
    if tested.p is None:
        return (f"Not tested: {tested.why}.",)
    one, other = [row.job for row in rows if row.rank is not None][:2]
    kind = "cross-validated" if one.folded else sweep.objectives[0].split
    lines = [
        f"Of {tested.images:,} {kind} images, {tested.first:,} were right in "
        f"job {one.number} alone and {tested.second:,} in job {other.number} alone. McNemar's "
        f"exact test: p = {tested.p:.2g}.",
        "Equally good classifiers differ at least that much with that probability."
        + (" That is no evidence for either." if tested.p >= 0.05 else "")
        + " The two were chosen as the first of all jobs, which p does not account for.",
    ]
    if one.folded:
        lines.append(
            "Each image counts once, with the answer of most repeats. The fits of different folds "
            "share most of their training images, which p does not account for."
        )
    if one.parameters and one.seedless == other.seedless:
        lines.append("They differ only in their seed.")
    return tuple(lines)


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
