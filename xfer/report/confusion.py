"""Which class was taken for which: the whole matrix, and the pairs most often confused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.types import Plain
from xfer.evaluation.metrics import FEW, confusion
from xfer.report.plot import FAINT, GREY, INK, VAL, fit, width

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Counts = npt.NDArray[np.int64]

NUMBERED, PAIRS = 40, 12
_ZEROS, _LABELS = 12, 30


def condensed(truth: Counts, chosen: Counts, classes: Sequence[str]) -> tuple[Counts, list[str]]:
    """Counts (rows true, columns predicted) and names of the classes; above 100 of those of the
    most confused pairs and one more, last, for all the others together."""
    if len(classes) <= FEW:
        return confusion(truth, chosen, len(classes)), list(classes)
    wrong = truth != chosen
    taken, counts = np.unique(np.stack([truth[wrong], chosen[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = list(dict.fromkeys(taken[:, order].T.ravel().tolist()))[: NUMBERED - 1]
    place = np.full(len(classes), len(shown), np.int64)
    place[shown] = np.arange(len(shown))
    names = [*(classes[i] for i in shown), f"({len(classes) - len(shown):,} others)"]
    return confusion(place[truth], place[chosen], len(names)), names


def matrix(counts: Counts, classes: Sequence[str]) -> Figure:
    """Counts (rows true, columns predicted) on the colour of their share of the row."""
    import matplotlib
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    many = len(classes)
    side = max(1.6, min(0.7 * many, 4.6), 0.27 * many) if many <= NUMBERED else 8.5
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    totals = counts.sum(axis=1)
    shares = np.ma.masked_invalid(counts / np.where(totals, totals, np.nan)[:, None])
    # The square root keeps one mistake in a hundred visible; the colour bar shows the scale.
    colours = matplotlib.colormaps["Blues"].with_extremes(bad=FAINT)
    image = axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1))
    _name(axes, classes, totals, 72 * side / many)
    if many <= NUMBERED:
        size = max(6.0, min(11.0, 30 * side / many))
        for (row, column), count in np.ndenumerate(counts):
            if count or many <= _ZEROS:
                dark = shares.filled(0)[row, column] > 0.45
                colour = "white" if dark else INK if count else GREY
                look: Plain = {"color": colour, "fontsize": size, "ha": "center", "va": "center"}
                axes.text(column, row, f"{count:,}", **look)
    axes = figure.add_axes((1 + 0.15 / side, 0, 0.12 / side, 1))
    ticks = [0, 0.01, 0.1, 0.25, 0.5, 1] if side > 3 else [0, 0.1, 0.25, 0.5, 1]
    bar = figure.colorbar(image, cax=axes, ticks=ticks)
    axes.set_yticklabels([f"{100 * tick:g} %" for tick in ticks], fontsize=8)
    axes.spines[:].set_visible(False)
    bar.set_label("share of the true class", fontsize=8, color=GREY)
    return figure


def _name(axes: Axes, classes: Sequence[str], totals: Counts, room: float) -> None:
    """Label the classes, or every k-th of very many, with the images of each true class.

    ``room`` is the width of a cell in points.
    """
    every = 1 if len(classes) <= NUMBERED else -(-len(classes) // _LABELS)
    shown = range(0, len(classes), every)
    names = [fit(classes[i], 110, 8) for i in shown]
    axes.set_xticks(shown, names, fontsize=8)
    if max(width(name, 8) for name in names) > every * room - 4:
        axes.tick_params(axis="x", labelrotation=45 if len(classes) <= _ZEROS else 90)
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")
            label.set_horizontalalignment("right")
            label.set_verticalalignment("center")
    counted = [f"{name}  ({totals[i]:,})" for i, name in zip(shown, names, strict=True)]
    axes.set_yticks(shown, counted, fontsize=8)
    axes.tick_params(length=0 if every == 1 else 3)
    axes.spines[:].set_visible(False)
    some = "" if every == 1 else f", one in {every} named"
    axes.set_xlabel(f"predicted class{some}", color=GREY)
    axes.set_ylabel(f"true class (images){some}", color=GREY)


def pairs(counts: Counts, of: int | None = None) -> list[tuple[int, int, int]]:
    """The most confused (true, predicted, count), most often first, at most ``PAIRS``; without the
    last class where it stands for many of ``of`` classes."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    if of and of > len(counts):
        wrong[-1], wrong[:, -1] = 0, 0
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    cells = [divmod(int(i), len(counts)) for i in order]
    return [(true, taken, int(wrong[true, taken])) for true, taken in cells if wrong[true, taken]]


def bars(counts: Counts, classes: Sequence[str], of: int | None = None) -> Figure | None:
    """One bar a confused pair; ``None`` when nothing is confused. ``of`` as in :func:`pairs`."""
    from matplotlib.figure import Figure

    rows = pairs(counts, of)
    if not rows:
        return None
    totals = counts.sum(axis=1)
    figure = Figure(figsize=(4.0, 0.29 * len(rows)))
    axes = figure.add_axes((0, 0, 1, 1), yticks=[], xticks=[])
    axes.barh(range(len(rows)), [count for *_, count in rows], color=VAL, height=0.62)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.spines["bottom"].set_visible(False)

    def beside(text: str, x: float, y: float, shift: float, side: str, colour: str = INK) -> None:
        look: Plain = {"ha": side, "va": "center", "color": colour, "annotation_clip": False}
        axes.annotate(text, (x, y), (shift, 0), textcoords="offset points", **look)

    # Three texts a row: in one, a right-to-left name would turn the arrow round.
    heads = ("true class", "predicted class", "images")
    names = [(fit(classes[i], 126, 9), fit(classes[j], 126, 9)) for i, j, _ in rows]
    left = -12 - max(width(name, 9) for name in (heads[1], *(name for _, name in names)))
    for y, ((true, taken), (row, _, count)) in enumerate(zip(names, rows, strict=True)):
        beside(true, 0, y, left - 24, "right")
        beside("→", 0, y, left - 12, "center")
        beside(taken, 0, y, left, "left")
        beside(f"{count:,} of {totals[row]:,}", count, y, 5, "left")
    for text, shift, side in zip(
        heads, (left - 24, left, 0), ("right", "left", "left"), strict=True
    ):
        beside(text, 0, -0.9, shift, side, GREY)
    return figure
