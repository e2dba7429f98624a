"""What the run card shows of answers with several labels an image: pictures and curves. There is
no confusion of classes that do not exclude each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xfer.data.preprocess import fit_to_size
from xfer.report import grids, panels
from xfer.report.confidence import label_curves
from xfer.report.plot import draw

if TYPE_CHECKING:
    from pathlib import Path

    from xfer.core.types import InputSpec, Plain, Predictions, Samples


def draw_label_answers(
    samples: Samples, answers: Predictions, spec: InputSpec, folder: Path
) -> None:
    """Draw ``prediction_grid.png``: images of the split under what they are said to have, right
    where every known label is."""
    n, said = len(answers.names), answers.said
    shown = [i * n // min(n, grids.LIMIT) for i in range(min(n, grids.LIMIT))]
    labels = samples.labels
    right = ~((labels >= 0) & (said != (labels == 1))).any(axis=1)
    titles = [
        ", ".join(name for name, yes in zip(answers.classes, said[i], strict=True) if yes) or "none"
        for i in shown
    ]
    pictures = [np.asarray(fit_to_size(samples.images[i], spec)) for i in shown]
    draw(
        folder / "prediction_grid.png",
        grids.predictions,
        pictures,
        titles,
        [bool(right[i]) for i in shown],
    )


def label_details(answers: Predictions, note: str) -> Plain:
    """The charts of the classes, and a ``note`` on what they are drawn from."""
    chart = panels.recall(label_curves(answers))
    return {"charts": {"classes": (chart,) if chart else ()}, "notes": [note]}
