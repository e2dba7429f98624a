"""The learning-rate range test: loss over rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfer.report.canvas import GREY, RATE, TRAIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xfer.types import Plain


def climb(found: Plain) -> Figure:
    """One panel: the smoothed loss of the climb, and the suggested, lowest and steepest marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found["rates"], found["losses"], color=TRAIN)
    axes.axvline(found["suggested"], color=RATE, label=f"suggested: {found['suggested']:.2g}")
    for name, mark in (("lowest", "v"), ("steepest", "o")):
        rate = found[name]
        loss = found["losses"][found["rates"].index(rate)]
        axes.plot([rate], [loss], mark, color=GREY, label=f"{name}: {rate:.2g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.set_xlabel("optim.lr")
    axes.set_ylabel("training loss, smoothed")
    axes.legend(frameon=False)
    return figure
