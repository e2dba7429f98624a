"""Figures and the run card. Importing this imports neither torch nor matplotlib."""

from xfer.report.figures import (
    batch_grid,
    confused_pairs,
    confusion_matrix,
    curves,
    most_wrong,
    prediction_grid,
)
from xfer.report.page import render

__all__ = [
    "batch_grid",
    "confused_pairs",
    "confusion_matrix",
    "curves",
    "most_wrong",
    "prediction_grid",
    "render",
]
