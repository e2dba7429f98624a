"""Figures of a fit by epoch, of the rate test, and of the benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xfer.core.types import Plain
from xfer.report.format import strength
from xfer.report.plot import GREY, RATE, TRAIN, VAL, drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]
_MARKED = 40


def curves(history: Sequence[Plain], best_epoch: int | None, metric: str) -> Figure | None:
    """Loss, ``metric`` and learning rate by epoch, from the rows of ``metrics.csv``.

    A value that is missing, ``None`` or not finite is left out; ``None`` when none remains, and of
    a head that was filled.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    other = metric.replace("val_", "train_", 1)
    lines = {key: points(history, key) for key in ("train_loss", "val_loss", other, metric, "lr")}
    if filled(history) or not any(lines.values()):
        return None
    figure = Figure(figsize=(11.5, 3.1), layout=ConstrainedLayoutEngine(wspace=0.06))
    loss, score, rate = figure.subplots(1, 3, width_ratios=(4, 4, 2.4))
    _draw(loss, "loss", {"train": lines["train_loss"], "val": lines["val_loss"]}, best_epoch)
    of = "train" if metric.startswith("train_") else "val"
    scores = {"train": lines[other] if other != metric else [], of: lines[metric]}
    _draw(score, drawable(metric), scores, best_epoch)
    value = dict(lines[metric]).get(best_epoch or math.nan)
    if value is not None:
        ring = _LOOKS[of][0]
        score.plot([best_epoch], [value], "o", ms=8, mfc="white", mec=ring, mew=2.2, zorder=5)
        # In the title's line, where no curve can run through it.
        score.set_title(f"best {value:.3f} at epoch {best_epoch}", loc="right", color=ring)
    _draw(rate, "learning rate", {"lr": lines["lr"]}, None)
    if lines["lr"]:  # from zero: a constant rate is no noise around itself
        rate.set_ylim(bottom=-0.04 * rate.get_ylim()[1])
    return figure


def filled(history: Sequence[Plain]) -> bool:
    """Whether the rows are the one of a head that was filled: no step led to it, and a dot is no
    curve."""
    return len(history) == 1 and history[0].get("step") == 0


def points(history: Sequence[Plain], key: str) -> Points:
    """The (epoch, value) of every row that has a finite number under ``key``."""
    rows = [(row.get("epoch"), row.get(key)) for row in history]
    known = [(x, y) for x, y in rows if x is not None and y is not None]
    return [(float(x), float(y)) for x, y in known if math.isfinite(y)]


_LOOKS = {"train": (TRAIN, "s"), "val": (VAL, "o"), "held out": (RATE, "D"), "lr": (RATE, "o")}
"""Colour and marker of a line by its name."""


def _draw(axes: Axes, title: str, lines: dict[str, Points], best_epoch: int | None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    drawn = {name: line for name, line in lines.items() if line}
    if not drawn:
        axes.text(0.5, 0.5, "not recorded", color=GREY, ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    for name, line in drawn.items():
        colour, mark = _LOOKS[name]
        size = 3.5 if len(line) <= _MARKED else 0.0
        axes.plot(*zip(*line, strict=True), color=colour, marker=mark, ms=size, lw=1.6, label=name)
    epochs = [x for line in drawn.values() for x, _ in line]
    beside = 0.5 + 0.01 * (max(epochs) - min(epochs))
    axes.set_xlim(min(epochs) - beside, max(epochs) + beside)
    if best_epoch is not None:
        axes.axvline(best_epoch, color=GREY, lw=1, ls=(0, (3, 3)), zorder=1)
    if len(drawn) > 1:
        axes.legend(loc="best", fontsize=8, handlelength=1.6)
    axes.grid(axis="y")
    axes.margins(y=0.12)
    axes.set(title=title, xlabel="epoch")
    whole = MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    axes.xaxis.set_major_locator(whole)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def strengths(history: Sequence[Plain], best: int) -> Figure:
    """Cross-validated, training and validation loss, and accuracy, over the strengths of the
    penalty that a head was solved with; ``best`` (1-based) is the row of the chosen one."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, chosen = Figure(figsize=(8.6, 3.3)), history[best - 1]
    figure.set_layout_engine(ConstrainedLayoutEngine(wspace=0.06))
    titles = {"loss": "loss", "acc": "accuracy"}
    if "val_map" in history[0]:  # several labels an image
        titles = {"loss": "loss", "map": "mAP"}
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name, split in (("held out", "cv"), ("val", "val"), ("train", "train")):
            line = [
                (row["l2"], row[key])
                for row in history
                if row.get(key := f"{split}_{kind}") is not None
            ]
            if line:
                colour, mark = _LOOKS[name]
                axes.plot(*zip(*line, strict=True), color=colour, marker=mark, ms=4, label=name)
        axes.axvline(chosen["l2"], color=GREY, lw=1, ls=(0, (3, 3)), zorder=1)
        scores = (chosen.get(f"{split}_{kind}") for split in ("cv", "val", "train"))
        if (value := next((score for score in scores if score is not None), None)) is not None:
            axes.plot([chosen["l2"]], [value], "D", ms=9, mfc="white", mec=RATE, mew=2.2, zorder=5)
            axes.set_title(f"chosen {strength(chosen['l2'])}: {value:.3f}", loc="right", color=RATE)
        if len(history) == 1:  # a given strength, of which matplotlib makes an axis without length
            axes.set_xlim(chosen["l2"] / 10, chosen["l2"] * 10)
        axes.set(title=title, xlabel="penalty l2", xscale="log")
        # The usual labels of powers are formulas, and nothing here is read as a formula.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda l2, _: f"{l2:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
        axes.legend(loc="best", fontsize=8, handlelength=1.6)
    return figure


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
    ("images_per_s", "in batches, images a second", 1, ",.1f"),
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
