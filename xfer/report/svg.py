"""Charts as inline SVG: text that scales, and colours that follow the page's light or dark look.

Every colour is a class that the page's style sheet fills; every text passes :func:`escaped`. Names
are shortened by an estimate of their width, and whole in a tooltip.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from xfer.core.errors import printable
from xfer.report.format import short

if TYPE_CHECKING:
    from markupsafe import Markup

Points = Sequence[tuple[float, float]]
FONT = 12.0
WIDE, HIGH = 340.0, 230.0
LEFT, TOP, RIGHT, BOTTOM = 46.0, 30.0, 8.0, 38.0
_BROAD = frozenset("WMmw@%")


@dataclass(frozen=True)
class Chart:
    """A finished picture: the ``svg``, what is seen in it as ``alt``, and what to know of it."""

    title: str
    svg: Markup
    alt: str
    caption: str = ""
    wide: float = 400.0
    """Pixels that it wants; on a narrower page it shrinks, down to ``least``, and then scrolls."""
    least: float = 0.0
    legend: tuple[tuple[int, str], ...] = ()
    """Names of lines by their look, for a page that lists them below the picture."""


def escaped(text: object) -> str:
    """``text`` for the inside of an element or an attribute, unprintable characters as escapes."""
    from markupsafe import escape

    return str(escape(printable(text)))


def estimate(text: str, size: float = FONT) -> float:
    """Roughly the width of ``text`` in a sans-serif font of ``size``."""
    broad = (c in _BROAD or unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * sum(1.0 if each else 0.58 for each in broad)


def fitted_name(name: object, room: float, size: float = FONT) -> str:
    """``name`` with an ellipsis in its middle if it is likely to be wider than ``room``."""
    whole = printable(name)
    if len(whole) < 400 and estimate(whole, size) <= room:
        return whole
    most = max(2, int(room / (0.58 * size)) - 1)
    while most > 2 and estimate(whole[:most], size) > room:
        most -= 1
    return short(whole, most + 1)


def _tip(text: object) -> str:
    return f"<title>{escaped(text)}</title>"


def label(
    x: float, y: float, name: object, room: float = math.inf, look: str = "", turn: float = 0
) -> str:
    """A text at a place; ``look`` are classes, ``turn`` degrees. Whole in a tooltip if cut."""
    whole = printable(name)
    shown = whole if room == math.inf else fitted_name(whole, room)
    tip = _tip(whole) if shown != whole else ""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    classes = f' class="{look}"' if look else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{classes}{turned}>{escaped(shown)}{tip}</text>'


def figure(value: float) -> str:
    """A number beside an axis: large ones whole and with separators, others with four digits."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e10 else f"{value:.4g}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``, at most about ``most`` of them."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * k for k in (1, 2, 5, 10) if span / (step * k) <= most)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """The powers of ten between two exponents, every other one where there are many, and twice and
    five times them where there are less than three."""
    exponents = list(range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1))
    if len(exponents) < 3:
        between = (math.floor(low) + i // 3 + math.log10((1, 2, 5)[i % 3]) for i in range(9))
        return [e for e in between if low - 1e-9 <= e <= high + 1e-9]
    return [float(e) for e in exponents[:: 1 if len(exponents) <= 5 else 2]]


@dataclass
class Panel:
    """One pair of axes. ``x`` and ``y`` are the ranges; of a ``log`` axis the exponents of ten."""

    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False
    high: float = HIGH
    top: float = 0.0
    """Room above the axes beside the usual one, for a longer legend."""
    parts: list[str] = field(default_factory=list)

    @cached_property
    def left(self) -> float:
        """The width of the numbers beside the y axis, from :data:`LEFT` on as they need it."""
        return max(LEFT, 8 + max(estimate(figure(value)) for value in ticks(*self.y)))

    def across(self, value: float) -> float:
        """The place of a value on the x axis."""
        low, high = self.x
        return self.left + (WIDE - self.left - RIGHT) * (value - low) / ((high - low) or 1.0)

    def up(self, value: float) -> float:
        """The place of a value on the y axis."""
        low, high = self.y
        room = self.high - TOP - self.top - BOTTOM
        return self.high - BOTTOM - room * (value - low) / ((high - low) or 1.0)

    def axes(self, name: str, whole: bool = False, up: str = "") -> Panel:
        """Grid, numbers and the ``name`` of the x axis, ``whole`` numbers alone on that; and what
        is ``up``."""
        for value in ticks(*self.y):
            y = self.up(value)
            line = f'<line class="grid" x1="{self.left:g}" x2="{WIDE - RIGHT:g}"'
            self.parts.append(f'{line} y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(label(self.left - 6, y + 4, figure(value), look="soft end"))
        shown = powers(*self.x) if self.log else ticks(*self.x)
        for value in shown if not whole else [v for v in shown if v == round(v)]:
            text = f"{10**value:g}" if self.log else figure(value)
            # The last number ends with the picture, not behind it.
            at = min(self.across(value), WIDE - 2 - estimate(text) / 2)
            self.parts.append(label(at, self.high - BOTTOM + 16, text, look="soft mid"))
        middle = (self.left + WIDE - RIGHT) / 2
        self.parts.append(label(middle, self.high - 5, name, WIDE - self.left, "soft mid"))
        self.parts += [label(4, 11, up, WIDE - 8, "soft")] if up else []
        return self

    def line(self, points: Points, look: str, dots: bool = False) -> Panel:
        """A line through ``points``, with a dot at each if asked."""
        places = [(self.across(x), self.up(y)) for x, y in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        self.parts.append(f'<path class="line {look}" d="M{path}"/>')
        if dots or len(places) == 1:
            self.parts += (
                f'<circle class="dot {look}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in places
            )
        return self

    def mark(self, x: float, y: float, look: str) -> Panel:
        """A ring at a point, and a dashed line through it from top to bottom."""
        at, top, low = self.across(x), TOP + self.top, self.high - BOTTOM
        self.parts.append(
            f'<line class="dash" x1="{at:.1f}" x2="{at:.1f}" y1="{top:g}" y2="{low:g}"/>'
            f'<circle class="ring {look}" cx="{at:.1f}" cy="{self.up(y):.1f}" r="5"/>'
        )
        return self

    def dot(self, x: float, y: float, look: str, tip: str = "", radius: float = 3) -> Panel:
        """A point, with what it says when it is pointed at."""
        shown = f'<circle class="{look}" cx="{self.across(x):.1f}" cy="{self.up(y):.1f}"'
        self.parts.append(f'{shown} r="{radius:g}">{tip and _tip(tip)}</circle>')
        return self

    def reach(self, x: float, low: float, high: float, look: str) -> Panel:
        """An upright line from one value to another, for an interval."""
        path = f"M{self.across(x):.1f} {self.up(low):.1f}V{self.up(high):.1f}"
        self.parts.append(f'<path class="{look}" d="{path}"/>')
        return self

    def cross(self, x: float, tip: str) -> Panel:
        """A cross at the bottom, for what has no value."""
        path = f"M{self.across(x) - 3:.1f} {self.high - BOTTOM - 8:g}l6 6m0 -6l-6 6"
        self.parts.append(f'<path class="rest" d="{path}">{_tip(tip)}</path>')
        return self

    def steps(self, points: Points, look: str, early: bool = False) -> Panel:
        """A line of steps, up or down at each point; ``early`` at the one before it."""
        at = [(self.across(x), self.up(y)) for x, y in points]
        path = f"M{at[0][0]:.1f} {at[0][1]:.1f}"
        path += "".join(f"V{y:.1f}H{x:.1f}" if early else f"H{x:.1f}V{y:.1f}" for x, y in at[1:])
        self.parts.append(f'<path class="{look}" d="{path}"/>')
        return self

    def beside(self, x: float, y: float, text: str) -> Panel:
        """A text beside a point, on the side that has room."""
        at, place = self.across(x), self.up(y) - 6
        left = at > WIDE / 2
        self.parts.append(label(at - 7 if left else at + 7, place, text, look="end" * left))
        return self

    def bar(self, ends: tuple[float, float], y: tuple[float, float], look: str, tip: str) -> Panel:
        """A bar from one x to another and one y to another, with a tooltip."""
        left, right = self.across(ends[0]) + 0.7, self.across(ends[1]) - 0.7
        top, bottom = self.up(y[1]), self.up(y[0])
        if bottom > top:
            self.parts.append(
                f'<rect class="{look}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                f'height="{bottom - top:.1f}">{_tip(tip)}</rect>'
            )
        return self

    def legend(self, entries: Iterable[tuple[str, str]], columns: int = 3) -> Panel:
        """Names of lines above the axes, in rows: (look, name)."""
        room = (WIDE - self.left - RIGHT) / columns
        for i, (look, name) in enumerate(entries):
            x, y = self.left + i % columns * room, 12 + 15 * (i // columns)
            self.parts.append(
                f'<line class="line {look}" x1="{x:.1f}" x2="{x + 18:.1f}" '
                f'y1="{y - 4:g}" y2="{y - 4:g}"/>'
            )
            self.parts.append(label(x + 23, y, name, room - 26))
        return self

    def draw(
        self, title: str, alt: str, caption: str = "", legend: Sequence[tuple[int, str]] = ()
    ) -> Chart:
        """The finished chart."""
        svg = picture(WIDE, self.high, self.parts, alt)
        return Chart(title, svg, alt, caption, legend=tuple(legend))


def picture(wide: float, high: float, parts: Iterable[str], alt: str) -> Markup:
    """``parts`` in an SVG element that a screen reader reads as ``alt``."""
    from markupsafe import Markup

    box = f'viewBox="0 0 {wide:g} {high:g}" role="img" aria-label="{escaped(alt)}"'
    # All of its texts and numbers have passed an escape: nothing else is put together here.
    return Markup(f"<svg {box}>{''.join(parts)}</svg>")
