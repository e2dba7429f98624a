"""The tables of a run, every cell a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xfer.core.types import Plain
from xfer.evaluation import metrics
from xfer.report.format import ABSENT, number, short, size

_OPEN = 12
_FILES = 50


@dataclass(frozen=True)
class Table:
    """A table of texts; the first ``left`` columns are words, the rest numbers. Above ``most`` rows
    it is folded."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    most: int = _OPEN

    @property
    def folded(self) -> bool:
        """Whether it is too long to stand open on a page."""
        return len(self.rows) > self.most


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> Table:
    cells = tuple(tuple(map(short, row)) for row in rows)
    return Table(title, tuple(head), cells, left)


def scores(found: Plain) -> tuple[Table, ...]:
    """One row a split, one column a measure that any split has."""
    names = {"n": "images", **{metric.name: metric.label for metric in metrics.METRICS}}
    keys = [k for k in names if any(score.get(k) is not None for score in found.values())]
    head = ["split", *(names[k] for k in keys), "used for selection"]
    rows = [
        [split, *(number(score.get(k)) for k in keys), number(score.get("used_for_selection"))]
        for split, score in found.items()
    ]
    return (_table("", head, rows),) if rows else ()


def splits(found: Plain) -> tuple[Table, ...]:
    """The splits with their size, hash and class balance."""
    rows = []
    for name, split in found.items():
        counts = split.get("per_class") or {}
        each = list(counts.values()) if isinstance(counts, Mapping) else list(counts)
        ends = [number(min(each)), number(max(each))] if each else [ABSENT, ABSENT]
        rows.append([name, str(split.get("sha256") or ABSENT)[:16], number(split.get("n")), *ends])
    head = ("split", "SHA-256 (begin)", "images", "smallest class", "largest class")
    return (_table("", head, rows, 2),) if rows else ()


def history(epochs: Sequence[Plain]) -> tuple[Table, ...]:
    """The rows of ``metrics.csv``."""
    if not epochs:
        return ()
    head = list(epochs[0])
    rows = [[_cell(key, row.get(key)) for key in head] for row in epochs]
    return (_table("Every row of metrics.csv", head, rows, 0),)


def _cell(key: str, value: Any) -> str:
    return number(int(value) if key in ("epoch", "step") and value is not None else value)


def loaded(found: Plain) -> tuple[Table, ...]:
    """What became of every tensor of the source, and of the network's that it lacks."""
    rows = [
        [
            str(row.get("key") or ABSENT),
            str(row.get("name") or ABSENT),
            str(row.get("fate")),
            str(row.get("shape") or ABSENT),
            str(row.get("note") or ""),
        ]
        for row in found.get("rows") or []
    ]
    head = ("in the file", "in the network", "fate", "shape", "note")
    return (_table("Every tensor", head, rows, 5),) if rows else ()


def per_class(found: Plain) -> tuple[Table, ...]:
    """One table a split, one row a class."""
    keys = ("n", "precision", "recall", "f1")
    return tuple(
        _table(
            split,
            ("class", "images", "precision", "recall", "F1"),
            [
                [name, number(int(row.get("n") or 0)), *(number(row.get(k)) for k in keys[1:])]
                for name, row in classes.items()
            ],
        )
        for split, classes in found.items()
    )


def wrong(files: Sequence[Plain]) -> tuple[Table, ...]:
    """The first images that were classified wrongly."""
    rows = [
        [*(str(row.get(k)) for k in ("path", "label", "prediction")), number(row.get("confidence"))]
        for row in files[:_FILES]
    ]
    more = f", the first {_FILES} of {len(files):,}" if len(files) > _FILES else ""
    head = ("file", "true class", "predicted class", "confidence")
    return (_table(f"Files{more}", head, rows, 3),) if rows else ()


def exported(files: Sequence[Plain]) -> tuple[Table, ...]:
    """The exported files, what goes in, and how far their answers are from the network's."""
    rows = [
        [
            *(str(row.get(key) or ABSENT) for key in ("format", "file")),
            ABSENT if row.get("facts") is None else _TAKES[row["facts"].get("input", "tensor")],
            size(row.get("bytes")),
            _difference(row),
            ABSENT if row.get("bound") is None else f"{row['bound']:.1e}",
            ABSENT if row.get("agree") is None else f"{100 * row['agree']:.1f} %",
            number(row.get("images")),
        ]
        for row in files
    ]
    head = ("format", "file", "takes", "size", "largest difference", "allowed", "same top class")
    return (_table("", (*head, "on images"), rows, 3),)


_TAKES = {"tensor": "prepared images", "image": "pictures of any size"}


def _difference(row: Plain) -> str:
    if row.get("max_abs_diff") is None:
        return ABSENT
    return f"{row['max_abs_diff']:.1e} of {row.get('compared', 'logits')}"
