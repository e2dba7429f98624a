"""What pages of several runs draw as SVG: curves in one panel, points, bars, and parallel
coordinates.

Colours are classes of the page, so that they follow its light and dark look; every line has a dash
pattern besides. Texts are escaped; a title of every line says what it is when it is pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from xfer.core.errors import printable
from xfer.report.format import short
from xfer.report.svg import estimate

TONES = 8
"""How many lines of a panel have a look of their own; further ones are grey."""
_LEFT, _RIGHT, _TOP, _WIDTH, _HEIGHT = 46, 12, 12, 340, 220
_BOTTOM = 34
_DOTS, _FINEST = 40, 2000
_STEP, _SIDE, _TALL = 72, 14, 340
"""Of parallel coordinates: the distance of two axes, the margin, and the width."""
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """A chart for a page: SVG ``marks`` on ``width`` by ``height``, what is seen in words, and the
    names of the lines by their look."""

    title: str
    marks: Markup
    alt: str
    width: int = _WIDTH
    height: int = _HEIGHT
    legend: tuple[tuple[int, str], ...] = ()
    caption: str = ""


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


def panel(title: str, across: str, lines: Sequence[Line], log: bool = False) -> Drawing | None:
    """The lines over each other, by ``across`` (an epoch, or with ``log`` a strength on a
    logarithmic scale); ``None`` where none has a point."""
    lines = [line for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points if x > 0 or not log]
    ys = [y for line in lines for _, y in line.points]
    if not xs:
        return None
    low, high = _widened(min(ys), max(ys))
    levels = _ticks(low, high, 4)
    left = _beside(levels)
    to_x = _scale(*_ends(xs, log), left, _WIDTH - _RIGHT, log)
    to_y = _scale(low, high, _HEIGHT - _BOTTOM, _TOP, False)
    marks = [_level(to_y(y), y, left) for y in levels]
    marks += [_across(to_x(x), x) for x in (_decades(xs) if log else _epochs(xs))]
    marks.append(
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (left + _WIDTH - _RIGHT) // 2, _HEIGHT - 4, printable(across)
        )
    )
    # Those with a look of their own above the grey ones, the first one on top.
    for line in sorted(lines, key=lambda line: -(TONES if line.tone is None else line.tone)):
        points = [(x, y) for x, y in line.points if x > 0 or not log]
        marks.append(_drawn(line, [(to_x(x), to_y(y)) for x, y in points]))
    named = tuple((line.tone, line.name) for line in lines if line.tone is not None)
    said = [_in_words(line) for line in lines if line.tone is not None]
    rest = len(lines) - len(named)
    more = f"; {rest} more in grey" if rest else ""
    return Drawing(title, Markup("\n").join(marks), "; ".join(said) + more, legend=named)


@dataclass(frozen=True)
class Frame:
    """A pair of axes for points: its ``background``, and what lies on it by its values."""

    to_x: Callable[[float], float]
    to_y: Callable[[float], float]
    background: Markup

    def dot(self, x: float, y: float, look: str, title: str, radius: float = 3) -> Markup:
        """A point of a ``look``, with what it says when it is pointed at."""
        mark = '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:g}"><title>{}</title></circle>'
        return Markup(mark).format(look, self.to_x(x), self.to_y(y), radius, printable(title))

    def reach(self, x: float, low: float, high: float, look: str) -> Markup:
        """An upright line from one value to another, for an interval."""
        mark = '<path class="{}" d="M{:.1f} {:.1f}V{:.1f}"/>'
        return Markup(mark).format(look, self.to_x(x), self.to_y(low), self.to_y(high))

    def cross(self, x: float, title: str) -> Markup:
        """A cross at the bottom, for what has no value."""
        at, y = self.to_x(x), _HEIGHT - _BOTTOM - 5
        mark = '<path class="rest" d="M{:.1f} {}l6 6m0 -6l-6 6"><title>{}</title></path>'
        return Markup(mark).format(at - 3, y - 3, printable(title))

    def steps(self, points: Points, look: str, early: bool = False) -> Markup:
        """A line of steps, up or down at each point; ``early`` at the one before it."""
        at = [(self.to_x(x), self.to_y(y)) for x, y in points]
        path = f"M{at[0][0]:.1f} {at[0][1]:.1f}"
        path += "".join(f"V{y:.1f}H{x:.1f}" if early else f"H{x:.1f}V{y:.1f}" for x, y in at[1:])
        return Markup('<path class="{}" d="{}"/>').format(look, path)

    def text(self, x: float, y: float, text: str) -> Markup:
        """A text beside a point, on the side that has room."""
        at, left = self.to_x(x), self.to_x(x) > _WIDTH / 2
        mark = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>'
        place = (at - 7, "end") if left else (at + 7, "start")
        return Markup(mark).format(place[0], self.to_y(y) - 6, place[1], printable(text))


def axes(across: str, up: str, xs: Sequence[float], ys: Sequence[float]) -> Frame:
    """The axes of points at ``xs`` and ``ys``, with numbers; the names are of both axes."""
    first, last = _widened(min(xs), max(xs))
    low, high = _widened(min(ys), max(ys))
    levels = _ticks(low, high, 4)
    left = _beside(levels)
    to_x = _scale(first, last, left, _WIDTH - _RIGHT, False)
    to_y = _scale(low, high, _HEIGHT - _BOTTOM, _TOP + 12, False)
    marks = [_level(to_y(y), y, left) for y in levels]
    whole = all(x == round(x) for x in xs)
    marks += [_across(to_x(x), x) for x in _ticks(first, last, 4) if x == round(x) or not whole]
    name = '<text x="{}" y="{}" text-anchor="{}">{}</text>'
    middle = (left + _WIDTH - _RIGHT) // 2
    marks.append(Markup(name).format(middle, _HEIGHT - 4, "middle", _text(across, 48)))
    marks.append(Markup(name).format(4, 11, "start", _text(up, 48)))
    return Frame(to_x, to_y, Markup("\n").join(marks))


def row(place: int, name: str, value: float, spread: float, ends: tuple[float, float]) -> Markup:
    """The bar number ``place`` from above, its ``name`` over it and its number beside that, with a
    line from ``spread`` below the value to as much above; all on the scale of ``ends``."""
    to = _scale(*ends, _SIDE, _WIDTH - _SIDE, False)
    y = 34 * place
    from_, end = sorted((to(0.0), to(value)))
    text = (
        '<text class="name" x="{}" y="{}">{}</text><text x="{}" y="{}" text-anchor="end">{}</text>'
    )
    bar = '<rect class="bar" x="{:.1f}" y="{}" width="{:.1f}" height="10"/>'
    line = '<path class="spread" d="M{:.1f} {}H{:.1f}"/>'
    return (
        Markup(text).format(_SIDE, y + 14, _text(name, 36), _WIDTH - _SIDE, y + 14, f"{value:.3f}")
        + Markup(bar).format(from_, y + 19, end - from_)
        + Markup(line).format(to(value - spread), y + 24, to(value + spread))
    )


def parallel(
    title: str, axes: Sequence[Axis], names: Sequence[str], tones: Sequence[int | None]
) -> Drawing:
    """Parallel coordinates: an axis a parameter, from top to bottom, and a line a run through its
    values; the last axis is what the runs are compared by. The axes lie one below the other, so
    that any number of them has room on a narrow screen."""
    wide = _TALL - 2 * _SIDE
    height = _STEP * (len(axes) - 1) + 46
    marks = []
    order = sorted(range(len(names)), key=lambda i: -(TONES if tones[i] is None else tones[i] or 0))
    for i in order:
        places = [(axis.places[i], 26 + _STEP * at) for at, axis in enumerate(axes)]
        known = [(_SIDE + wide * place, y) for place, y in places if place is not None]
        marks.append(_drawn(Line(names[i], known, tones[i]), known, len(known) < len(axes)))
    for at, axis in enumerate(axes):
        y = 26 + _STEP * at
        marks.append(
            Markup(
                '<path class="axis" d="M{} {}H{}"/><text class="name" x="{}" y="{}">{}</text>'
            ).format(_SIDE, y, _TALL - _SIDE, _SIDE, y - 10, _text(axis.name, 60))
        )
        marks += [_label(place, text, wide, y) for place, text in axis.labels]
    named = tuple((tone, name) for name, tone in zip(names, tones, strict=True) if tone is not None)
    grey = len(names) - len(named)
    first = f"in colour {', '.join(name for _, name in named)}" if named else ""
    rest = f"{grey} more in grey" if grey else ""
    alt = f"{len(names)} runs over {', '.join(axis.name for axis in axes)}: "
    alt += "; ".join(filter(None, (first, rest)))
    return Drawing(title, Markup("\n").join(marks), alt, _TALL, height, named)


def _text(text: str, most: int) -> str:
    return short(printable(text), most)


def _label(place: float, text: str, wide: int, y: int) -> Markup:
    anchor = "start" if place < 0.15 else "end" if place > 0.85 else "middle"
    x = _SIDE + wide * place
    return Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
        x, y + 14, anchor, _text(text, 24)
    )


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
        to = _scale(low, high, 0.0, 1.0, log)
        places = tuple(None if v is None else to(float(v)) for v in values)  # type: ignore[arg-type]
        ends = ((0.0, _figure(low)), (1.0, _figure(high))) if low < high else ((0.5, _figure(low)),)
        return Axis(f"{name} (log)" if log else name, places, ends)
    words = list(dict.fromkeys(str(v) for v in known))
    at = {word: (i / (len(words) - 1) if len(words) > 1 else 0.5) for i, word in enumerate(words)}
    labels = tuple((place, word) for word, place in at.items()) if len(words) <= 6 else ()
    return Axis(name, tuple(None if v is None else at[str(v)] for v in values), labels)


def _scale(
    low: float, high: float, start: float, end: float, log: bool
) -> Callable[[float], float]:
    """From low to high onto start to end."""
    a, b = (math.log10(low), math.log10(high)) if log else (low, high)

    def to(value: float) -> float:
        at = math.log10(value) if log else value
        return start + (end - start) * ((at - a) / (b - a) if b > a else 0.5)

    return to


def _ends(xs: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(xs), max(xs)
    if low < high:
        return low, high
    return (low / 2, high * 2) if log else (low - 0.5, high + 0.5)


def _widened(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` + 1 round numbers between low and high."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough)
    first = math.ceil(low / step)
    return [step * k for k in range(first, math.floor(high / step) + 1)]


def _epochs(xs: Sequence[float]) -> list[float]:
    low, high = min(xs), max(xs)
    if high - low < 1:
        return [low]
    whole = [x for x in _ticks(low, high, 5) if x == round(x)]
    return whole or [low, high]


def _decades(xs: Sequence[float]) -> list[float]:
    low, high = (math.log10(x) for x in (min(xs), max(xs)))
    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    step = max(1, math.ceil(len(powers) / 5))
    return [10.0**p for p in powers[::step]]


def _beside(levels: Sequence[float]) -> int:
    """The width of the numbers beside the y axis, from ``_LEFT`` on as they need it."""
    return max(_LEFT, *(math.ceil(8 + estimate(_figure(value))) for value in levels))


def _level(y: float, value: float, left: int) -> Markup:
    return Markup(
        '<path class="tick" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(left, y, _WIDTH - _RIGHT, left - 6, y + 4, _figure(value))


def _across(x: float, value: float) -> Markup:
    text = _figure(value)
    # A label that would leave the drawing ends with it.
    at, anchor = (x, "middle") if x + 3.5 * len(text) < _WIDTH else (_WIDTH, "end")
    return Markup('<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
        at, _HEIGHT - _BOTTOM + 15, anchor, text
    )


def _figure(value: float) -> str:
    """A number beside an axis: large ones whole and with separators, others with four digits."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e10 else f"{value:.4g}"


def _drawn(line: Line, at: Points, part: bool = False) -> Markup:
    if not at:
        return Markup()
    # More points than that are less than a pixel apart.
    every = 1 + len(at) // _FINEST
    at = [*at[:-1:every], at[-1]]
    look = "rest" if line.tone is None else f"t{line.tone}"
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    title = printable(line.name) + (" (not on every axis)" if part else "")
    marks = Markup('<path class="{}" d="{}"><title>{}</title></path>').format(look, path, title)
    if line.tone is not None and len(at) <= _DOTS:
        dot = '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>'
        marks += Markup().join(Markup(dot).format(look, x, y) for x, y in at)
    return marks


def _in_words(line: Line) -> str:
    first, last = line.points[0][1], line.points[-1][1]
    if len(line.points) == 1:
        return f"{line.name} {first:.4g}"
    return f"{line.name} from {first:.4g} to {last:.4g}"
