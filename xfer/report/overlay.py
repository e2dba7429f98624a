"""What pages of several runs draw: curves in one panel, points, bars, and parallel coordinates.

Every line has a dash pattern besides its colour; a title of each says what it is when it is pointed
at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xfer.report.svg import TOP, WIDE, Chart, Panel, Points, escaped, figure, label, picture

TONES = 8
"""How many lines of a panel have a look of their own; further ones are grey."""
_NO_LEGEND = 12 - TOP
_DOTS, _FINEST = 40, 2000
_STEP, _SIDE = 72, 14
"""The distance of two axes of parallel coordinates, and the margin."""


@dataclass(frozen=True)
class Line:
    """One run in a panel. ``tone`` is its look; ``None`` for one of many, in grey."""

    name: str
    points: Points
    tone: int | None


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates: where each run lies on it, 0 to 1, or ``None``, and the
    labels of places."""

    name: str
    places: tuple[float | None, ...]
    labels: tuple[tuple[float, str], ...]


def panel(title: str, across: str, lines: Sequence[Line], log: bool = False) -> Chart | None:
    """The lines over each other, by ``across`` (an epoch, or with ``log`` a strength on a
    logarithmic scale); ``None`` where none has a point."""
    if log:
        lines = [
            Line(line.name, [(math.log10(x), y) for x, y in line.points if x > 0], line.tone)
            for line in lines
        ]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs, ys = ([point[i] for line in lines for point in line.points] for i in (0, 1))
    side = 0.1 if log else 0.5 + 0.01 * (max(xs) - min(xs))
    drawn = Panel((min(xs) - side, max(xs) + side), _widened(ys), log, top=_NO_LEGEND)
    drawn.axes(across, whole=not log)
    # Those with a look of their own above the grey ones, the first one on top.
    for line in sorted(lines, key=lambda line: -(TONES if line.tone is None else line.tone)):
        places = [(drawn.across(x), drawn.up(y)) for x, y in line.points]
        drawn.parts.append(_drawn(line.name, places, line.tone))
    named = [(line.tone, line.name) for line in lines if line.tone is not None]
    said = [_in_words(line) for line in lines if line.tone is not None]
    rest = len(lines) - len(named)
    more = f"; {rest} more in grey" if rest else ""
    return drawn.draw(title, "; ".join(said) + more, legend=named)


def scatter(across: str, up: str, xs: Sequence[float], ys: Sequence[float]) -> Panel:
    """The axes of points at ``xs`` and ``ys``, with numbers; the names are of both axes."""
    drawn = Panel(_widened(xs), _widened(ys), top=_NO_LEGEND + 12)
    return drawn.axes(across, all(x == round(x) for x in xs), up)


def bars(rows: Mapping[str, tuple[float, float]], title: str, alt: str, caption: str) -> Chart:
    """A bar for each name, its number beside that, and a line from its spread below the number to
    as much above."""
    low = min(0.0, *(value - spread for value, spread in rows.values()))
    high = max(value + spread for value, spread in rows.values())
    parts = []

    def to(value: float) -> float:
        return _SIDE + (WIDE - 2 * _SIDE) * ((value - low) / (high - low) if high > low else 0.5)

    for i, (name, (value, spread)) in enumerate(rows.items()):
        y, ends = 34 * i, sorted((to(0.0), to(value)))
        parts += [
            label(_SIDE, y + 14, name, WIDE - 3 * _SIDE - 36, "name"),
            label(WIDE - _SIDE, y + 14, f"{value:.3f}", look="end"),
            f'<rect class="bar" x="{ends[0]:.1f}" y="{y + 19}" width="{ends[1] - ends[0]:.1f}" '
            'height="10"/>',
            f'<path class="spread" d="M{to(value - spread):.1f} {y + 24}'
            f'H{to(value + spread):.1f}"/>',
        ]
    return Chart(title, picture(WIDE, 34 * len(rows) + 8, parts, alt), alt, caption)


