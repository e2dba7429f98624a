"""Run cards of made-up answers, with the names that are hard to lay out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from xfer.core.types import InputSpec, Plain, Predictions, Samples
from xfer.evaluation.evaluate import most_wrong, score_of
from xfer.evaluation.multilabel_metrics import label_score
from xfer.report import confusion, grids
from xfer.report.heat import Heat
from xfer.report.multilabel_answers import label_details
from xfer.report.page import render
from xfer.report.plot import draw
from xfer.report.write import answered

NAMES = ("W" * 255, "שלום עולם", "<b>bold</b>", '" onerror="alert(1)', "كلب", "狼 犬", "</script>")


class Pictures:
    """Images of noise, the same at every look."""

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Image.Image:
        rng = np.random.default_rng(index)
        return Image.fromarray(rng.integers(0, 256, (self.side, self.side, 3), np.uint8))


def answers(count: int, classes: Sequence[str]) -> Predictions:
    """Answers of which about seven in ten are right, more so where they are confident."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(classes), count)
    logits = rng.normal(0, 1.7, (count, len(classes))).astype(np.float32)
    logits[np.arange(count), labels] += rng.choice([0.3, 2, 6], count).astype(np.float32)
    names = tuple(f"val/{i % 7}/some_longer_file_name_{i:05}.jpg" for i in range(count))
    return Predictions(names, logits, labels, tuple(classes))


def write_label_card(folder: Path, known: Plain, said: Plain, classes: Sequence[str]) -> Path:
    """The card of images with several labels: by file the labels that are ``known`` (1, 0 and -1)
    and the probabilities of what is ``said``, from 0.5 on."""
    labels, shares = (np.array(list(rows.values())) for rows in (known, said))
    logits, task = np.log(shares / (1 - shares)).astype(np.float32), {"thresholds": [0.5] * 3}
    given = Predictions(tuple(known), logits, labels, tuple(classes), task=task)
    samples = Samples(given.names, labels, Pictures(len(known), 32), "")
    details = label_details(
        given, samples, InputSpec((32, 32), 32, "bilinear", (0.5,) * 3, (0.5,) * 3), ""
    )
    score = label_score(logits, labels, tuple(classes), np.full(3, 0.5), "given", False)
    details["per_class"] = {"val": score.per_class}
    result = {"experiment": "made_up", "status": "finished", "scores": {}, "command": "xfer"}
    render(folder, result, {"classes": list(classes)}, details)
    return folder / "report.html"


def noise(given: Predictions, maps: int) -> Heat:
    """Maps of noise of so many mistakes and right answers, the first ones."""
    right = given.logits.argmax(axis=1) == given.labels
    shown = [*most_wrong(given)[:maps].tolist(), *np.flatnonzero(right)[:maps].tolist()]
    rng = np.random.default_rng(2)
    found = {i: rng.random((13, 13), np.float32) for i in shown}
    return Heat("Heat maps of noise.", found, tuple(shown[-maps:]))


def write_card(
    folder: Path,
    count: int,
    classes: Sequence[str],
    side: int = 32,
    figures: bool = False,
    maps: int = 0,
) -> Path:
    """The card of ``count`` images; with ``figures`` also the two grids of pictures, with ``maps``
    so many mistakes and right answers with heat maps of noise."""
    given, images = answers(count, classes), Pictures(count, side)
    spec = InputSpec((side, side), side, "bilinear", (0.5,) * 3, (0.5,) * 3)
    if figures:
        shown = [np.asarray(images[i]) for i in range(grids.LIMIT)]
        draw(folder / "figures/batch_grid.png", grids.batch, shown, ["a"] * grids.LIMIT)
        right = [True] * grids.LIMIT
        draw(folder / "figures/prediction_grid.png", grids.predictions, shown, ["a"] * 24, right)
        chosen = given.logits.argmax(axis=1)
        counts, names = confusion.condensed(given.labels, chosen, given.classes)
        draw(folder / "figures/confusion_matrix.png", confusion.matrix, counts, names)
    score = score_of(given, True)
    columns = "step train_loss val_loss val_acc lr epoch_s step_ms val_macro_f1 val_auroc val_ece"
    history = [
        {"epoch": i} | {name: (i + k) / 37 for k, name in enumerate(columns.split())}
        for i in range(1, 31)
    ]
    result: Plain = {
        "experiment": "made_up",
        "status": "finished",
        "best": {"metric": "val_acc", "value": 30 / 37, "epoch": 27, "step": 270},
        "scores": {"val": score.to_plain()},
        "command": "python -m xfer data.root=/data/" + "long_folder_name/" * 8,
        "warnings": ["a warning that is longer than a line of a phone: " + "x" * 80],
    }
    plan: Plain = {"config": {"data": {"root": f"/data/{classes[0]}"}}, "classes": list(classes)}
    heat = noise(given, maps) if maps else None
    details = answered(given, Samples(given.names, given.labels, images, ""), spec, heat=heat)
    details |= {
        "table": "predictions_val.csv",
        "per_class": {"val": score.per_class},
        "mistakes": {"val": (count - round(score.acc * count), count)},
        "history": history,
        "load": {"rows": [{"key": f"layer.{i}.weight", "shape": [64, 3, 7, 7]} for i in range(60)]},
    }
    render(folder, result, plan, details)
    return folder / "report.html"
