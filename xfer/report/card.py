"""What a run card says, as plain sections of text that both templates lay out.

Any value may be ``None`` or absent: it is shown as a dash or left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from xfer.core.types import Plain
from xfer.report import sections as facts
from xfer.report import tables
from xfer.report.format import number

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
    """One part of the card; ``figures`` are names of files below ``figures/``."""

    title: str
    text: tuple[str, ...] = ()
    facts: facts.Facts = ()
    tables: tuple[tables.Table, ...] = ()
    figures: tuple[str, ...] = ()


def verdict(result: Plain) -> list[str]:
    """The card in a few lines: each score with its interval, test first, and the best epoch."""
    scores, best = result.get("scores") or {}, result.get("best")
    lines = [_score(split, scores[split]) for split in sorted(scores)]  # test before val
    if not lines:
        lines = ["No split was scored in this run"]
    tta = result.get("tta") or {}
    if scores and tta.get("averaged"):
        views = f"{tta['views']} views of each image (tta={tta['kind']})"
        lines.append(f"Answers are the mean {tta['averaged']} over {views}")
    if solved := result.get("solved"):
        lines.append(
            f"The head is the exact solution at l2 {solved['l2']:.2g}; held out in "
            f"{solved['folds']} folds, {solved['n']:,} training images: "
            f"accuracy {solved['cv_acc']:.3f}, loss {solved['cv_loss']:.3f}"
        )
    elif best:
        lines.append(
            f"Best epoch {number(best.get('epoch'))}, step {number(best.get('step'))}, "
            f"by {best.get('metric')} {number(best.get('value'))}"
        )
    else:
        lines.append("This run did not train")
    if result.get("status") != "finished":
        lines.append(f"Status: {result.get('status') or 'unknown'}")
    return lines


def _score(split: str, score: Plain) -> str:
    if score.get("acc") is None or not score.get("n"):
        return f"{split} accuracy not measured"
    counts = f"{round(score['acc'] * score['n']):,} of {score['n']:,}"
    if score.get("acc_ci95"):
        low, high = score["acc_ci95"]
        counts += f"; 95 % interval {low:.3f} to {high:.3f}"
    note = ", also used for selecting the best epoch" if score.get("used_for_selection") else ""
    return f"{split} accuracy {score['acc']:.3f} ({counts}){note}"


def sections(result: Plain, plan: Plain, details: Plain, drawn: Collection[str]) -> list[Section]:
    """All parts of the card in reading order; those without content are left out.

    ``drawn`` names the figures that exist. Those that no part asks for come last.
    """

    def here(*names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in drawn)

    wrong, remarks = details.get("wrong"), plan.get("remarks") or []
    warnings = [line for line in result.get("warnings") or [] if line not in remarks]
    mistakes = []
    for split, (count, images) in (details.get("mistakes") or {}).items():
        were = f"{count:,} of {images:,} images were" if count else "no image was"
        mistakes.append(f"{split}: {were} taken for another class")
    none_wrong = ("No image was classified wrongly.",) if wrong == [] else ()
    exported = tables.exported(details.get("exports") or result.get("export") or [])
    parts = [
        Section("Warnings", text=tuple(map(str, warnings))),
        Section("Scores", tables=tables.scores(result.get("scores") or {})),
        Section(
            "Weights",
            facts=facts.loaded(result, plan) + facts.frozen(result, plan),
            tables=tables.loaded(details.get("load") or {}),
        ),
        Section("Data", facts=facts.data(plan), tables=tables.splits(plan.get("splits") or {})),
        Section(
            "Training",
            facts=facts.steps(plan),
            tables=tables.history(details.get("history") or []),
            figures=here("curves"),
        ),
        Section(
            "Confusion",
            text=tuple(mistakes),
            figures=here("confusion_matrix", "confused_pairs"),
        ),
        Section("Classes", tables=tables.per_class(details.get("per_class") or {})),
        Section("Predictions", figures=here("prediction_grid")),
        Section("Mistakes", none_wrong, (), tables.wrong(wrong or []), here("most_wrong")),
        Section("Training batch", figures=here("batch_grid")),
        Section("Exported files", () if exported else ("Nothing was exported.",), (), exported),
        Section(
            "Time and device", facts=facts.timing(result.get("timing") or {}) + facts.place(result)
        ),
        Section("Remarks", text=tuple(map(str, [*remarks, *(details.get("notes") or [])]))),
        Section("More figures", figures=tuple(name for name in drawn if name not in CAPTIONS)),
    ]
    return [p for p in parts if p.text or p.facts or p.tables or p.figures]
