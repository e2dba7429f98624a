"""Rows of tables with a column of images: what each is called, its class, its split, its group."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from xfer.core.errors import DataError, closest, plural
from xfer.core.types import Dataset
from xfer.data.arrow_columns import BETWEEN
from xfer.data.dataset import of_files
from xfer.data.folder import SYNONYMS
from xfer.data.image_bytes import ImagePlace
from xfer.data.multilabel_rows import Labelled, in_cell
from xfer.data.multilabel_split import ImageSource, labelled_dataset
from xfer.data.options import SPLITS, ImageRow, Loading
from xfer.data.split import divide, shares


class TableRow(NamedTuple):
    """A row of a table. ``name`` is its file and number, ``place`` where the bytes of its image
    are (``None`` where only ``path`` says so), ``path`` what the table says of the image's file;
    ``label``, ``split`` and ``group`` are empty where the table says nothing."""

    name: str
    place: ImagePlace | None
    path: str = ""
    label: str = ""
    split: str = ""
    group: str = ""


class Listing(NamedTuple):
    """All images of a source before they are divided: rows with the splits that are given, where
    the bytes of each lie, by name, and remarks."""

    rows: list[ImageRow]
    places: Mapping[str, ImagePlace]
    remarks: list[str]


def dataset_of(listing: Listing, how: Loading, where: Path, training: bool) -> Dataset:
    """The data set of a listing, as :meth:`Loading.dataset`; errors name ``where``."""
    rows = listing.rows
    if not training and set(shares(how, {row.split for row in rows})) == {"train"}:
        rows = [row for row in rows if row.split != "train"]  # nothing is held out of it
    divided = divide(rows, how, where, training)
    return of_files(divided, where, how, listing.remarks, listing.places)


def labelled_of(
    listing: Listing, how: Loading, where: Path, training: bool, known: Sequence[str]
) -> Dataset:
    """The same where an image may have several labels, which its row has in one text."""
    listed = list(zip(listing.rows, labels_in(listing), strict=True))
    source = ImageSource(where, where, (), listing.remarks, listing.places)
    return labelled_dataset(listed, how, source, training, known)


def labels_in(listing: Listing) -> list[Labelled]:
    """What each row is labelled with, where its labels are in one text."""
    return [in_cell(row.name, "", row.split, row.label, BETWEEN) for row in listing.rows]


def listing_of(
    cells: Sequence[TableRow],
    where: Path,
    base: Path,
    grouped: str | None,
    several: bool | None = False,
) -> Listing:
    """The images in the rows of a table. Paths start at ``base``; errors name ``where``.

    An image is called by its path, where every row has one of its own and none leads out of
    ``base``; else by its file and row. Raises DataError for rows without a label, unless all of
    ``test`` are without, an image may have ``several`` or nobody asks (``None``), for splits that
    are none, and for empty groups.
    """
    if not cells:
        raise DataError(where, "lists no image", "give a table with a row for every image", 91)
    cells = [cell._replace(split=split_named(cell.split, cell.name, where)) for cell in cells]
    cells, remarks = _with_labels(cells, where) if several is False else (cells, [])
    if grouped and (empty := next((cell for cell in cells if not cell.group), None)):
        what = f"the column '{grouped}' is empty in {empty.name}, and it names the image's group"
        fix = "fill it in; give an image that belongs to no other a name that no other has"
        raise DataError(where, what, fix, 92)
    names, remark = _names(cells, base)
    rows: list[ImageRow] = []
    places: dict[str, ImagePlace] = {}
    for name, cell in zip(names, cells, strict=True):
        rows.append(ImageRow(name, cell.label, cell.split, cell.group))
        places[name] = cell.place or Path(os.path.normpath(base / cell.path))
    return Listing(rows, places, [*remarks, remark])


def split_named(word: str, name: str, where: object) -> str:
    """The split that ``word`` means, as ``validation`` means ``val``; empty for an empty one."""
    if word and word.lower() not in SYNONYMS:
        fix = f"let the column have train, val and test; {closest(word, SPLITS)}"
        raise DataError(where, f"unknown split '{word[:80]}' in {name}", fix, 32)
    return SYNONYMS[word.lower()] if word else ""


def _with_labels(cells: list[TableRow], where: Path) -> tuple[list[TableRow], list[str]]:
    """The cells that have labels: all of them, or all but those of a ``test`` that has none."""
    without = [cell for cell in cells if not cell.label.strip()]
    if not without:
        return cells, []
    test = sum(cell.split == "test" for cell in cells)
    if Counter(cell.split for cell in without) != {"test": test} or test == len(cells):
        first = next((cell for cell in without if cell.split != "test"), without[0])
        others = len(without) - 1
        have = "has" if others == 1 else "have"
        more = f", nor {have} {plural(others, 'more row')}" if others else ""
        fix = "fill it in, or remove the row"
        raise DataError(where, f"{first.name} has no label{more}", fix, 29)
    remark = f"left out (images without classes): {plural(test, 'row')} of test"
    return [cell for cell in cells if cell.label.strip()], [remark]


def _names(cells: Sequence[TableRow], base: Path) -> tuple[list[str], str]:
    """What each image is called, and a remark about that."""
    by_path = list(_paths(cells, base))
    given = all(by_path) and len(set(by_path)) == len(by_path)
    inside = all(not path.startswith(("/", "../")) for path in by_path)
    if given and (inside or all(cell.place is None for cell in cells)):
        return by_path, f"images are called by their paths, as '{by_path[0]}'"
    if any(cell.place is None for cell in cells) and len(set(by_path)) < len(by_path):
        name = next(name for name, count in Counter(by_path).items() if count > 1)
        rows = [cell.name for cell, path in zip(cells, by_path, strict=True) if path == name]
        what = f"{rows[0]} and {rows[1]} are both the image '{name}'"
        raise DataError(base, what, "remove one of the rows", 90)
    return [cell.name for cell in cells], f"images are called by file and row: '{cells[0].name}'"


def _paths(cells: Sequence[TableRow], base: Path) -> Iterator[str]:
    """The path of each image below ``base`` if it is there, else as it is; empty for none."""
    for cell in cells:
        text = PurePosixPath(os.path.normpath(cell.path)) if cell.path else None
        if text and text.is_absolute() and text.is_relative_to(base):
            text = text.relative_to(base)
        yield text.as_posix() if text else ""
