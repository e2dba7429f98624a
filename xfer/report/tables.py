"""The tables of a run, every cell a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from xfer.core.types import LabelScore, Plain, Score
from xfer.evaluation import metrics
from xfer.evaluation.multilabel_metrics import LABEL_METRICS
from xfer.report.format import ABSENT, number, short, size

if TYPE_CHECKING:
    from markupsafe import Markup

_OPEN = 12
_FILES = 50


@dataclass(frozen=True)
class Cell:
    """One cell of a table that sorts: its ``text``, what it is ``sort``ed by where that is not the
    text, a ``link`` relative to the page, and before the text a ``drawing``, or a ``picture`` (a
    data URI) of which ``alt`` says what is seen."""

    text: str
    sort: float | str | None = None
    link: str = ""
    drawing: Markup | str = ""
    picture: Markup | str = ""
    alt: str = ""

    @property
    def key(self) -> str:
        """What the script sorts by; empty for what comes last."""
        text = "" if self.text == ABSENT else self.text.replace(",", "")
        return text if self.sort is None else str(self.sort)


@dataclass(frozen=True)
class Table:
    """A table of texts; the first ``left`` columns are words, the rest numbers. Above ``most`` rows
    it is folded."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    left: int = 1
    most: int = _OPEN

    @property
    def folded(self) -> bool:
        """Whether it is too long to stand open on a page."""
        return len(self.rows) > self.most

    @cached_property
    def cells(self) -> list[list[Cell]]:
        """Every row, every cell as one."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]


def _table(
    title: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: int = 1,
    most: int = _OPEN,
) -> tuple[Table, ...]:
    """The table with its cells shortened; none without rows."""
    cells = tuple(tuple(map(short, row)) for row in rows)
    return (Table(title, tuple(head), cells, left, most),) if cells else ()


def scores(by_split: Plain) -> tuple[Table, ...]:
    """One row a split, one column a measure that any split has."""
    several = any("map" in score for score in by_split.values())
    rows_of = LABEL_METRICS if several else metrics.METRICS
    names = {"n": "images", **{metric.name: metric.label for metric in rows_of}}
    # What is no field of a score is one of the user's metrics.
    names |= {k: k for s in by_split.values() for k in s if k not in {*names, *_FIELDS}}
    keys = [k for k in names if any(score.get(k) is not None for score in by_split.values())]
    head = ["split", *(names[k] for k in keys), "used for selection"]
    rows = [
        [split, *(number(score.get(k)) for k in keys), number(score.get("used_for_selection"))]
        for split, score in by_split.items()
    ]
    return _table("", head, rows)


_FIELDS = tuple(field.name for kind in (Score, LabelScore) for field in fields(kind))


def splits(facts: Plain) -> tuple[Table, ...]:
    """The splits with their size, hash and class balance."""
    rows = []
    for name, split in facts.items():
        counts = split.get("per_class") or {}
        each = list(counts.values()) if isinstance(counts, Mapping) else list(counts)
        ends = [number(min(each)), number(max(each))] if each else [ABSENT, ABSENT]
        rows.append([name, str(split.get("sha256") or ABSENT)[:16], number(split.get("n")), *ends])
    head = ("split", "SHA-256 (start)", "images", "smallest class", "largest class")
    return _table("", head, rows, 2)


def history(epochs: Sequence[Plain]) -> tuple[Table, ...]:
    """The rows of ``metrics.csv``."""
    head = list(epochs[0]) if epochs else []

    def cell(key: str, value: Any) -> str:
        return number(int(value) if key in ("epoch", "step") and value is not None else value)

    rows = [[cell(key, row.get(key)) for key in head] for row in epochs]
    return _table("Every row of metrics.csv", head, rows, 0, most=0)


def loaded(report: Plain) -> tuple[Table, ...]:
    """What became of every tensor of the source, and of the network's that it lacks."""
    keys = {"key": ABSENT, "name": ABSENT, "fate": None, "shape": ABSENT, "note": ""}
    rows = [
        [str(row.get(key) or empty) for key, empty in keys.items()]
        for row in report.get("rows") or []
    ]
    head = ("in the file", "in the network", "fate", "shape", "note")
    return _table("Every tensor", head, rows, 5)


