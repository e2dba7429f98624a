"""``choose.html`` and ``choose.md``: what was chosen, what that is worth, and every candidate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from xfer.core.errors import plural, printable
from xfer.core.types import Plain
from xfer.report.board import OPEN, card_of, put_side_by_side, reaches
from xfer.report.card import Section
from xfer.report.format import ABSENT, seconds
from xfer.report.last_lines import named
from xfer.report.overlay import scatter
from xfer.report.svg import Chart
from xfer.report.tables import Cell, Table
from xfer.sweep.choosing.measure import Measure, measure_of

_WINNER, _SECOND, _JUDGED, _OTHER = "t0", "t1", "t2", "rest"


def write_page(folder: Path, facts: Plain) -> None:
    """Write ``choose.html`` and ``choose.md`` into ``folder`` from what ``choose.json`` holds.
    Raises OutputError when they cannot be written."""
    measure = _measure(facts)
    score, by = f"cv_{measure.key}", facts["by"]
    tried = [row for row in facts["candidates"] if row[score] is not None]
    # By the rounds they came through, then by what decided.
    tried.sort(key=lambda row: (-row["images"], row["cv_loss"] if by == "loss" else -row[score]))
    lost = [row for row in facts["candidates"] if row[score] is None]
    board = _board(folder, facts, tried, measure)
    took = f"{facts['seconds']['total']:.0f} s of {60 * facts['minutes']:.0f}"
    rows = [("Chosen by", facts["command"]), ("Took", took)]
    if facts["model"]:
        model = Path(facts["model"])
        rows = [("Folder", str(model)), ("Next", f"xfer predict {named(model)} IMAGES"), *rows]
    parts = [
        Section(f"{_capital(measure.title)} and time", charts=drawn(facts, tried, measure)),
        Section("Candidates", (_compared(by, measure),), tables=(board,)),
        _judged(facts, measure),
        Section("Left out", tables=_lost(lost)),
        Section("The model", facts=tuple(rows)),
    ]
    page = {
        "title": f"Choice among {len(facts['candidates'])} candidates",
        "verdict": [printable(line) for line in summary(facts)],
        "command": printable(facts["experiment"]),
        "sections": [part for part in parts if part.says_anything],
    }
    put_side_by_side(folder / "choose", page)


def _capital(title: str) -> str:
    return title[0].upper() + title[1:] if title.islower() else title


def _measure(facts: Plain) -> Measure:
    """What the candidates of a ``choose.json`` were judged by."""
    return measure_of(any("cv_map" in row for row in facts["candidates"]))


def summary(facts: Plain) -> list[str]:
    """The choice in a few sentences."""
    won = next(row for row in facts["candidates"] if row["name"] == facts["winner"])
    measure = _measure(facts)
    key, title = measure.key, measure.title
    lines = [f"chosen: {facts['winner']}, cross-validated {title} {won[f'cv_{key}']:.4f}"]
    if judged := facts["worth"]:
        ends = "no interval of one score"
        if judged["ci95"]:
            ends = "95 % interval {:.4f} to {:.4f}".format(*judged["ci95"])
        lines.append(
            f"worth {judged[key]:.4f} on images that chose nothing ({ends}; "
            f"{plural(judged['n'], 'image')}, {plural(judged['folds'], 'fold')}, "
            f"{'once' if judged['repeats'] == 1 else plural(judged['repeats'], 'time')})"
        )
        times = judged["folds"] * judged["repeats"]
        same = judged["winners"].get(facts["winner"], 0)
        points = round(100 * judged["optimism"], 1)
        optimism = f"{points:.1f} points" if points > 0 else "none"
        if points < 0:
            optimism += f", the winners held {-points:.1f} points more than their folds promised"
        lines.append(
            f"optimism of choosing: {optimism}; the same candidate won {same} of {times} times"
        )
    else:
        lines.append("worth: not known, the choosing was not judged once")
    if other := facts["runner_up"]:
        better = facts["by"] == "loss" and other[key] > 0
        why = "; its log loss is larger, and that decided (choose.by=loss)" if better else ""
        lines.append(f"the runner-up {other['name']} {_costs(other, measure)}{why}")
    return lines


def _costs(other: Plain, measure: Measure) -> str:
    """What the runner-up would cost or gain; a difference that is rounded away is none."""
    points = round(100 * other[measure.key], 1)
    verb = "cost" if points < 0 else "gain"
    said = f"would {verb} {abs(points):.1f} points of {measure.title}"
    if not points:
        said = f"has the same {measure.title}"
    if other["ms"] is not None:
        ms = round(other["ms"], 1)
        said += f", {ms:+.1f} ms an image" if ms else " and is as fast"
    if "only_winner_right" not in other:
        return said
    return (
        f"{said} ({plural(other['only_winner_right'], 'image')} that the winner alone gets right, "
        f"{other['only_runner_up_right']} the other way)"
    )


def drawn(facts: Plain, tried: Sequence[Plain], measure: Measure) -> tuple[Chart, ...]:
    """The score with its 95 % interval over the milliseconds of an image; nothing where no
    candidate was judged. Those of one backbone take the same time and stand beside each other."""
    if not tried:
        return ()
    second = (facts["runner_up"] or {}).get("name")
    looks, key = {facts["winner"]: _WINNER, second: _SECOND}, f"cv_{measure.key}"
    points = [
        (
            *(row["price"]["ms"], row[key], row["ci95"] or (row[key], row[key])),
            *(looks.get(row["name"], _OTHER), f"{row['name']}, {row['state']}: {row[key]:.4f}"),
        )
        for row in tried
    ]
    if judged := facts["worth"]:
        ms = next(row["price"]["ms"] for row in tried if row["name"] == facts["winner"])
        worth = judged[measure.key]
        said = f"the choosing, on images that chose nothing: {worth:.4f}"
        points.insert(1, (ms, worth, judged["ci95"] or (worth, worth), _JUDGED, said))
    places, reach = _beside([point[0] for point in points])
    ends = [end for point in points for end in point[2]]
    across = "milliseconds an image (less is better)"
    panel = scatter(across, measure.title, [*places, *reach], ends)
    for x, (_, score, (low, high), look, said) in reversed([*zip(places, points, strict=True)]):
        panel.reach(x, low, high, look).dot(x, score, look, said, 4)
    legend = [(0, f"winner: {facts['winner']}")]
    legend += [(1, f"runner-up: {second}")] if second else []
    legend += [(2, "the choosing, on images that chose nothing")] if judged else []
    caption = (
        "Lines are 95 % intervals. All candidates are judged on the same images, so that two may "
        "differ though their intervals overlap; grey ones were dropped earlier, on fewer images, "
        "or came behind the first two. Candidates of one backbone take the same time: they stand "
        "beside each other."
    )
    alt = "; ".join(f"{said} at {ms:.1f} ms" for ms, *_, said in points)
    title = f"cross-validated {measure.title} over time"
    return (panel.draw(title, alt, caption, legend),)


def _beside(values: Sequence[float]) -> tuple[list[float], tuple[float, float]]:
    """The ``values``, the same ones moved apart by as much as tells them apart in a chart, and the
    ends of its axis: a fifth of the largest at least, beside which these steps are small."""
    middle, half = (min(values) + max(values)) / 2, (max(values) - min(values)) / 2
    half = max(half, 0.1 * max(values))
    step = half / 12
    same = defaultdict(list)
    for place, value in enumerate(values):
        same[round(value, 6)].append(place)
    moved = list(values)
    for places in same.values():
        for nth, place in enumerate(places):
            moved[place] += step * (nth - (len(places) - 1) / 2)
    return moved, (middle - half, middle + half)


def _compared(by: str, measure: Measure) -> str:
    kind = "log loss" if by == "loss" else measure.title
    return (
        f"By {kind} on the training images of the last round that a candidate was in, "
        "cross-validated; those of a further round come first. The winner's numbers are flattered "
        "by its being picked."
    )


def _board(folder: Path, facts: Plain, tried: Sequence[Plain], measure: Measure) -> Table:
    """Every candidate that was judged, the best first; the winner linked to its card."""
    key = f"cv_{measure.key}"
    model = card_of(Path(facts["model"]), folder) if facts["model"] else ""
    rows = []
    reach = reaches([row["ci95"] for row in tried], [row[key] for row in tried])
    for row, about in zip(tried, reach, strict=True):
        card = model if row["name"] == facts["winner"] else ""
        rows.append(
            (
                Cell(row["name"], link=card),
                row["state"],
                Cell(f"{row['images']:,}", row["images"]),
                Cell(f"{row[key]:.4f}", row[key]),
                about,
                Cell(f"{row['cv_loss']:.4f}", row["cv_loss"]),
                Cell(seconds(row["seconds"]), row["seconds"]),
                Cell(f"{row['price']['ms']:.1f}", row["price"]["ms"]),
            )
        )
    head = ("candidate", "state", "images", measure.title, "95 % interval", "loss", "fits took")
    return Table("", (*head, "ms an image"), tuple(rows), 2, OPEN)


def _judged(facts: Plain, measure: Measure) -> Section:
    """How the choosing was judged, and how often each candidate won."""
    title = "What the choosing is worth"
    if not (judged := facts["worth"]):
        return Section(title)
    times = judged["folds"] * judged["repeats"]
    text = (
        f"The whole choosing, rounds and all, was done {times} times without the images of an "
        f"outer fold, and its winner answered for these: the {measure.title} on images that chose "
        "nothing. "
        "Optimism is by how much the winners' own cross-validation had promised more."
    )
    rows = tuple((name, Cell(str(won), won)) for name, won in judged["winners"].items())
    table = Table("", ("candidate", f"won, of {times}"), rows, 1, OPEN)
    return Section(title, (text,), tables=(table,))


def _lost(rows: Sequence[Plain]) -> tuple[Table, ...]:
    """The candidates that were not judged, why, and what they would have cost."""
    cells = []
    for row in rows:
        price = row["price"] or {}
        costs = [price.get(key) for key in ("features", "choosing", "model")]
        times = (ABSENT if s is None else seconds(s) for s in costs)
        cells.append((row["name"], row["state"], row["problem"] or ABSENT, *times))
    head = ("candidate", "state", "why", "features", "choosing", "model")
    return (Table("", head, tuple(cells), 3, OPEN),) if cells else ()
