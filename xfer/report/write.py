"""The last stage: figures, run card and ``result.json`` from what the other stages left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xfer.core.files import write_json
from xfer.core.types import Plain, Predictions, Samples
from xfer.data.preprocess import fit_to_size, restore
from xfer.report import figures
from xfer.report.confusion import condensed
from xfer.report.page import render
from xfer.report.result import outcome

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from xfer.report.inputs import Work

_GRID = 24


def finish(work: Work) -> Plain:
    """Write ``result.json``; with the stage ``report`` also the figures and the run card."""
    result = outcome(work)
    if "report" in work.plan.specs.stages:
        folder = work.folder / "figures"
        if work.fitted:
            _draw_fit(work, folder)
        if split := _shown(work):
            _draw_answers(work, split, folder)
        render(work.folder, result, work.plan.facts, _details(work))
    write_json(work.folder / "result.json", result)
    return result


def _shown(work: Work) -> str | None:
    """The split whose answers are drawn: val, else test."""
    return next((name for name in ("val", "test") if name in work.predictions), None)


def _draw_fit(work: Work, folder: Path) -> None:
    fitted = work.fitted
    assert fitted is not None
    pictures, titles = _first_batch(work)
    figures.batch_grid(pictures, titles, folder / "batch_grid.png")
    best = fitted.best
    if fitted.solved:
        figures.strengths(fitted.rows, best["epoch"], folder / "curves.png")
        return
    figures.curves(fitted.rows, best["epoch"], best["metric"], folder / "curves.png")


def _first_batch(work: Work) -> tuple[list[npt.NDArray[np.uint8]], list[str]]:
    """The first training batch as the network saw it, in true colours."""
    from xfer.data.loader import eval_images, train_images
    from xfer.data.sampler import Order

    plan, specs = work.plan, work.plan.specs
    assert plan.dataset is not None and specs.data is not None
    samples, spec = plan.dataset.splits["train"], plan.card.input
    assert work.fitted is not None
    kept = work.fitted.features
    if kept["cached"] and not kept["augmented"]:
        pictures = eval_images(samples, spec)
    else:
        pictures = train_images(samples, spec, specs.augment)
    order = Order(len(samples), specs.data.batch_size, specs.seed)
    order.labels = specs.data.balance(samples.labels)
    keys = next(iter(order))[:_GRID]
    shown = [pictures[key] for key in keys]
    return [restore(a, spec) for a, _ in shown], [plan.card.classes[label] for _, label in shown]


def _draw_answers(work: Work, split: str, folder: Path) -> None:
    from xfer.evaluation.evaluate import most_wrong

    assert work.plan.dataset is not None
    samples, found = work.plan.dataset.splits[split], work.predictions[split]
    classes = found.classes
    at = _spread(found, _GRID)
    chosen, confidence = _answers(found)
    figures.prediction_grid(
        _pictures(work, samples, at),
        [classes[chosen[i]] for i in at],
        [bool(chosen[i] == samples.labels[i]) for i in at],
        folder / "prediction_grid.png",
        [confidence[i] for i in at],
    )
    wrong = most_wrong(found, _GRID)
    titles = [(classes[samples.labels[i]], classes[chosen[i]], confidence[i]) for i in wrong]
    figures.most_wrong(_pictures(work, samples, wrong), titles, folder / "most_wrong.png")
    counts, named = condensed(samples.labels, np.asarray(chosen), classes)
    figures.confusion_matrix(counts, named, folder / "confusion_matrix.png")
    figures.confused_pairs(counts, named, folder / "confused_pairs.png", len(classes))


def _spread(found: Predictions, count: int) -> list[int]:
    """Positions spread evenly over the split, so that every class is seen."""
    n = len(found.names)
    return [i * n // min(n, count) for i in range(min(n, count))]


def _answers(found: Predictions) -> tuple[list[int], list[float]]:
    return found.logits.argmax(axis=1).tolist(), found.confidence.tolist()


def _pictures(work: Work, samples: Samples, at: list[int]) -> list[npt.NDArray[np.uint8]]:
    spec = work.plan.card.input
    return [np.asarray(fit_to_size(samples.images[i], spec)) for i in at]


def _details(work: Work) -> Plain:
    from xfer.evaluation.evaluate import most_wrong

    split = _shown(work)
    details: Plain = {
        "per_class": {name: score.per_class for name, score in work.scores.items()},
        "mistakes": {
            name: (score.n - round(score.acc * score.n), score.n)
            for name, score in work.scores.items()
        },
        "history": work.fitted.rows if work.fitted else [],
        "exports": [file.__dict__ for file in work.exports],
        "load": work.plan.load,
    }
    if split:
        found = work.predictions[split]
        chosen, confidence = _answers(found)
        assert found.labels is not None
        details["wrong"] = [
            {
                "path": found.names[i],
                "label": found.classes[found.labels[i]],
                "prediction": found.classes[chosen[i]],
                "confidence": confidence[i],
            }
            for i in most_wrong(found, len(found.names))
        ]
        details["notes"] = [
            f"Predictions, mistakes and confusion are drawn from the {split} images."
        ]
    return details
