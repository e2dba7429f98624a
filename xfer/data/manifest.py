"""A CSV file that lists images, their classes and, if it likes, their splits."""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen

from xfer.data.gather import of_files
from xfer.data.loading import SPLITS, Loading, Row, divide, place
from xfer.errors import DataError, closest
from xfer.files import open_to_read
from xfer.types import Dataset

_HEADER = "the first line must be path,label or path,label,split"


@dataclass(frozen=True)
class Manifest(Loading):
    """``path,label`` or ``path,label,split`` in UTF-8, with that header.

    Paths are absolute or relative to the CSV file's folder; ``split`` is train, val or test.
    """

    file: Annotated[str, MinLen(1)]

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        path = place(self.file)
        rows = divide(_rows(path), self, path, training)
        return of_files(rows, path.parent, self)


def _rows(path: Path) -> list[Row]:
    lines = _lines(path)
    _, header = next(lines, (1, []))
    _check_header(path, header)
    seen: dict[str, int] = {}
    rows = []
    for line, cells in lines:
        row = _row(f"{path}:{line}", header, cells, path.parent)
        if row.name in seen:
            raise DataError(
                f"{path}:{line}",
                f"'{row.name}' is listed in line {seen[row.name]} too",
                "remove one of the lines",
                16,
            )
        seen[row.name] = line
        rows.append(row)
    if not rows:
        raise DataError(path, "lists no image", "add a line for every image", 18)
    return rows


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank."""
    try:
        with TextIOWrapper(open_to_read(path), encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for cells in reader:
                if any(cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except FileNotFoundError as error:
        raise _no_file(path) from error
    except OSError as error:
        raise DataError(
            path, f"cannot be read ({error.strerror})", "give a CSV file", 11
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            path, f"is no CSV in UTF-8 ({error})", "save it as CSV, UTF-8", 12
        ) from error


def _no_file(path: Path) -> DataError:
    names = [entry.name for entry in path.parent.glob("*.csv")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    fix = f"did you mean {path.parent / near[0]}?" if near else "give the path of a CSV file"
    return DataError(path, "there is no such file", fix, 11)


def _check_header(path: Path, header: list[str]) -> None:
    where = f"{path}:1"
    for name in header:
        if name not in ("path", "label", "split"):
            hint = closest(name, ("path", "label", "split"))
            raise DataError(where, f"unknown column '{name}' ({hint})", _HEADER, 13)
    for name in ("path", "label"):
        if header.count(name) != 1:
            raise DataError(where, f"there is no single column '{name}'", _HEADER, 13)


def _row(where: str, header: list[str], cells: list[str], folder: Path) -> Row:
    if len(cells) != len(header):
        raise DataError(
            where,
            f"{len(cells)} cells; the header has {len(header)}",
            'put names that hold a comma into "quotes"',
            14,
        )
    facts = dict(zip(header, cells, strict=True))
    for name in ("path", "label"):
        if not facts[name]:
            raise DataError(where, f"the {name} is empty", "fill it in or remove the line", 14)
    split = facts.get("split", "")
    if "split" in facts and split not in SPLITS:
        raise DataError(where, f"unknown split '{split}'", closest(split, SPLITS), 15)
    return Row(_name(where, facts["path"], folder), facts["label"], split)


def _name(where: str, text: str, folder: Path) -> str:
    """The path below ``folder`` if it is there, else as it is; every file has one name."""
    path = Path(os.path.normpath(folder / text))
    try:
        is_there = path.exists()
    except OSError:  # a name too long, a folder that may not be entered
        is_there = False
    if not is_there:
        raise DataError(where, f"there is no file '{path}'", "paths start at the CSV's folder", 17)
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
