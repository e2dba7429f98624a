"""The last stage: figures, run card and ``result.json`` from what the other stages left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xfer.core.files import write_json
from xfer.core.types import InputSpec, Plain, Predictions, Samples
from xfer.data.preprocess import fit_to_size, restore
from xfer.report import charts, confusion, grids, panels
from xfer.report.confidence import bins, recall_curves
from xfer.report.heat import heat_of
from xfer.report.page import render
from xfer.report.plot import draw
from xfer.report.result import outcome
from xfer.report.shots import ROOM, shots

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from xfer.core.types import Dataset
    from xfer.report.grids import Picture
    from xfer.report.heat import Heat
    from xfer.report.inputs import Work
    from xfer.training.fit_result import FitResult


def finish(work: Work, net: nn.Module | None = None) -> Plain:
    """Write ``result.json``; with the stage ``report`` also the figures and the run card, which
    has heat maps where the network that was evaluated is given. They stay in ``work``."""
    result = outcome(work)
    if "report" in work.plan.specs.stages:
        folder, dataset = work.folder / "figures", work.plan.dataset
        if work.fitted and dataset:
            _draw_fit(work, work.fitted, dataset, folder)
        split = next((name for name in ("val", "test") if name in work.predictions), None)
        if split and dataset:
            _draw_answers(work, dataset.splits[split], work.predictions[split], folder)
            if net is not None and work.plan.specs.report_maps:
                answers, most = work.predictions[split], work.plan.specs.report_maps
                spec = work.plan.card.input
                work.heat = heat_of(net, answers, dataset.splits[split], spec, most)
        render(work.folder, result, work.plan.facts, _details(work, split))
    write_json(work.folder / "result.json", result)
    return result


def _draw_fit(work: Work, fitted: FitResult, dataset: Dataset, folder: Path) -> None:
    pictures, titles = _first_batch(work, fitted, dataset.splits["train"])
    draw(folder / "batch_grid.png", grids.batch, pictures, titles)
    best, rows, path = fitted.best, fitted.rows, folder / "curves.png"
    if fitted.solved:
        draw(path, charts.strengths, rows, best["epoch"])
    else:
        draw(path, charts.curves, rows, best["epoch"], best["metric"])


def _first_batch(
    work: Work, fitted: FitResult, samples: Samples
) -> tuple[list[Picture], list[str]]:
    """The first training batch as the network saw it, in true colours."""
    from xfer.data.loader import eval_images, train_images
    from xfer.data.sampler import Order

    specs, card = work.plan.specs, work.plan.card
    if specs.data is None:
        return [], []
    if fitted.features["cached"] and not fitted.features["augmented"]:
        images = eval_images(samples, card.input)
    else:
        images = train_images(samples, card.input, specs.augment)
    order = Order(len(samples), specs.data.batch_size, specs.seed)
    order.labels = specs.data.balance(samples.labels)
    shown = [images[key] for key in next(iter(order))[: grids.LIMIT]]
    pictures = [restore(array, card.input) for array, _ in shown]
    return pictures, [card.classes[label] for _, label in shown]


def _draw_answers(work: Work, samples: Samples, answers: Predictions, folder: Path) -> None:
    from xfer.evaluation.evaluate import most_wrong

    names, n = answers.classes, len(answers.names)
    chosen, confidence = answers.logits.argmax(axis=1), answers.confidence.tolist()

    def pictures(positions: list[int]) -> list[Picture]:
        spec = work.plan.card.input
        return [np.asarray(fit_to_size(samples.images[i], spec)) for i in positions]

    shown = min(n, grids.LIMIT)
    spread = [i * n // shown for i in range(shown)]  # over the split, so that each class is seen
    draw(
        folder / "prediction_grid.png",
        grids.predictions,
        pictures(spread),
        [names[chosen[i]] for i in spread],
        [bool(chosen[i] == samples.labels[i]) for i in spread],
        [confidence[i] for i in spread],
    )
    wrong = most_wrong(answers, grids.LIMIT)
    titles = [(names[samples.labels[i]], names[chosen[i]], confidence[i]) for i in wrong]
    draw(folder / "most_wrong.png", grids.mistakes, pictures(wrong), titles)
    counts, classes = confusion.condensed(samples.labels, chosen, names)
    draw(folder / "confusion_matrix.png", confusion.matrix, counts, classes)
    draw(folder / "confused_pairs.png", confusion.bars, counts, classes, len(names))


def _details(work: Work, split: str | None) -> Plain:
    """What the card has beside ``result.json`` and ``plan.json``; ``split`` is the one drawn."""
    scores = work.scores.items()
    details: Plain = {
        "per_class": {name: score.per_class for name, score in scores},
        "mistakes": {
            name: (score.n - round(score.acc * score.n), score.n) for name, score in scores
        },
        "history": work.fitted.rows if work.fitted else [],
        "exports": [file.__dict__ for file in work.exports],
        "load": work.plan.load,
    }
    dataset, answers = work.plan.dataset, work.predictions[split] if split else None
    if answers is None or answers.labels is None or dataset is None or split is None:
        return details
    details |= answered(answers, dataset.splits[split], work.plan.card.input, work.heat)
    details["table"] = f"predictions_{split}.csv"
    areas = details["areas"]
    details["per_class"][split] = {
        name: row | ({"ap": areas[name]} if name in areas else {})
        for name, row in details["per_class"][split].items()
    }
    details["notes"] = [f"Predictions, mistakes and confusion are drawn from the {split} images."]
    return details


def answered(
    answers: Predictions, samples: Samples, spec: InputSpec, heat: Heat | None = None
) -> Plain:
    """What a network's ``answers`` to ``samples`` with labels show: ``wrong`` (rows of path, label,
    prediction, confidence), ``shots`` of them, ``right`` ones that have a heat map too, ``heat``
    (how those are made), ``pairs``, ``charts``, and by class the ``areas`` below precision over
    recall."""
    from xfer.evaluation.evaluate import most_wrong

    names, labels, confidence = answers.classes, answers.labels, answers.confidence
    if labels is None:
        raise ValueError("answers without labels are neither right nor wrong")
    chosen, positions = answers.logits.argmax(axis=1), most_wrong(answers, len(answers.names))
    wrong = [
        {
            "path": answers.names[i],
            "label": names[labels[i]],
            "prediction": names[chosen[i]],
            "confidence": float(confidence[i]),
        }
        for i in positions
    ]
    counts, classes = confusion.condensed(labels, chosen, names)
    totals, taken = counts.sum(axis=1), confusion.pairs(counts, len(names))
    pairs = [
        {"label": classes[i], "prediction": classes[j], "count": count, "of": int(totals[i])}
        for i, j, count in taken
    ]
    counted, curves = bins(confidence, chosen == labels), recall_curves(answers)
    drawn = panels.recall(curves)
    right = shots(samples, answers, heat.right if heat else (), spec, heat, ROOM // 4)
    room = ROOM - sum(len(shot.uri) + len(shot.heat) for shot in right)
    return {
        "wrong": wrong,
        "shots": shots(samples, answers, positions, spec, heat, room),
        "right": right,
        "heat": heat.said if heat else "",
        "pairs": pairs,
        "charts": {
            "confusion": (panels.matrix(counts, classes),),
            "confidence": (panels.reliability(counted), panels.spread(counted)),
            "classes": (drawn,) if drawn else (),
        },
        "areas": {curve.name: curve.area for curve in curves},
    }
