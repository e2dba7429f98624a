"""The figures of a run: each is built, written as one PNG in one move, and its path returned.

A figure that has nothing to show is not drawn: the function returns ``None`` and removes a file
that an earlier report left at ``path``. Matplotlib's settings are the process's: draw from one
thread at a time. Names are drawn as :mod:`xfer.report.plot` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.report import charts, confusion, grids, plot

if TYPE_CHECKING:
    from xfer.core.types import Plain
    from xfer.report.confusion import Counts
    from xfer.report.grids import Picture


def batch_grid(pictures: Sequence[Picture], titles: Sequence[str], path: Path) -> Path:
    """Draw up to 24 ``pictures`` (uint8 (h, w, 3), true colours) under their class names."""
    with plot.style():
        return plot.save(grids.batch(pictures, titles), path)


def prediction_grid(
    pictures: Sequence[Picture],
    predicted: Sequence[str],
    right: Sequence[bool],
    path: Path,
    confidence: Sequence[float] | None = None,
) -> Path:
    """Draw up to 24 ``pictures`` under the predicted class: blue when right, red when wrong."""
    with plot.style():
        return plot.save(grids.predictions(pictures, predicted, right, confidence), path)


def most_wrong(
    pictures: Sequence[Picture], titles: Sequence[tuple[str, str, float]], path: Path
) -> Path | None:
    """Draw wrong answers in the order given, each title (true class, predicted, confidence).

    ``None`` when ``pictures`` is empty.
    """
    with plot.style():
        return plot.save_any(grids.mistakes(pictures, titles) if pictures else None, path)


def confusion_matrix(counts: Counts, classes: Sequence[str], path: Path) -> Path:
    """Draw ``counts`` (classes, classes), rows true and columns predicted.

    The colour is the share of the row; above 40 classes there are no numbers and few labels.
    """
    with plot.style():
        return plot.save(confusion.matrix(counts, classes), path)


def confused_pairs(
    counts: Counts, classes: Sequence[str], path: Path, of: int | None = None
) -> Path | None:
    """Draw the most confused pairs as bars; ``None`` when nothing is confused.

    ``of`` is how many classes there are, where the last of ``classes`` stands for many.
    """
    with plot.style():
        return plot.save_any(confusion.bars(counts, classes, of or len(classes)), path)


def curves(
    history: Sequence[Plain], best_epoch: int | None, metric: str, path: Path
) -> Path | None:
    """Draw loss, ``metric`` and learning rate from the rows of ``metrics.csv``.

    A value that is missing, ``None`` or not finite is left out; ``None`` when none remains.
    """
    with plot.style():
        return plot.save_any(charts.panels(history, best_epoch, metric), path)


def strengths(history: Sequence[Plain], best: int, path: Path) -> Path:
    """Draw the rows of ``metrics.csv`` of a solved head, a strength of the penalty each."""
    with plot.style():
        return plot.save(charts.path(history, best), path)


def climb(found: Plain, path: Path) -> Path:
    """Draw the smoothed loss over the learning rate, and the rate that is suggested."""
    with plot.style():
        return plot.save(charts.climb(found), path)


def speeds_of(rows: Sequence[Plain], path: Path) -> Path:
    """Draw the rows of ``benchmark.json``: time of one image, images a second."""
    with plot.style():
        return plot.save(charts.bars(rows), path)
