"""What a run card says, as plain sections of text that both templates lay out.

Any value may be ``None`` or absent: it is shown as a dash or left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xfer.core.types import Plain
from xfer.report import panels, tables
from xfer.report import sections as facts
from xfer.report.certificate_section import promised_lines
from xfer.report.fold_section import explained, fold_tables, lead
from xfer.report.format import number, strength, words
from xfer.report.image_tiles import Shot
from xfer.report.soup_section import soup_lines, soup_table, soup_text
from xfer.report.svg import Chart
from xfer.report.teacher_section import teacher_tables, teacher_text

ALTS = {
    "curves": "Curves of the loss and of the metric that chose the best epoch.",
    "confusion_matrix": "Table of true classes against predicted ones, coloured by share.",
    "confused_pairs": "Bars: how often one class was taken for another, the most frequent first.",
    "prediction_grid": "Images with the predicted class above each, wrong ones framed in red.",
    "most_wrong": "The most confident mistakes, with true and predicted class above each.",
    "batch_grid": "Training images in rows of eight, with their class above each.",
}
CAPTIONS = {
    "curves": "Loss, the metric that chose the best epoch, and the learning rate, with a dashed "
    "line at the best epoch; or, of a head that was solved, loss and accuracy over the strength of "
    "the penalty, with a dashed line at the one that held-out training images chose.",
    "confusion_matrix": "Rows are true classes, columns predicted ones. The numbers count images; "
    "the colour is the share of the row, on a square-root scale.",
    "confused_pairs": "The classes most often taken for another.",
    "prediction_grid": "What the scored weights predict: a blue title is right, a red title and "
    "frame wrong.",
    "most_wrong": "The most confident mistakes: the true class in black, the predicted one and "
    "its confidence in red.",
    "batch_grid": "A batch as the network is trained on it, after augmentation, in true colours.",
}


@dataclass(frozen=True)
class Section:
    """One part of the card; ``figures`` are names of files below ``figures/``.

    Where there are ``charts`` or ``shots``, the page shows these in their place. ``folded``: the
    page shows the title alone until it is opened. ``others`` are right answers to compare the
    mistakes in ``shots`` with, or answers of which nobody knows whether they are right.
    """

    title: str
    text: tuple[str, ...] = ()
    facts: facts.Facts = ()
    tables: tuple[tables.Table, ...] = ()
    figures: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    shots: tuple[Shot, ...] = ()
    others: tuple[Shot, ...] = ()
    folded: bool = False

    @property
    def says_anything(self) -> bool:
        """Whether there is anything below its title."""
        return bool(self.text or self.facts or self.tables or self.figures or self.charts)


def data_name(result: Plain, plan: Plain) -> str:
    """What the images are called: their folder or file, else the kind of ``data``, else the run."""
    data = (plan.get("config") or {}).get("data") or {}
    for key in ("root", "file"):
        if isinstance(data.get(key), str) and data[key]:
            path = Path(data[key])
            return path.stem if key == "file" else path.name or path.resolve().name
    run = result.get("experiment") or plan.get("experiment") or "run"
    return str(data.get("_target_") or run).rpartition(".")[2].lower() if data else str(run)


def about(result: Plain, plan: Plain) -> str:
    """The line below the title: the experiment, and the network."""
    backbone = plan.get("backbone") or {}
    network = backbone.get("name") or (words(backbone) if backbone else "")
    names = [result.get("experiment") or plan.get("experiment"), network]
    return ", ".join(str(name) for name in names if name)


def verdict(result: Plain) -> list[str]:
    """The card in a few lines: each score with its interval, test first, and the best epoch."""
    scores = result.get("scores") or {}
    lines = [lead(result["cv"])] if result.get("cv") else []
    fitted_on = (result.get("calibration") or {}).get("fitted_on")
    chose = "choosing the members" if result.get("soup") else "selecting the best epoch"
    uses = {split: "calibrating the network" if split == fitted_on else chose for split in scores}
    lines += [_score(s, scores[s], uses[s]) for s in sorted(scores)]  # test before val
    origins = {s["thresholds_chosen_on"] for s in scores.values() if "map" in s}
    lines += sorted(f"Thresholds chosen on {_CHOSEN_ON[origin]}" for origin in origins)
    if not lines:
        lines = ["No split was scored in this run"]
    tta = result.get("tta") or {}
    if scores and tta.get("averaged"):
        views = f"{tta['views']} views of each image (tta={tta['kind']})"
        lines.append(f"Answers are the mean {tta['averaged']} over {views}")
    lines += [*_origin(result), *_choice(result.get("chosen"))]
    if soup := result.get("soup"):
        lines = [*reversed(soup_lines(soup)), *lines]
    if result.get("status") != "finished":
        lines.append(f"Status: {result.get('status') or 'unknown'}")
    return lines


def _origin(result: Plain) -> list[str]:
    """How the weights came about."""
    best, cv = result.get("best") or {}, result.get("cv") or {}
    if (solved := result.get("solved")) and cv:
        how = "chosen by folds inside its images" if solved["strengths"] > 1 else "as given"
        return [f"The final head is the exact solution at l2 {strength(solved['l2'])}, {how}"]
    if solved and not solved["n"]:
        alone = "no training image was held out, since each is alone in its class"
        return [f"The head is the exact solution at l2 {strength(solved['l2'])}, as given; {alone}"]
    if solved:
        return [
            f"The head is the exact solution at l2 {strength(solved['l2'])}; held out in "
            f"{solved['folds']} folds, {solved['n']:,} training images: "
            f"{_held_out(solved)}, loss {solved['cv_loss']:.3f}"
        ]
    if best and cv.get("final_epochs"):
        epochs = "1 epoch" if best.get("epoch") == 1 else f"{best.get('epoch')} epochs"
        return [f"Trained for {epochs}; no image chose the epoch"]
    if best.get("step") == 0:
        loss = best.get("value")
        left = "" if loss is None else f", loss {number(loss)} each left out"
        return [f"Nothing was trained: the head holds training images{left}"]
    if best:
        return [
            f"Best epoch {number(best.get('epoch'))}, step {number(best.get('step'))}, "
            f"by {best.get('metric')} {number(best.get('value'))}"
        ]
    return [] if result.get("soup") else ["This run did not train"]


def _choice(chosen: Plain | None) -> list[str]:
    """What the choice is worth that this model won."""
    if not chosen:
        return []
    key, title = ("map", "mAP") if "cv_map" in chosen else ("acc", "accuracy")
    said = (
        f"Chosen by xfer choose among {chosen['candidates']} candidates; its cross-validated "
        f"{title} {chosen[f'cv_{key}']:.3f} is flattered by that"
    )
    if not (worth := chosen["worth"]):
        return [f"{said}, by how much was not known when it was made"]
    honest = f"{worth[key]:.3f}"
    if worth["ci95"]:
        honest += " (95 % interval {:.3f} to {:.3f})".format(*worth["ci95"])
    return [f"{said}: the choice is worth {honest} on images that chose nothing"]


def _score(split: str, score: Plain, use: str) -> str:
    if "map" in score:
        return _label_score(split, score)
    if score.get("acc") is None or not score.get("n"):
        return f"{split} accuracy not measured"
    counts = f"{round(score['acc'] * score['n']):,} of {score['n']:,}"
    if score.get("acc_ci95"):
        low, high = score["acc_ci95"]
        counts += f"; 95 % interval {low:.3f} to {high:.3f}"
    note = f", also used for {use}" if score.get("used_for_selection") else ""
    return f"{split} accuracy {score['acc']:.3f} ({counts}){note}"


def _held_out(solved: Plain) -> str:
    if "cv_map" in solved:
        return f"mAP {number(solved['cv_map'])}"
    return f"accuracy {solved['cv_acc']:.3f}"


_CHOSEN_ON = {
    "cv": "training images, each answered by a fit that had not seen it",
    "val": "val, so that its F1 and exact matches are too good",
    "given": "nothing: they were given",
}


def _label_score(split: str, score: Plain) -> str:
    """The scores of several labels an image."""
    low, high = score["acc_ci95"]
    match = f"{round(score['acc'] * score['n']):,} of {score['n']:,}"
    used = ", also used for selection" if score.get("used_for_selection") else ""
    return (
        f"{split} mAP {number(score['map'])}, macro F1 {number(score['macro_f1'])}; every label "
        f"right on {match} images (95 % interval {low:.3f} to {high:.3f}){used}"
    )


def sections(result: Plain, plan: Plain, details: Plain, drawn: Collection[str]) -> list[Section]:
    """All parts of the card in reading order; those without content are left out.

    ``drawn`` names the figures that exist. Those that no part asks for come last.
    """
    remarks = plan.get("remarks") or []
    warnings = [line for line in result.get("warnings") or [] if line not in remarks]
    soup = result.get("soup")
    parts = [
        Section("Warnings", text=tuple(map(str, warnings))),
        Section("Scores", tables=tables.scores(result.get("scores") or {})),
        *_cross_validation(result, plan),
        *([Section("Soup", soup_text(soup), tables=soup_table(soup))] if soup else []),
        Section("Teacher", teacher_text(result), tables=teacher_tables(result)),
        *_seen(result, plan, details, drawn),
        *_folded(result, plan, details, drawn),
    ]
    return [part for part in parts if part.says_anything]


def _cross_validation(result: Plain, plan: Plain) -> list[Section]:
    if not result.get("cv"):
        return []
    text, parts = explained(result, plan), fold_tables(result["cv"])
    return [Section("Cross-validation", text, tables=parts)]


def _seen(result: Plain, plan: Plain, details: Plain, drawn: Collection[str]) -> list[Section]:
    """What people look for first: the curves, and what the network gets wrong."""
    charts: Mapping[str, tuple[Chart, ...]] = details.get("charts") or {}
    wrong, shots = details.get("wrong"), tuple(details.get("shots") or ())
    mistakes = []
    for split, (count, images) in (details.get("mistakes") or {}).items():
        were = f"{count:,} of {images:,} images were" if count else "no image was"
        mistakes.append(f"{split}: {were} taken for another class")
    said: tuple[str, ...] = ("No image was classified wrongly.",) if wrong == [] else ()
    if shots:
        said = (_OPENED,)
        if len(wrong or []) > len(shots):
            rest = f"The first {len(shots):,} of {len(wrong or []):,}; {details['table']} has all."
            said += (rest,)
    of_labels = details.get("of_labels") or ""
    said += tuple(filter(None, [details.get("heat"), of_labels if wrong else ""]))
    history = details.get("history") or []
    return [
        Section(
            "Training",
            facts=facts.steps(plan, [] if result.get("status") == "running" else history),
            tables=tables.history(history),
            figures=_here(drawn, "curves"),
            charts=curves(result, history),
        ),
        Section(
            "Confusion",
            tuple(mistakes),
            tables=tables.pairs(details.get("pairs") or []),
            figures=_here(drawn, "confusion_matrix", "confused_pairs"),
            charts=charts.get("confusion", ()),
        ),
        Section(
            "Mistakes",
            said,
            tables=tables.wrong(wrong or [], "labels" if of_labels else "class"),
            figures=_here(drawn, "most_wrong"),
            shots=shots,
            others=tuple(details.get("right") or ()),
        ),
        Section(
            "Confidence",
            facts=facts.calibration(result),
            tables=tables.calibrated(
                result.get("calibration") or {}, details.get("per_class") or {}
            ),
            charts=charts.get("confidence", ()),
        ),
        Section("Certificate", text=tuple(promised_lines(result, several="task" in plan))),
        Section(
            "Classes",
            tables=tables.per_class(details.get("per_class") or {}),
            charts=charts.get("classes", ()),
        ),
    ]


_OPENED = (
    "The most confident first, as the network saw them. Press a picture to enlarge it; with the "
    "keyboard, Enter opens and closes it."
)


def curves(result: Plain, history: Sequence[Plain]) -> tuple[Chart, ...]:
    """The curves of a fit, by epoch or, of a head that was solved, by strength."""
    best = result.get("best") or {}
    if history and "l2" in history[0] and best:
        return tuple(panels.strengths(history, best["epoch"]))
    return tuple(panels.curves(history, best.get("epoch"), best.get("metric") or "val_acc"))


def _here(drawn: Collection[str], *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in drawn)


def _folded(result: Plain, plan: Plain, details: Plain, drawn: Collection[str]) -> list[Section]:
    """What is looked up when it is asked for: pictures of the data, weights, proofs, time."""
    files = details.get("exports") or result.get("export") or []
    exported = tables.exported(files, several="task" in plan)
    nothing = () if exported or result.get("status") == "running" else ("Nothing was exported.",)
    remarks = [*(plan.get("remarks") or []), *(details.get("notes") or [])]
    more = tuple(name for name in drawn if name not in CAPTIONS)
    parts = [
        Section("Predictions", figures=_here(drawn, "prediction_grid")),
        Section("Training batch", figures=_here(drawn, "batch_grid")),
        Section(
            "Weights",
            facts=facts.loaded(result, plan) + facts.frozen(result, plan),
            tables=tables.loaded(details.get("load") or {}),
        ),
        Section("Data", facts=facts.data(plan), tables=tables.splits(plan.get("splits") or {})),
        Section("Exported files", nothing, (), exported),
        Section(
            "Time and device",
            facts=facts.timing(result.get("timing") or {}, bool(result.get("solved")))
            + facts.place(result),
        ),
        Section("Remarks", text=tuple(map(str, remarks))),
        Section("More figures", figures=more),
    ]
    return [replace(part, folded=True) for part in parts]
