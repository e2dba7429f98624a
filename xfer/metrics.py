"""Scores of a whole split at once, through torchmetrics."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from xfer.logged import names
from xfer.statistics import wilson
from xfer.types import Score


def values(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Every metric of ``logits`` (n, classes) against ``labels`` (n,), without prefix.

    Accuracy counts images, F1 and AUROC are means over classes, the calibration error has 15
    bins (Guo et al., 2017). A value that logits of NaN would make up is NaN.
    """
    # Imported here: the plan needs the names alone, and torchmetrics takes two seconds.
    from torchmetrics.functional import classification as tm

    logits = logits.float()
    classes = logits.shape[1]
    if not torch.isfinite(logits).all():
        return {name.removeprefix("val_"): math.nan for name in names(classes)[:-1]}
    probabilities = logits.softmax(dim=1)
    result = {
        "loss": F.cross_entropy(logits, labels),
        "acc": (logits.argmax(dim=1) == labels).double().mean(),
        "macro_f1": tm.multiclass_f1_score(logits, labels, classes, average="macro"),
        "auroc": _auroc(probabilities, labels),
        "ece": tm.multiclass_calibration_error(probabilities, labels, classes, n_bins=15),
    }
    if classes > 5:
        result["top5"] = tm.multiclass_accuracy(logits, labels, classes, average="micro", top_k=5)
    return {name: float(value) for name, value in result.items()}


def _auroc(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | float:
    classes = probabilities.shape[1]
    counts = torch.bincount(labels, minlength=classes)
    if bool((counts == 0).any()) or bool((counts == len(labels)).any()):
        return math.nan  # undefined for a class without, or with only, positive images
    from torchmetrics.functional.classification import multiclass_auroc

    return multiclass_auroc(probabilities, labels, classes, average="macro")


def score(
    logits: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...], used_for_selection: bool
) -> Score:
    """The full score of one split."""
    count = len(classes)
    found = values(logits, labels)
    predicted = logits.argmax(dim=1)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
    right = int(confusion.diagonal().sum())
    auroc, top5 = found["auroc"], found.get("top5")
    return Score(
        n=len(labels),
        acc=right / len(labels),
        acc_ci95=wilson(right, len(labels)),
        loss=found["loss"],
        macro_f1=found["macro_f1"],
        auroc=None if math.isnan(auroc) else auroc,
        ece=found["ece"],
        top5=top5,
        confusion=confusion.tolist(),
        per_class=_per_class(confusion, classes),
        used_for_selection=used_for_selection,
    )


def _per_class(confusion: torch.Tensor, classes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    rows = {}
    for i, name in enumerate(classes):
        right = int(confusion[i, i])
        n, predicted = int(confusion[i].sum()), int(confusion[:, i].sum())
        rows[name] = {
            "n": n,
            "precision": right / predicted if predicted else 0.0,
            "recall": right / n if n else 0.0,
            "f1": 2 * right / (n + predicted) if n + predicted else 0.0,
        }
    return rows