def parallel(
    title: str, axes: Sequence[Axis], names: Sequence[str], tones: Sequence[int | None]
) -> Chart:
    """Parallel coordinates: an axis a parameter, from top to bottom, and a line a run through its
    values; the last axis is what the runs are compared by. The axes lie one below the other, so
    that any number of them has room on a narrow screen."""
    wide = WIDE - 2 * _SIDE
    parts = []
    order = sorted(range(len(names)), key=lambda i: -(TONES if tones[i] is None else tones[i] or 0))
    for i in order:
        places = [(axis.places[i], 26 + _STEP * at) for at, axis in enumerate(axes)]
        known = [(_SIDE + wide * place, y) for place, y in places if place is not None]
        part = " (not on every axis)" * (len(known) < len(axes))
        parts.append(_drawn(names[i], known, tones[i], part))
    for at, axis in enumerate(axes):
        y = 26 + _STEP * at
        parts.append(f'<path class="axis" d="M{_SIDE} {y}H{WIDE - _SIDE:g}"/>')
        parts.append(label(_SIDE, y - 10, axis.name, wide, "name"))
        for place, text in axis.labels:
            look = "" if place < 0.15 else "end" if place > 0.85 else "mid"
            parts.append(label(_SIDE + wide * place, y + 14, text, wide / 2, look))
    named = tuple((tone, name) for name, tone in zip(names, tones, strict=True) if tone is not None)
    grey = len(names) - len(named)
    first = f"in colour {', '.join(name for _, name in named)}" if named else ""
    rest = f"{grey} more in grey" if grey else ""
    alt = f"{len(names)} runs over {', '.join(axis.name for axis in axes)}: "
    alt += "; ".join(filter(None, (first, rest)))
    svg = picture(WIDE, _STEP * (len(axes) - 1) + 46, parts, alt)
    return Chart(title, svg, alt, legend=named)


def axis_of(name: str, values: Sequence[object]) -> Axis:
    """The axis of a parameter: numbers where they lie, from decade to decade where they are
    positive and reach over two of them; anything else at even distances."""
    numbers = [
        float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)
        and math.isfinite(v)
    ]  # fmt: skip
    known = [v for v in values if v is not None]
    if numbers and len(numbers) == len(known):
        low, high = min(numbers), max(numbers)
        log = low > 0 and high / low >= 100
        at = [math.log10(value) for value in numbers] if log else numbers
        first, wide = min(at), max(at) - min(at)
        shares = iter((value - first) / wide if wide else 0.5 for value in at)
        places = tuple(None if v is None else next(shares) for v in values)
        ends = ((0.0, figure(low)), (1.0, figure(high))) if low < high else ((0.5, figure(low)),)
        return Axis(f"{name} (log)" if log else name, places, ends)
    words = list(dict.fromkeys(str(v) for v in known))
    of = {word: (i / (len(words) - 1) if len(words) > 1 else 0.5) for i, word in enumerate(words)}
    labels = tuple((place, word) for word, place in of.items()) if len(words) <= 6 else ()
    return Axis(name, tuple(None if v is None else of[str(v)] for v in values), labels)


def _widened(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _drawn(name: str, at: Points, tone: int | None, part: str = "") -> str:
    if not at:
        return ""
    # More points than that are less than a pixel apart.
    every = 1 + len(at) // _FINEST
    at = [*at[:-1:every], at[-1]]
    look = "rest" if tone is None else f"t{tone}"
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    marks = f'<path class="{look}" d="{path}"><title>{escaped(name)}{part}</title></path>'
    if tone is not None and len(at) <= _DOTS:
        dot = '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>'
        marks += "".join(dot.format(look, x, y) for x, y in at)
    return marks


def _in_words(line: Line) -> str:
    first, last = line.points[0][1], line.points[-1][1]
    if len(line.points) == 1:
        return f"{line.name} {first:.4g}"
    return f"{line.name} from {first:.4g} to {last:.4g}"
