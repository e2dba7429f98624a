"""The benchmark of exported files: size, start, time of one image, images a second, accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xfer.report.canvas import TRAIN, VAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xfer.types import Plain

# Key of a row, its unit as drawn, units a number of the row, format.
_SHOWN = (
    ("bytes", "size, MB", 1e-6, ".1f"),
    ("start_s", "start, s", 1, ".2f"),
    ("ms", "one image, ms", 1, ".2f"),
    ("images_per_s", "in batches, images a second", 1, ".3g"),
    ("top1", "top-1 accuracy", 1, ".3f"),
)


def bars(rows: Sequence[Plain]) -> Figure:
    """A panel a measure, a bar a contestant; eager torch is first and in another colour. What was
    not measured has no bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 0.9 + 0.4 * len(rows)), layout="constrained")
    names = [row["name"] for row in rows]
    colours = [TRAIN, *[VAL] * (len(rows) - 1)]
    panels = figure.subplots(1, len(_SHOWN), sharey=True)
    for axes, (key, label, unit, form) in zip(panels, _SHOWN, strict=True):
        values = [None if row[key] is None else row[key] * unit for row in rows]
        drawn = axes.barh(names, [value or 0 for value in values], color=colours)
        axes.bar_label(drawn, ["" if v is None else format(v, form) for v in values], padding=3)
        axes.margins(x=0.3)
        part = key == "top1" and rows[0].get("top1_images", 0) < rows[0].get("images", 0)
        n = f", {rows[0]['top1_images']} of {rows[0]['images']} images" if part else ""
        axes.set_xlabel(label + n)
    panels[0].invert_yaxis()
    return figure
