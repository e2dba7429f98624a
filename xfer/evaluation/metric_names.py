"""The names under which a run logs what it measures, for whoever must know them without torch."""

from __future__ import annotations

from collections.abc import Sequence

NAMES = ("loss", "acc", "macro_f1", "auroc", "ece", "top5")
"""What a validation logs, as ``val_<name>``; ``top5`` only where there are more than 5 classes, and
``auroc`` up to ``RANKED`` of them."""
FEW = 100
"""Up to so many classes, each has a column of its own in the predictions and in the confusion."""
RANKED = 1000
"""Up to so many classes, the images are ranked once for each of them."""


def names(classes: int) -> list[str]:
    """The metric names a run over ``classes`` classes can be monitored by."""
    missing = {"top5": classes <= 5, "auroc": classes > RANKED}
    return [f"val_{name}" for name in NAMES if not missing.get(name)] + ["train_loss"]


RUN = (".onnx", ".pt2", ".torchscript")
"""The kinds of exported files that the stage ``benchmark`` runs."""
EAGER = "torch"
"""Its name for the network that is not exported."""
SPEEDS = ("ms", "images_per_s", "bytes")


def speeds(files: Sequence[str]) -> list[str]:
    """What the stage ``benchmark`` measures of exported ``files`` and of torch itself, as
    ``benchmark.<file>.<measure>``."""
    known = [EAGER, *(name for name in files if name.endswith(RUN))]
    return [f"benchmark.{name}.{measure}" for name in known for measure in SPEEDS]
