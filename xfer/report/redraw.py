"""The run card of a run that has finished, drawn anew from what the run left on disk."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import CombinationError, XferError, printable
from xfer.core.files import file_sha256, read_json, read_text
from xfer.core.live_line import working
from xfer.core.log import log
from xfer.core.run_status import amended
from xfer.core.types import InputSpec, Plain, Predictions, Samples
from xfer.data.image import ImagesAt
from xfer.evaluation.metrics import FEW
from xfer.evaluation.multilabel_predictions import read_label_table
from xfer.evaluation.out_of_fold import TABLE
from xfer.evaluation.table_file import cell
from xfer.evaluation.task import Multilabel, Single
from xfer.report.heat import Heat, heat_of
from xfer.report.page import render
from xfer.report.write import Shown, class_scores, of_answers
from xfer.training.calibrate import before_and_after

if TYPE_CHECKING:
    from xfer.config.specs import Specs

_LEAST = 1e-7  # what six decimals leave open


def redraw(specs: Specs, folder: Path) -> Plain:
    """Write ``report.html`` and ``report.md`` of the finished run in ``folder`` anew and return
    its ``result.json``, which stays as it is, as do the figures.

    Scores, curves and answers are those on disk; pictures are read from the data, heat maps
    computed from the checkpoint. What is not there any more is left out, with a remark on the card
    and in the log. Raises CombinationError for files that no run writes, and OutputError where
    another process works in the folder.
    """
    with working("report"), amended(folder) as changed:
        try:
            result: Plain = read_json(folder / "result.json")
            plan: Plain = read_json(folder / "plan.json")
            details = _details(specs, folder, result, plan)
            render(folder, result, plan, details)
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            what = f"{printable(folder)} holds what no run writes ({printable(said)})"
            raise CombinationError("stages", what, "run its command again", 39) from error
        changed += [folder / "report.html", folder / "report.md"]
    log.info(f"drawn anew: {printable(folder / 'report.html')}")
    return result


def _details(specs: Specs, folder: Path, result: Plain, plan: Plain) -> Plain:
    """What the card has beside ``result.json`` and ``plan.json``, see :func:`render`."""
    several, scores = bool(plan.get("task")), result.get("scores") or {}
    details: Plain = {
        "history": history(folder / "metrics.csv"),
        "exports": _if_there(folder / "export" / "parity.json", result.get("export") or []),
        "load": _if_there(folder / "load_report.json", {}),
    }
    split = next((name for name in ("val", "test") if name in scores), "cv")
    table = folder / (TABLE if split == "cv" else f"predictions_{split}.csv")
    if not table.exists():
        return details | class_scores(scores)
    classes, spec = tuple(plan["classes"]), InputSpec.from_plain(plan["input"])
    answers = answers_of(table, classes, several)
    samples, remarks = _samples(specs, plan, "train" if split == "cv" else split, answers)
    heat = pair = None
    if split != "cv":
        # As the card of the fit has it: what chose the thresholds fitted the calibration as well.
        calibration = result.get("calibration") or {}
        chose = bool(scores[split].get("used_for_selection"))
        chose = calibration.get("fitted_on") == "val" if several else chose
        pair = before_and_after(calibration, answers, split == "val" and chose, specs.seed)
        if not several and len(samples.images) and specs.report_maps:
            heat = _heat(specs, folder, result, answers, samples, spec)
    # Of many classes the table has the first five probabilities alone.
    shown = Shown(split, samples, answers, table.name, several or len(classes) <= FEW)
    details |= of_answers(scores, shown, spec, pair, heat)
    for line in remarks:
        log.warning(line)
    what = "probabilities" if several else "confidences"
    anew = f"Drawn anew from what was on disk; {what} are those of {table.name}."
    return details | {"notes": [*details["notes"], anew, *remarks]}


def _if_there(path: Path, other: object) -> object:
    return read_json(path) if path.exists() else other


def history(path: Path) -> list[Plain]:
    """The rows of ``metrics.csv`` as numbers, ``None`` where a cell is empty; none without the
    file. Raises ValueError for what is no number."""
    if not path.exists():
        return []
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    whole = ("epoch", "step")
    return [
        {k: (int(float(v)) if k in whole else float(v)) if v else None for k, v in row.items()}
        for row in rows
    ]


def answers_of(path: Path, classes: tuple[str, ...], several: bool = False) -> Predictions:
    """The answers that ``predictions_<split>.csv`` has, as the logarithms of its probabilities, or
    with ``several`` labels an image of their odds; of several repeats of a cross-validation those
    of the first.

    Above so many classes that it has the first five alone, the others share what is left. The
    largest is that of the class in ``prediction`` also where six decimals make two alike. Raises
    KeyError and ValueError for a table of other classes.
    """
    every = csv.DictReader(io.StringIO(read_text(path), newline=""))
    rows = [row for row in every if row.get("repeat", "0") == "0"]
    if several:
        return read_label_table(rows, classes)
    at = {cell(name): i for i, name in enumerate(classes)}
    shares = np.full((len(rows), len(classes)), _LEAST)
    for row, share in zip(rows, shares, strict=True):
        if len(classes) <= FEW:
            share[:] = [float(row[f"p_{name}"]) for name in at]
        else:
            top = {row[f"top{i}"]: float(row[f"confidence{i}"]) for i in range(2, 6)}
            top[row["prediction"]] = float(row["confidence"])
            share[:] = max(0.0, 1 - sum(top.values())) / (len(classes) - len(top))
            share[[at[name] for name in top]] = list(top.values())
        chosen = at[row["prediction"]]
        share[chosen] = max(share[chosen], share.max() + _LEAST)
    logits = np.log(np.maximum(shares, _LEAST)).astype(np.float32)
    labels = np.array([at[row["label"]] for row in rows], np.int64)
    views = int(rows[0].get("views") or 1) if rows else 1
    return Predictions(tuple(row["path"] for row in rows), logits, labels, classes, views)


def _samples(
    specs: Specs, plan: Plain, split: str, answers: Predictions
) -> tuple[Samples, list[str]]:
    """The images that were answered, in the order of the table, and remarks; no images where they
    are not all there any more."""
    none = Samples(answers.names, answers.labels, (), "")  # type: ignore[arg-type]
    data, known = specs.data, plan["splits"].get(split) or {}
    if data is None:
        return none, []
    if hasattr(data, "range") and plan["input"].get("range"):
        data = replace(data, range=tuple(plan["input"]["range"]))
    try:
        task, training = Multilabel() if plan.get("task") else Single(), "train" in plan["splits"]
        learned = () if training else tuple(plan["classes"])
        found = task.read(data, training, learned).splits.get(split)
    except XferError as error:
        return none, [f"There are no pictures of mistakes: {error.where}: {error.what}."]
    places = {cell(name): i for i, name in enumerate(found.names)} if found else {}
    gone = [name for name in answers.names if name not in places]
    if found is None or gone:
        are = "is" if len(gone) == 1 else "are"
        what = f"{len(gone)} of {len(answers.names)} images {are} not there any more"
        return none, [f"There are no pictures of mistakes: {what}."]
    changed = found.sha256 != known.get("sha256")
    notes = [f"The {split} images have changed since the run; the pictures are those of now."]
    images = ImagesAt(found.images, [places[name] for name in answers.names])
    return replace(none, images=images), notes if changed else []


def _heat(
    specs: Specs,
    folder: Path,
    result: Plain,
    answers: Predictions,
    samples: Samples,
    spec: InputSpec,
) -> Heat:
    """Heat maps of the network that was scored, where its checkpoint is as it was."""
    scored = result.get("checkpoint") or {}
    path = folder / str(scored.get("path"))
    if not path.is_file() or file_sha256(path) != scored.get("sha256"):
        return Heat("There are no heat maps: the checkpoint that was scored is not there any more.")
    from xfer.models.restore import open_checkpoint

    net = open_checkpoint(path, specs.make)[0]
    return heat_of(net, answers, samples, spec, specs.report_maps)
