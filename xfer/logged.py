"""The names under which a validation logs its metrics, for whoever must know them without torch."""

from __future__ import annotations

NAMES = ("loss", "acc", "macro_f1", "auroc", "ece", "top5")
"""What a validation logs, as ``val_<name>``; ``top5`` only where there are more than 5 classes."""


def names(classes: int) -> list[str]:
    """The metric names a run over ``classes`` classes can be monitored by."""
    return [f"val_{name}" for name in NAMES if name != "top5" or classes > 5] + ["train_loss"]
