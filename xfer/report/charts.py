"""Figures of a fit by epoch, of the rate test, and of the benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xfer.report.plot import GREY, RATE, TRAIN, VAL, drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from xfer.core.types import Plain

Points = list[tuple[float, float]]
_MARKED = 40


def curves(history: Sequence[Plain], best_epoch: int | None, metric: str) -> Figure | None:
    """Loss, ``metric`` and learning rate by epoch, from the rows of ``metrics.csv``.

    A value that is missing, ``None`` or not finite is left out; ``None`` when none remains.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    other = metric.replace("val_", "train_", 1)
    lines = {key: points(history, key) for key in ("train_loss", "val_loss", other, metric, "lr")}
    if not any(lines.values()):
        return None
    figure = Figure(figsize=(11.5, 3.1), layout=ConstrainedLayoutEngine(wspace=0.06))
    loss, score, rate = figure.subplots(1, 3, width_ratios=(4, 4, 2.4))
    _draw(loss, "loss", {"train": lines["train_loss"], "val": lines["val_loss"]}, best_epoch)
    known = {"train": lines[other] if other != metric else [], "val": lines[metric]}
    _draw(score, drawable(metric), known, best_epoch)
    _mark_best(score, lines[metric], best_epoch)
    _draw(rate, "learning rate", {"lr": lines["lr"]}, None)
    if lines["lr"]:  # from zero: a constant rate is no noise around itself
        rate.set_ylim(bottom=-0.04 * rate.get_ylim()[1])
    return figure


def strengths(history: Sequence[Plain], best: int) -> Figure:
    """Cross-validated, training and validation loss, and accuracy, over the strengths of the
    penalty that a head was solved with; ``best`` (1-based) is the row of the chosen one."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(8.6, 3.3), layout=ConstrainedLayoutEngine(wspace=0.06))
    for axes, kind in zip(figure.subplots(1, 2), ("loss", "acc"), strict=True):
        lines = {"held out": f"cv_{kind}", "val": f"val_{kind}", "train": f"train_{kind}"}
        looks = {"held out": (RATE, "D"), "val": (VAL, "o"), "train": (TRAIN, "s")}
        for name, key in lines.items():
            line = [(row["l2"], row[key]) for row in history if key in row]
            if line:
                colour, marker = looks[name]
                axes.plot(*zip(*line, strict=True), color=colour, marker=marker, ms=4, label=name)
        chosen = history[best - 1]
        axes.axvline(chosen["l2"], color=GREY, lw=1, ls=(0, (3, 3)), zorder=1)
        at = chosen[f"cv_{kind}"]
        axes.plot([chosen["l2"]], [at], "D", ms=9, mfc="white", mec=RATE, mew=2.2, zorder=5)
        axes.set_title(f"chosen {chosen['l2']:.2g}: {at:.3f}", loc="right", color=RATE)
        axes.set(
            title=drawable("loss" if kind == "loss" else "accuracy"), xlabel="l2", xscale="log"
        )
        # The usual labels of powers are formulas, and nothing here is read as a formula.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda l2, _: f"{l2:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
        axes.legend(loc="best", fontsize=8, handlelength=1.6)
    return figure


def points(history: Sequence[Plain], key: str) -> Points:
    """The (epoch, value) of every row that has a finite number under ``key``."""
    rows = [(row.get("epoch"), row.get(key)) for row in history]
    return [
        (float(x), float(y))
        for x, y in rows
        if x is not None and y is not None and math.isfinite(y)
    ]


def _draw(axes: Axes, title: str, lines: dict[str, Points], best_epoch: int | None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    looks = {"train": (TRAIN, "s"), "val": (VAL, "o"), "lr": (RATE, "o")}
    drawn = {name: line for name, line in lines.items() if line}
    for name, line in drawn.items():
        colour, marker = looks[name]
        size = 3.5 if len(line) <= _MARKED else 0.0
        axes.plot(
            *zip(*line, strict=True), color=colour, marker=marker, ms=size, lw=1.6, label=name
        )
    epochs = [x for line in drawn.values() for x, _ in line]
    if epochs:
        beside = 0.5 + 0.01 * (max(epochs) - min(epochs))
        axes.set_xlim(min(epochs) - beside, max(epochs) + beside)
    else:
        axes.text(0.5, 0.5, "not recorded", color=GREY, ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    if best_epoch is not None:
        axes.axvline(best_epoch, color=GREY, lw=1, ls=(0, (3, 3)), zorder=1)
    if len(drawn) > 1:
        axes.legend(loc="best", fontsize=8, handlelength=1.6)
    axes.grid(axis="y")
    axes.margins(y=0.12)
    axes.set(title=title, xlabel="epoch")
    axes.xaxis.set_major_locator(
        MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def _mark_best(axes: Axes, line: Points, best_epoch: int | None) -> None:
    value = dict(line).get(float(best_epoch)) if best_epoch is not None else None
    if best_epoch is None or value is None:
        return
    axes.plot([best_epoch], [value], "o", ms=8, mfc="white", mec=VAL, mew=2.2, zorder=5)
    # In the title's line, where no curve can run through it.
    axes.set_title(f"best {value:.3f} at epoch {best_epoch}", loc="right", color=VAL)


def climb(test: Plain) -> Figure:
    """One panel: the smoothed loss of the climb, and the suggested, lowest and steepest marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(test["rates"], test["losses"], color=TRAIN)
    axes.axvline(test["suggested"], color=RATE, label=f"suggested: {test['suggested']:.2g}")
    for name, mark in (("lowest", "v"), ("steepest", "o")):
        rate = test[name]
        loss = test["losses"][test["rates"].index(rate)]
        axes.plot([rate], [loss], mark, color=GREY, label=f"{name}: {rate:.2g}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.set_xlabel("optim.lr")
    axes.set_ylabel("training loss, smoothed")
    axes.legend(frameon=False)
    return figure


# Key of a row, its unit as drawn, units a number of the row, format.
_SHOWN = (
    ("bytes", "size, MB", 1e-6, ".1f"),
    ("start_s", "start, s", 1, ".2f"),
    ("ms", "one image, ms", 1, ".2f"),
    ("images_per_s", "in batches, images a second", 1, ".3g"),
    ("top1", "top-1 accuracy", 1, ".3f"),
)


def speeds(rows: Sequence[Plain]) -> Figure:
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
