"""The learning-rate range test: loss over rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfer.report.canvas import GREY, RATE, TRAIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xfer.types import Plain


def climb(found: Plain) -> Figure:
    """One panel: the smoothed loss of the climb, the suggested and the steepest rate marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found["rates"], found["losses"], color=TRAIN)
    for name, colour in (("suggested", RATE), ("steepest", GREY)):
        rate = found[name]
        loss = found["losses"][found["rates"].index(rate)]
        axes.plot([rate], [loss], "o", color=colour, label=f"{name}: {rate:.2g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.set_xlabel("optim.lr")
    axes.set_ylabel("training loss, smoothed")
    axes.legend(frameon=False)
    return figure