_OF_CLASS = {"n": "images", "precision": "precision", "recall": "recall", "f1": "F1"}
_OF_CLASS |= {"ap": "average precision"}
_OF_LABEL = {"n": "have it", "known": "known", "threshold": "threshold", "ap": "AP"}
_OF_LABEL |= {"precision": "precision", "recall": "recall", "f1": "F1", "f1_ci95": "95 % interval"}


def per_class(by_split: Plain) -> tuple[Table, ...]:
    """One table a split, one row a class; a dash stands for what is not defined."""
    tables: tuple[Table, ...] = ()
    for split, classes in by_split.items():
        several = any("known" in row for row in classes.values())
        titles = _OF_LABEL if several else _OF_CLASS
        keys = [key for key in titles if any(key in row for row in classes.values())]
        rows = [
            [name, *(_measured(key, row.get(key)) for key in keys)] for name, row in classes.items()
        ]
        tables += _table(split, ("class", *(titles[key] for key in keys)), rows)
    return tables


def _measured(key: str, value: Any) -> str:
    if key == "f1_ci95":
        return "{:.3f} to {:.3f}".format(*value) if value else ABSENT
    return number(int(value or 0) if key in ("n", "known") else value)


def calibrated(facts: Plain, by_split: Plain) -> tuple[Table, ...]:
    """With several labels an image, the calibration error of each class before the network was
    calibrated and after it, or of one that is not calibrated in each split."""
    if not facts:
        splits = {s: rows for s, rows in by_split.items() if any("ece" in r for r in rows.values())}
        names = list(next(iter(splits.values()), {}))
        gaps = [[n, *(number(rows[n].get("ece")) for rows in splits.values())] for n in names]
        return _table("Calibration error by class", ("class", *splits), gaps)
    rows = [
        [name, number(row["before"]), number(row["after"])]
        for name, row in (facts.get("per_class") or {}).items()
    ]
    return _table("Calibration error by class", ("class", "before", "after"), rows)


def pairs(rows: Sequence[Plain]) -> tuple[Table, ...]:
    """The classes most often taken for another: rows of label, prediction, count, of."""
    cells = []
    for row in rows:
        part = f"{100 * row['count'] / row['of']:.1f} %"
        names = (short(row[key], 60) for key in ("label", "prediction"))
        cells.append([*names, number(row["count"]), part])
    head = ("true class", "predicted class", "images", "of the true class")
    return _table("Most often confused", head, cells, 2)


def wrong(files: Sequence[Plain], what: str = "class") -> tuple[Table, ...]:
    """The first images that were classified wrongly; ``what`` an image has: a class, or labels."""
    keys, head = ["path", "label", "prediction"], ["file", f"true {what}", f"predicted {what}"]
    if what == "labels":
        keys, head = [*keys, "surest"], [*head, "surest wrong label"]
    rows = [
        [*(str(row.get(k)) for k in keys), number(row.get("confidence"))] for row in files[:_FILES]
    ]
    more = f", the first {_FILES} of {len(files):,}" if len(files) > _FILES else ""
    return _table(f"Files{more}", [*head, "confidence"], rows, len(head), most=0)


def exported(files: Sequence[Plain], several: bool = False) -> tuple[Table, ...]:
    """The exported files, what goes in, and how far their answers are from the network's, which
    may give an image ``several`` labels."""

    def measured(row: Plain, key: str, form: str) -> str:
        return ABSENT if row.get(key) is None else form.format(row[key])

    rows = [
        [
            *(str(row.get(key) or ABSENT) for key in ("format", "file")),
            ABSENT if row.get("facts") is None else _TAKES[row["facts"].get("input", "tensor")],
            size(row.get("bytes")),
            measured(row, "max_abs_diff", f"{{:.1e}} of {row.get('compared', 'logits')}"),
            measured(row, "bound", "{:.1e}"),
            ABSENT if row.get("agree") is None else f"{100 * row['agree']:.1f} %",
            number(row.get("images")),
        ]
        for row in files
    ]
    same = "same labels" if several else "same top class"
    head = ("format", "file", "takes", "size", "largest difference", "allowed", same, "on images")
    return _table("", head, rows, 3)


_TAKES = {"tensor": "prepared images", "image": "pictures of any size"}
