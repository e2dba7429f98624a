"""What the page of a comparison says, panel by panel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from xfer.core.errors import first_few
from xfer.core.types import Plain
from xfer.evaluation.metrics import METRICS
from xfer.evaluation.multilabel_metrics import LABEL_METRICS
from xfer.report.board import OPEN, card_of, reaches
from xfer.report.card import Section
from xfer.report.comparison.paired import Disputed, Paired, disputed, unlike
from xfer.report.comparison.read_run import RunRecord
from xfer.report.comparison.thumbnails import images_of, thumbnail
from xfer.report.format import ABSENT, number, short
from xfer.report.overlay import TONES, Line, panel
from xfer.report.svg import Chart
from xfer.report.tables import Cell, Table

_SHOWN = 50
"""Images on which runs differ that are shown one by one."""
_KEYS = 500
_WIDE = 80
_OF_THE_RESULT = ("device", "precision")
_SPLITS = ("val", "test")
_SURE = 0.05
_TEST = (
    "McNemar's exact test counts the images that one of the two got right alone. Equally good runs "
    "differ at least that much with probability p."
)
_OF_LABELS = (
    "An image is right where every known label is. The interval of the difference in mAP is that "
    "of a paired bootstrap: images are drawn with replacement, the same for both runs, {:,} times."
)
_SURE_OF_LABELS = (
    "The number behind an answer says how sure a run was of all of it: the product, over every "
    "class, of the probability of what it said, so that it is small where there are many classes."
)
_CHOSEN = (
    "A run that chose its epoch, its strength or its settings by these same images looks better on "
    "them than it is; p does not account for that."
)
_CURVES = {
    "val_loss": "validation loss",
    "val_acc": "validation accuracy",
    "val_map": "validation mAP",
    "train_loss": "training loss",
    "cv_loss": "held-out loss",
}


def shown(score: Plain) -> tuple[str, str, str]:
    """Accuracy, its interval and the loss as texts; with several labels an image mAP, the macro F1
    and the loss."""
    if "map" in score:
        return number(score["map"]), number(score.get("macro_f1")), number(score.get("loss"))
    ends = score.get("acc_ci95")
    return (
        number(score.get("acc")),
        f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ABSENT,
        number(score.get("loss")),
    )


def verdict(runs: Sequence[RunRecord], tested: Sequence[Paired]) -> list[str]:
    """The page in a few lines: which is best, and whether that is more than chance."""
    key, title = ("map", "mAP") if runs[0].several else ("acc", "accuracy")
    scored = [run for run in runs if run.scores.get("val", {}).get(key) is not None]
    lines = []
    if scored:
        scored.sort(key=lambda run: -run.scores["val"][key])
        each = ", ".join(f"{run.name} {run.scores['val'][key]:.3f}" for run in scored)
        lines.append(f"Validation {title}: {each}")
    else:
        lines.append(f"No run has a validation {title}")
    if len(tested) == 1:
        lines.append(tested[0].in_words())
        gap = tested[0].gap
        differs = gap is not None and (gap.low > 0 or gap.high < 0)
        if tested[0].p is not None and tested[0].p >= _SURE and not differs:
            lines.append("That is no evidence that either is better.")
        return lines
    known = [pair for pair in tested if pair.p is not None]
    differ = [f"{pair.one} and {pair.other}" for pair in known if (pair.p or 0.0) < _SURE]
    verb = "differs" if len(differ) == 1 else "differ"
    lines.append(
        f"{len(differ)} of {len(known)} pairs {verb} with p < {_SURE} by McNemar's exact test"
        + (f": {first_few(differ, 6)}" if differ else "")
    )
    return lines


def panels(runs: Sequence[RunRecord], tested: Sequence[Paired], folder: Path) -> list[Section]:
    """All parts in reading order, for a page in ``folder``; those without content are left out."""
    parts = [
        Section("Runs", tables=(_runs(runs, folder),)),
        *(_scores(runs, split) for split in _SPLITS if any(split in run.scores for run in runs)),
        Section("Pairs", _caveats(runs, tested), tables=(_pairs(tested),)),
        _curves(runs),
        _differing(runs),
        _keys(runs),
    ]
    return [part for part in parts if part.says_anything]


def _runs(runs: Sequence[RunRecord], folder: Path) -> Table:
    rows = []
    for run in runs:
        best = run.result.get("best") or {}
        by = "penalty's strength" if run.solved else "epoch"
        chosen = f"{by} {number(best.get('epoch'))} of {len(run.history)}"
        rows.append(
            (
                run.name,
                Cell(str(run.folder), link=card_of(run.folder, folder)),
                short(run.experiment, 60),
                chosen if run.history else "did not train",
                number(run.result.get("seed")),
            )
        )
    return Table("", ("run", "folder", "experiment", "best", "seed"), tuple(rows), 4, OPEN)


def _scores(runs: Sequence[RunRecord], split: str) -> Section:
    """One row a run, one column a measure that any of them has."""
    scores = [run.scores.get(split) or {} for run in runs]
    every = LABEL_METRICS if runs[0].several else METRICS
    metrics = [m for m in every if any(score.get(m.name) is not None for score in scores)]
    ends = reaches([s.get("acc_ci95") for s in scores], [s.get("acc") for s in scores])
    rows = []
    for run, score, reach in zip(runs, scores, ends, strict=True):
        cells: list[str | Cell] = [run.name, number(score.get("n"))]
        for metric in metrics:
            value = score.get(metric.name)
            cells.append(Cell(number(value), value))
            cells += [reach] if metric.name == "acc" else []
        rows.append((*cells, number(score.get("used_for_selection"))))
    head = ["run", "images"]
    for metric in metrics:
        head += [metric.label, *(["95 % interval"] if metric.name == "acc" else [])]
    head.append("used for selection")
    name = {"val": "Validation scores", "test": "Test scores"}[split]
    return Section(name, tables=(Table("", tuple(head), tuple(rows), 1, OPEN),))


def _caveats(runs: Sequence[RunRecord], tested: Sequence[Paired]) -> tuple[str, ...]:
    lines = [f"{pair.in_words()}." for pair in tested if pair.p is None]
    if len(lines) < len(tested):
        lines.insert(0, _TEST)
        if any(pair.gap for pair in tested):
            drawn = max(pair.gap.drawn for pair in tested if pair.gap)
            lines.insert(1, _OF_LABELS.format(drawn))
        if any(run.scores.get("val", {}).get("used_for_selection") for run in runs):
            lines.append(_CHOSEN)
    if len(tested) - len([pair for pair in tested if pair.p is None]) > 1:
        lines.append(
            "Of twenty pairs of equally good runs one has p < 0.05 by chance: with several pairs "
            "only a p far below that is evidence."
        )
    return tuple(lines)


def _pairs(tested: Sequence[Paired]) -> Table:
    rows: list[tuple[str | Cell, ...]] = []
    several = any(pair.gap for pair in tested)
    for pair in tested:
        known = pair.p is not None
        counts = (pair.images, pair.both, pair.first, pair.second, pair.neither)
        gap = (pair.first - pair.second) / pair.images if known else None
        rows.append(
            (
                f"{pair.one} and {pair.other}",
                *(number(count) if known else ABSENT for count in counts),
                Cell(ABSENT if gap is None else f"{gap:+.3f}", gap),
                Cell(ABSENT if pair.p is None else f"{pair.p:.2g}", pair.p),
                *(_map_cells(pair) if several else ()),
            )
        )
    head = ("pair", "images", "both right", "first alone", "second alone", "both wrong")
    of = ("mAP, first less second", "95 % interval") if several else ()
    title = "exact match" if several else "accuracy"
    return Table("", (*head, f"{title}, first less second", "p", *of), tuple(rows), 1, OPEN)


def _map_cells(pair: Paired) -> tuple[Cell, Cell]:
    if pair.gap is None:
        return Cell(ABSENT), Cell(ABSENT)
    reach = f"{pair.gap.low:+.3f} to {pair.gap.high:+.3f}"
    return Cell(f"{pair.gap.gap:+.3f}", pair.gap.gap), Cell(reach, pair.gap.low)


def _curves(runs: Sequence[RunRecord]) -> Section:
    trained = [run for run in runs if run.history and not run.solved]
    solved = [run for run in runs if run.solved]
    texts = []
    if solved:
        names = ", ".join(run.name for run in solved)
        texts.append(
            f"Solved, not trained step by step: {names}. The curve of a solved head is over the "
            "strength of its penalty (l2) in place of epochs, and has panels of its own."
        )
    if idle := [run.name for run in runs if not run.history]:
        texts.append(f"Without a curve, since nothing was trained: {', '.join(idle)}.")
    score = "val_map" if runs[0].several else "val_acc"
    charts = [_chart(runs, trained, key, "epoch") for key in ("val_loss", score, "train_loss")]
    charts += [_chart(runs, solved, key, "l2") for key in ("cv_loss", "val_loss", score)]
    return Section("Curves", tuple(texts), charts=tuple(chart for chart in charts if chart))


def _chart(
    runs: Sequence[RunRecord], drawn: Sequence[RunRecord], key: str, across: str
) -> Chart | None:
    order = [run.name for run in runs]
    lines = []
    for run in drawn:
        points = [(row[across], row[key]) for row in run.history if across in row and key in row]
        place = order.index(run.name)
        lines.append(Line(run.name, sorted(points), place if place < TONES else None))
    by = "by strength" if across == "l2" else "by epoch"
    return panel(f"{_CURVES[key]}, {by}", across, lines, log=across == "l2")


def _differing(runs: Sequence[RunRecord]) -> Section:
    rows = disputed(runs)
    answered = len(set.intersection(*(set(run.said) for run in runs)))
    if not rows:
        return Section("Images", (f"All runs say the same of all {answered:,} images.",))
    deciding = sum(row.decides for row in rows)
    texts = [
        f"The runs differ on {len(rows):,} of the {answered:,} images that all of them answered; "
        f"on {deciding:,} of these one is right and another wrong."
    ]
    if runs[0].several:
        texts.append(_SURE_OF_LABELS)
    if any(unlike(runs[0], run) for run in runs[1:]):
        texts.append("The runs were not measured on the same images: see the pairs.")
    if len(rows) > _SHOWN:
        texts.append(f"The first {_SHOWN} are shown, the other {len(rows) - _SHOWN:,} are not.")
    return Section("Images", tuple(texts), tables=(_images(runs, rows[:_SHOWN]),))


def _images(runs: Sequence[RunRecord], rows: Sequence[Disputed]) -> Table:
    lines: list[tuple[str | Cell, ...]] = []
    given = (images_of(run.config, run.several) for run in runs)
    roots = dict.fromkeys(images for images in given if images)
    for i, row in enumerate(rows):
        seen = next(filter(None, (thumbnail(root, row.path) for root in roots)), None)
        label = " or ".join(dict.fromkeys(said.label for said in row.said))
        cells: list[str | Cell] = [Cell(str(i + 1))]
        kind = "with the labels" if runs[0].several else "of class"
        alt = f"validation image {kind} {short(label, 80)}" if seen else ""
        cells.append(Cell(short(row.path, 120), picture=seen or Markup(), alt=alt))
        cells.append(short(label, 80))
        for said in row.said:
            mark = "✓" if said.right else "✗"
            cells.append(f"{mark} {short(said.prediction, 80)} ({said.confidence:.3f})")
        lines.append(tuple(cells))
    true = "true labels" if runs[0].several else "true class"
    head = ("no.", "file", true, *(f"{run.name} says" for run in runs))
    return Table("", head, tuple(lines), len(head), OPEN)


def _keys(runs: Sequence[RunRecord]) -> Section:
    rows = _changed(runs)
    if not rows:
        return Section("Changed keys", ("The runs have the same configuration and versions.",))
    head = ("key", *(run.name for run in runs))
    texts = ["Only what differs. A dash is a value that is null or absent."]
    if len(rows) > _KEYS:
        texts.append(f"The first {_KEYS} are shown, the other {len(rows) - _KEYS:,} are not.")
    cells = tuple((short(name, 120), *values) for name, values in rows[:_KEYS])
    table = Table("", head, cells, len(head), OPEN)
    return Section("Changed keys", tuple(texts), tables=(table,))


def _changed(runs: Sequence[RunRecord]) -> list[tuple[str, tuple[str, ...]]]:
    """The dotted keys that are not the same in all runs, with the value of each; a key that is
    absent is the same as one that is null. Versions, and the sha256 of weights and splits, come
    after the configuration."""
    every = [dict(_compared(run)) for run in runs]
    names = dict.fromkeys(name for facts in every for name in facts)
    rows = []
    for name in names:
        values = [facts.get(name) for facts in every]
        if len({json.dumps(value, sort_keys=True) for value in values}) > 1:
            rows.append((name, tuple(_as_text(value) for value in values)))
    return rows


def _compared(run: RunRecord) -> Iterator[tuple[str, Any]]:
    yield from _flattened(run.config)
    for name in _OF_THE_RESULT:
        yield f"result: {name}", run.result.get(name)
    yield "weights: sha256", (run.result.get("source") or {}).get("sha256")
    yield "scored checkpoint: sha256", (run.result.get("checkpoint") or {}).get("sha256")
    yield "validation images: sha256", run.digest
    for name, version in sorted((run.result.get("versions") or {}).items()):
        yield f"version: {name}", version


def _flattened(config: Plain, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; lists are values."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_text(value: Any) -> str:
    if value is None:
        return ABSENT
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return short(text, _WIDE)
