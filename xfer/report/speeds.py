"""The benchmark of exported files: time of one image, and images a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xfer.report.canvas import TRAIN, VAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xfer.types import Plain


def bars(rows: Sequence[Plain]) -> Figure:
    """Two panels of bars, a bar a contestant; eager torch is first and in another colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.8 + 0.4 * len(rows)), layout="constrained")
    names = [row["name"] for row in rows]
    colours = [TRAIN, *[VAL] * (len(rows) - 1)]
    panels = figure.subplots(1, 2, sharey=True)
    shown = (("ms", "ms for one image", ".2f"), ("images_per_s", "images a second", ".0f"))
    for axes, (key, label, form) in zip(panels, shown, strict=True):
        drawn = axes.barh(names, [row[key] for row in rows], color=colours)
        axes.bar_label(drawn, [format(row[key], form) for row in rows], padding=3)
        axes.margins(x=0.15)
        axes.set_xlabel(label)
    panels[0].invert_yaxis()
    return figure
