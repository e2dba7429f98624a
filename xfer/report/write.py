"""The last stage: figures, run card and ``result.json`` from what the other stages left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xfer.core.files import write_json
from xfer.core.text_columns import Made
from xfer.core.types import InputSpec, Plain, Predictions, Samples
from xfer.data.preprocess import fit_to_size, restore
from xfer.evaluation.calibration import ece_by_chance
from xfer.evaluation.out_of_fold import TABLE
from xfer.report import charts, confusion, grids, panels
from xfer.report.confidence import bins, recall_curves
from xfer.report.heat import heat_of
from xfer.report.image_tiles import MOST, ROOM, Shot, shots, words_of_labels
from xfer.report.multilabel_answers import label_details, stages_of
from xfer.report.page import render
from xfer.report.plot import Figures
from xfer.report.result import outcome
from xfer.report.teacher_section import beside_teacher
from xfer.training.calibrate import before_and_after

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from xfer.core.types import Dataset
    from xfer.report.grids import Picture
    from xfer.report.heat import Heat
    from xfer.report.inputs import Work
    from xfer.report.svg import Chart
    from xfer.training.calibrate import BeforeAndAfter
    from xfer.training.fit_result import FitResult

_TIMES = ("epoch_s", "step_ms")


def finish(work: Work, net: nn.Module | None = None) -> Plain:
    """Write ``result.json``; with the stage ``report`` also the figures and the run card, which
    has heat maps where the network that was evaluated is given. They stay in ``work``."""
    work.taught = work.taught or beside_teacher(work)
    result = outcome(work)
    if "report" in work.plan.specs.stages:
        dataset, stored = work.plan.dataset, work.plan.specs.features.store()
        figures = Figures(work.folder / "figures", stored)
        if work.fitted and dataset:
            _draw_fit(work, work.fitted, dataset, figures)
        shown = _shown(work, dataset) if dataset else None
        if shown:
            _draw_answers(work, shown.samples, shown.answers, figures)
            most, spec = work.plan.specs.report_maps, work.plan.card.input
            # The answers of folds are those of other networks.
            drawn = shown.name in work.predictions and not shown.answers.task
            if net is not None and most and drawn:
                work.heat = heat_of(net, shown.answers, shown.samples, spec, most, stored)
        render(work.folder, result, work.plan.facts, _details(work, result, shown))
    write_json(work.folder / "result.json", result)
    return result


class Shown(NamedTuple):
    """The answers that mistakes and confusion are drawn from: of a split, or of the folds (``cv``),
    to these ``samples``, in the file ``table``; the ``whole`` of their probabilities is known."""

    name: str
    samples: Samples
    answers: Predictions
    table: str
    whole: bool = True

    @property
    def note(self) -> str:
        """What is said of them on the card."""
        where, then = f"drawn from the {self.name} images", ","
        if self.name == "cv":
            where = "those of the folds, in the first repeat: of fits that had not seen the image"
            where, then = f"{where}, and not of the final model", ";"
        if self.answers.task:
            return f"Predictions and classes are {where}{then} and of known labels alone."
        return f"Predictions, mistakes and confusion are {where}."


def _shown(work: Work, dataset: Dataset) -> Shown | None:
    """The answers on val or test; of a cross-validation without either those of its folds."""
    for name in ("val", "test"):
        if name in work.predictions:
            table = f"predictions_{name}.csv"
            return Shown(name, dataset.splits[name], work.predictions[name], table)
    held_out = work.fitted.cv if work.fitted else None
    if held_out is None:
        return None
    return Shown("cv", dataset.splits["train"], held_out.first, TABLE)


def _draw_fit(work: Work, fitted: FitResult, dataset: Dataset, figures: Figures) -> None:
    _draw_first_batch(work, fitted, dataset.splits["train"], figures)
    best, rows = fitted.best, fitted.rows
    if fitted.solved:
        untimed = [{k: v for k, v in row.items() if k not in _TIMES} for row in rows]
        shows: Plain = {"rows": untimed, "best": best["epoch"]}
        figures.draw("curves.png", shows, partial(charts.strengths, rows, best["epoch"]))
    else:
        curves = partial(charts.curves, rows, best["epoch"], best["metric"])
        figures.draw("curves.png", None, curves)


def _draw_first_batch(work: Work, fitted: FitResult, samples: Samples, figures: Figures) -> None:
    """The first training batch as the network saw it, in true colours."""
    from xfer.data.loader import eval_images, train_images
    from xfer.data.sampler import EpochSampler

    specs, card = work.plan.specs, work.plan.card
    if specs.data is None:
        return
    augmented = not fitted.features["cached"] or fitted.features["augmented"]
    if augmented:
        images = train_images(samples, card.input, specs.augment)
    else:
        images = eval_images(samples, card.input)
    order = EpochSampler(len(samples), specs.data.batch_size, specs.seed)
    order.labels = specs.data.balance(samples.labels)
    keys = next(iter(order))[: grids.LIMIT]
    titles = [specs.task.title(samples.labels[key[1]], card.classes) for key in keys]

    def build() -> Figure:
        pictures = [restore(images[key][0], card.input) for key in keys]
        return grids.batch(pictures, titles)

    shown = [key[1] for key in keys]
    # What an augmentation makes of an image is known to its own code alone.
    shows = None if augmented else _of_pictures(samples, shown, card.input, {"titles": titles})
    figures.draw("batch_grid.png", shows, build)


def _of_pictures(
    samples: Samples, shown: Sequence[int], spec: InputSpec, texts: Plain
) -> Plain | None:
    """What a grid of the images at the positions ``shown`` depends on; ``None`` for images that
    nobody has a hash of."""
    facts: Plain = {"split": samples.sha256, "shown": [*shown], "input": spec.to_plain(), **texts}
    return facts if samples.sha256 else None


def _draw_answers(work: Work, samples: Samples, answers: Predictions, figures: Figures) -> None:
    from xfer.evaluation.evaluate import most_wrong

    names, n, spec = answers.classes, len(answers.names), work.plan.card.input
    chosen, confidence = answers.logits.argmax(axis=1), answers.confidence

    def pictures(positions: list[int]) -> list[Picture]:
        return [np.asarray(fit_to_size(samples.images[i], spec)) for i in positions]

    shown = min(n, grids.LIMIT)
    spread = [i * n // shown for i in range(shown)]  # over the split, so that each class is seen
    if answers.task:
        right = ~((samples.labels >= 0) & (answers.said != (samples.labels == 1))).any(axis=1)
        given: Plain = {"predicted": [words_of_labels(answers, i)[1] for i in spread]}
    else:
        right = chosen == samples.labels
        given = {"predicted": [names[chosen[i]] for i in spread]}
        given["confidence"] = confidence[spread].tolist()
    given["right"] = right[spread].tolist()
    figures.draw(
        "prediction_grid.png",
        _of_pictures(samples, spread, spec, given),
        lambda: grids.predictions(pictures(spread), **given),
    )
    if answers.task:
        return  # classes that do not exclude each other are not taken for another
    wrong = most_wrong(answers)[: grids.LIMIT].tolist()
    titles = [(names[samples.labels[i]], names[chosen[i]], float(confidence[i])) for i in wrong]
    figures.draw(
        "most_wrong.png",
        _of_pictures(samples, wrong, spec, {"titles": titles}),
        lambda: grids.mistakes(pictures(wrong), titles),
    )
    counts, classes = confusion.condensed(samples.labels, chosen, names)
    shows: Plain = {"counts": counts.tolist(), "classes": classes, "of": len(names)}
    figures.draw("confusion_matrix.png", shows, partial(confusion.matrix, counts, classes))
    bars = partial(confusion.bars, counts, classes, len(names))
    figures.draw("confused_pairs.png", shows, bars)


def _details(work: Work, result: Plain, shown: Shown | None) -> Plain:
    """What the card has beside ``result.json`` and ``plan.json``; ``shown`` is what is drawn."""
    details: Plain = {
        "history": work.fitted.rows if work.fitted else [],
        "exports": [file.__dict__ for file in work.exports],
        "load": work.plan.load,
    }
    if shown is None or shown.answers.labels is None:
        return details | class_scores(result["scores"])
    pair = None
    if shown.name in work.predictions:  # no fit of the folds is calibrated
        card = work.card
        fitted_on_them = shown.samples.sha256 == card.splits.get("val")
        seed = work.plan.specs.seed
        pair = before_and_after(card.calibration, shown.answers, fitted_on_them, seed)
    spec = work.plan.card.input
    return details | of_answers(result["scores"], shown, spec, pair, work.heat)


def class_scores(scores: Plain) -> Plain:
    """Of scored splits what the card shows by class, and how many mistakes there are of how many
    images: ``per_class`` and ``mistakes``."""
    return {
        "per_class": {name: score.get("per_class") or {} for name, score in scores.items()},
        "mistakes": {
            name: (score["n"] - round(score["acc"] * score["n"]), score["n"])
            for name, score in scores.items()
            if "map" not in score
        },
    }


def of_answers(
    scores: Plain, shown: Shown, spec: InputSpec, pair: BeforeAndAfter | None, heat: Heat | None
) -> Plain:
    """The same with what the answers that are ``shown`` show, to images taken as ``spec`` says, and
    notes on them. ``pair`` are those before and after the network was calibrated."""
    from xfer.evaluation.evaluate import score_of

    name, answers = shown.name, shown.answers
    if name not in scores and answers.saying is None:  # else the classes stand with the folds
        score = score_of(answers, used_for_selection=False).to_plain()
        scores = {**scores, name: score}
    details = class_scores(scores) | {"table": shown.table}
    if answers.task:
        return details | label_details(answers, shown.samples, spec, shown.note, pair)
    details |= answered(answers, shown.samples, spec, pair, heat, shown.whole)
    areas = details["areas"]
    details["per_class"][name] = {
        kind: row | ({"ap": areas[kind]} if kind in areas else {})
        for kind, row in details["per_class"][name].items()
    }
    return details | {"notes": [shown.note]}


def answered(
    answers: Predictions,
    samples: Samples,
    spec: InputSpec,
    pair: BeforeAndAfter | None = None,
    heat: Heat | None = None,
    whole: bool = True,
) -> Plain:
    """What a network's ``answers`` to ``samples`` with labels show: ``wrong`` (rows of path, label,
    prediction, confidence), ``shots`` of them, ``right`` ones that have a heat map too, ``heat``
    (how those are made), ``pairs``, ``charts``, and by class the ``areas`` below precision over
    recall, where the ``whole`` of the probabilities is known. ``pair`` are the answers before and
    after the network was calibrated."""
    from xfer.evaluation.evaluate import most_wrong

    names, labels, confidence = answers.classes, answers.labels, answers.confidence
    if labels is None:
        raise ValueError("answers without labels are neither right nor wrong")
    chosen, positions = answers.logits.argmax(axis=1), most_wrong(answers)

    def row(number: int) -> Plain:
        i = positions[number]
        return {
            "path": answers.names[i],
            "label": names[labels[i]],
            "prediction": names[chosen[i]],
            "confidence": float(confidence[i]),
        }

    counts, classes = confusion.condensed(labels, chosen, names)
    totals, taken = counts.sum(axis=1), confusion.pairs(counts, len(names))
    pairs = [
        {"label": classes[i], "prediction": classes[j], "count": count, "of": int(totals[i])}
        for i, j, count in taken
    ]
    curves = recall_curves(answers) if whole else []
    drawn = panels.recall(curves)
    mistakes = shots(samples, answers, positions[:MOST].tolist(), spec, heat)
    # A quarter of the room at least, and what the mistakes leave.
    room = max(ROOM // 4, ROOM - _characters(mistakes))
    right = shots(samples, answers, heat.right if heat else (), spec, heat, room)
    while _characters(mistakes) + _characters(right) > ROOM:
        mistakes.pop()
    said = heat.said if heat else ""
    seen = sum(bool(shot.heat) for shot in (*mistakes, *right))
    if heat and seen < len(heat.maps):
        said += f" There is room for {seen} of these."
    return {
        "wrong": Made(len(positions), row),
        "shots": mistakes,
        "right": right,
        "heat": said,
        "pairs": pairs,
        "charts": {
            "confusion": (panels.matrix(counts, classes),),
            "confidence": _reliabilities(answers, pair),
            "classes": (drawn,) if drawn else (),
        },
        "areas": {curve.name: curve.area for curve in curves},
    }


def _characters(shown: Sequence[Shot]) -> int:
    return sum(len(shot.uri) + len(shot.heat) for shot in shown)


def _reliabilities(answers: Predictions, pair: BeforeAndAfter | None) -> tuple[Chart, ...]:
    """The reliability diagram, of a calibrated network that of before as well, and how many images
    have which confidence."""
    drawn = []
    for name, given, note in stages_of(answers, pair, ""):
        confidence = given.confidence
        counted = bins(confidence, given.logits.argmax(axis=1) == given.labels)
        drawn.append(panels.reliability(counted, ece_by_chance(confidence), name, note))
    return (*drawn, panels.spread(counted))
