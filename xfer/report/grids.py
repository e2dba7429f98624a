"""Pictures in rows of eight, each with lines of text above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xfer.core.types import Plain
from xfer.report.plot import GREY, INK, RIGHT, WRONG, drawable, fit, width

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

    Picture = npt.NDArray[np.uint8]

COLUMNS, LIMIT = 8, 24
Line = tuple[str, str]
"""A text that fits, and its colour."""

_SIDE, _GAP, _LINE = 1.42, 0.13, 0.165  # inches: picture width, between pictures, text line
_ROOM = 72 * (_SIDE + _GAP / 2)
_FONT = 9.0


def batch(pictures: Sequence[Picture], titles: Sequence[str]) -> Figure:
    """Each picture under its title."""
    return _grid(pictures, [[(fit(title, _ROOM, _FONT), INK)] for title in titles])


def predictions(
    pictures: Sequence[Picture],
    predicted: Sequence[str],
    right: Sequence[bool],
    confidence: Sequence[float] | None = None,
) -> Figure:
    """Each picture under what was predicted: blue when right, red with a frame when wrong."""
    ends = [""] * len(predicted) if confidence is None else [f" ({c:.2f})" for c in confidence]
    colours = [RIGHT if ok else WRONG for ok in right]
    rows = zip(predicted, ends, colours, strict=True)
    figure = _grid(pictures, [[(_ended(name, end), colour)] for name, end, colour in rows])
    for axes, colour in zip(figure.axes, colours, strict=False):
        if colour == WRONG:
            axes.spines[:].set(visible=True, color=WRONG, linewidth=2.5)
    shown = colours[:LIMIT]
    legend = [(f"{shown.count(RIGHT)} right", RIGHT), (f"{shown.count(WRONG)} wrong", WRONG)]
    note = "of the pictures shown" + ("" if confidence is None else "; in brackets the confidence")
    _legend(figure, [*legend, (note, GREY)])
    return figure


def mistakes(
    pictures: Sequence[Picture], titles: Sequence[tuple[str, str, float]]
) -> Figure | None:
    """Each picture under its true class, then the predicted one in red with its confidence;
    ``None`` where there is none."""
    if not pictures:
        return None
    captions = [
        [(fit(true, _ROOM, _FONT), INK), (_ended(taken, f" ({confidence:.2f})"), WRONG)]
        for true, taken, confidence in titles
    ]
    figure = _grid(pictures, captions)
    _legend(figure, [("true class", INK), ("predicted class (confidence)", WRONG)])
    return figure


def _ended(name: str, end: str) -> str:
    return fit(name, _ROOM - width(end, _FONT), _FONT) + drawable(end)


def _grid(pictures: Sequence[Picture], captions: Sequence[Sequence[Line]]) -> Figure:
    from matplotlib.figure import Figure

    cells = list(zip(pictures, captions, strict=True))[:LIMIT]
    tall = _SIDE * min(2.0, max(picture.shape[0] / picture.shape[1] for picture, _ in cells))
    step = tall + _LINE * max(len(lines) for _, lines in cells) + _GAP
    across, rows = min(COLUMNS, len(cells)), -(-len(cells) // COLUMNS)
    size = (across * (_SIDE + _GAP) - _GAP, rows * step)
    figure = Figure(figsize=size)
    for i, (picture, lines) in enumerate(cells):
        left = i % COLUMNS * (_SIDE + _GAP)
        bottom = size[1] - i // COLUMNS * step - (step - _GAP)
        box = (left / size[0], bottom / size[1], _SIDE / size[0], tall / size[1])
        axes = figure.add_axes(box, anchor="N")
        # Without ticks there is nothing to draw of an axis, but matplotlib looks each time.
        axes.xaxis.set_visible(False)
        axes.yaxis.set_visible(False)
        axes.spines[:].set_visible(False)
        axes.imshow(picture)
        for above, (text, colour) in enumerate(reversed(lines)):
            look: Plain = {"color": colour, "fontsize": _FONT, "ha": "center", "va": "baseline"}
            look |= {"xycoords": "axes fraction", "textcoords": "offset points"}
            axes.annotate(text, (0.5, 1.0), (0, 4.0 + 72 * _LINE * above), **look)
    return figure


def _legend(figure: Figure, entries: Sequence[Line]) -> None:
    left = 0.0
    for text, colour in entries:
        figure.text(
            left / figure.get_figwidth() / 72,
            1 + 0.12 / figure.get_figheight(),
            text,
            color=colour,
            fontsize=_FONT + 1,
            weight="bold" if colour in (RIGHT, WRONG) else "normal",
        )
        left += 1.15 * width(text, _FONT + 1) + 9
