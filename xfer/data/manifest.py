"""A CSV file, or JSON list, of images, their classes and, if it likes, their splits."""

from __future__ import annotations

import csv
import difflib
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import MaxLen, MinLen

from xfer.config.verbs import quoted
from xfer.core.errors import DataError, LabelsError, closest
from xfer.core.files import open_to_read
from xfer.core.types import Dataset
from xfer.data.dataset import of_files
from xfer.data.image import SUFFIXES
from xfer.data.leakage import in_one_line
from xfer.data.listed_image import located, row_of, suffix_lines
from xfer.data.multilabel_rows import (
    HARD,
    Labelled,
    as_group,
    as_labels,
    in_cell,
    in_columns,
    in_json,
    only_label,
    paths_in_json,
    unread_sign,
)
from xfer.data.multilabel_split import ImageSource, labelled_dataset
from xfer.data.options import ImageRow, Loading, place
from xfer.data.split import divide, unread_split

_HEADER = "let the first line be path,label or path,label,split"
_SIGNS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}
_BETWEEN_LABELS, _IN_CELLS = "|", ";|/+,"
_OF_A_LABEL = (351, 386, 387)  # the errors that name one which cannot be learned
_KEYS = ("path", "label", "split")
_DECIDED = (*_KEYS, "suggested", "decision")
_DECISIONS = ("accept", "relabel", "drop")
# What other tools call the columns, by what they are here.
_ALIASES = {
    "path": ("file", "filename", "file_name", "filepath", "image", "image_path", "img", "url"),
    "label": ("class", "class_name", "category", "target", "species", "y"),
    "split": ("set", "subset", "partition", "fold", "dataset"),
}


@dataclass(frozen=True)
class Manifest(Loading):
    """A CSV file in UTF-8 with a header; its ``columns`` are those of the image's path, of its
    class and, if there is one, of its split. ``separator`` is what is between them.

    Paths are absolute or relative to ``root``, by default the CSV file's folder; one of no file is
    that of the only file of its name with an image's suffix. A split is train, val or test, or what
    else people call it. ``group`` is the name of one column more. A header with ``decision`` is
    that of an ``audit.csv``: a row is accepted as it is, relabelled with its ``suggested`` class or
    labels, or dropped; a remark counts them.
    """

    groups: ClassVar[str] = "COLUMN"

    file: Annotated[str, MinLen(1)]
    """a CSV file in UTF-8 with a header, the ``audit.csv`` of a run as decided, or a JSON list"""
    root: Annotated[str, MinLen(1)] | None = None
    """the folder that relative paths start at; ``null`` is the folder of the CSV file"""
    columns: Annotated[tuple[str, ...], MinLen(1), MaxLen(3)] | None = None
    """the columns of the path, of the class and, if there is one, of the split, by their names
    in the header; others are left out. ``null`` is ``path,label`` or ``path,label,split``. With
    ``task=multilabel`` that of the path alone where each class has a column"""
    separator: Literal["comma", "semicolon", "tab", "pipe", ";", "|", "/", "+", ","] = "comma"
    """what is between the columns, by its name; with ``task=multilabel`` also the sign between
    the labels of an image, which is ``|`` unless one is given: the columns then have commas"""

    @property
    def between_labels(self) -> str:
        """The sign between the labels of an image."""
        return _BETWEEN_LABELS if self.separator in _SIGNS else self.separator

    def labelled(self, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """The same as :meth:`dataset` where an image has several labels or none: labels int64
        (n, classes) of 1, 0 and, where it is unknown, -1. The file is CSV with the columns path and
        label, or path and one column a class, or a JSON list. The classes are ``known`` where a
        network has learned them."""
        path = place(self.file)
        root = place(self.root) if self.root else path.parent
        images, columns, remarks = label_list(path, self)
        listed = [(located(image, root, bool(self.root)), image) for image in images]
        # With a sign of one's own between labels, the columns have commas.
        commas = self.separator == "comma" or self.separator not in _SIGNS
        in_cells = commas and not columns and path.suffix.lower() != ".json"
        others = [sign for sign in _IN_CELLS if in_cells and sign != self.between_labels]
        remarks += suffix_lines((image.path, row.name) for row, image in listed)
        source = ImageSource(path, root, columns, [*remarks, *unread_sign(images, others)])
        try:
            return labelled_dataset(listed, self, source, training, known)
        except DataError as error:
            sign = next((sign for sign in others if sign in error.what), "")
            if sign and error.number in _OF_A_LABEL:
                error.fix = f"{as_labels(sign)}; else {error.fix}"
            raise

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        path = place(self.file)
        if self.separator not in _SIGNS:
            name = {sign: name for name, sign in _SIGNS.items()}.get(self.separator)
            what = f"'{self.separator}' is between labels, and an image has one label"
            fix = f"type data.separator={name}" if name else "drop it"
            raise LabelsError("data.separator", what, f"{fix}, or task=multilabel", 0)
        root = place(self.root) if self.root else path.parent
        rows, remarks = class_list(path, root, self)
        return of_files(divide(rows, self, path, training), root, self, remarks)


def class_list(path: Path, root: Path, how: Manifest) -> tuple[list[ImageRow], list[str]]:
    """As :func:`label_list`, of images that have one class each."""
    if path.suffix.lower() == ".json":
        images, _, _ = label_list(path, how)
        found = [(located(one, root, bool(how.root)), one) for one in images]
        rows = [row._replace(label=only_label(one)) for row, one in found]
        return rows, suffix_lines((one.path, row.name) for row, one in found)
    lines = _lines(path, _SIGNS[how.separator])
    _, header = next(lines, (1, []))
    first = list(islice(lines, 1))
    keys = _keys(path, header, how, first[0][1] if first else [])
    grouped = header.index(how.group) if how.group else None
    rows, decided = list[ImageRow](), Counter[str]()
    listed, named = list[tuple[str, str]](), list[tuple[str, str]]()
    for line, cells in chain(first, lines):
        where = f"{path}:{line}"
        facts = _facts(where, keys, cells)
        decision = _decision(where, facts, one=True)
        row = row_of(where, facts, root, bool(how.root)) if decision != "drop" else None
        if row and grouped is not None:
            if not cells[grouped]:
                raise _no_group(where, str(how.group))
            row = row._replace(group=cells[grouped])
        listed.append((where, row.name if row else facts["path"]))
        decided[decision] += 1
        if row:
            rows.append(row)
            named.append((facts["path"], row.name))
    _refuse_none_or_twice(path, listed if rows else [])
    if "decision" not in keys:
        return rows, [*suffix_lines(named), *unread_split(header, how.columns)]
    return rows, _of_decisions(path, decided)


def unlabelled(path: Path) -> list[tuple[str, Path]]:
    """What the images of a CSV file or JSON list are called and where they are, by ``path`` or the
    column that other tools call otherwise, relative to its folder. Raises DataError for what cannot
    be read, and an image that is listed again; whether its file is there is not asked."""
    read = paths_in_json if path.suffix.lower() == ".json" else _paths_in_lines
    listed = [(where, os.path.normpath(name)) for where, name in read(path)]
    _refuse_none_or_twice(path, listed)
    return [(name, path.parent / name) for _, name in listed]


def _paths_in_lines(path: Path) -> Iterator[tuple[str, str]]:
    _, header = next(lines := _lines(path, ","), (1, []))
    theirs = [name for name in header if name.lower() in _ALIASES["path"]]
    columns = [name for name in header if name == "path"] or theirs
    if len(columns) != 1:
        what = f"there is no single column of paths among {', '.join(header[:8]) or 'none'}"
        raise DataError(f"{path}:1", what, "call it 'path', with commas between the columns", 26)
    for line, cells in lines:
        yield (where := f"{path}:{line}"), _facts(where, header, cells)[columns[0]]


def _refuse_none_or_twice(path: Path, listed: Iterable[tuple[str, str]]) -> None:
    """Raise DataError where no image is listed, and for those that are listed again; of each where
    it is, and what it is."""
    seen, twice = dict[str, str](), list[tuple[str, str]]()
    for where, name in listed:
        if name in seen:
            before = seen[name].replace(f"{path}:", "line ")
            twice.append((where, f"'{name}' is listed in {before} too"))
        seen[name] = where
    if not seen:
        raise DataError(path, "lists no image", "add a line for every image", 18)
    if twice:
        (where, what), *more = twice
        lines = in_one_line(there.removeprefix(str(path)).strip(":[]") for there, _ in more)
        what += f"; {len(more)} more are listed again: {lines}" if more else ""
        raise DataError(where, what, "let each image be listed once", 16)


def _of_decisions(path: Path, decided: Counter[str]) -> list[str]:
    return [f"decisions in {path.name}: {', '.join(f'{decided[w]} {w}' for w in _DECISIONS)}"]


def _no_group(where: str, column: str) -> DataError:
    what = f"the column '{column}' is empty, and it names the image's group"
    fix = "fill it in; give an image that belongs to no other a name that no other has"
    return DataError(where, what, fix, 52)


def _lines(path: Path, sign: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank."""
    try:
        with TextIOWrapper(open_to_read(path), encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True, delimiter=sign)
            for cells in reader:
                if any(cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.csv")], 1)
        fix = f"did you mean {path.parent / near[0]}?" if near else "give the path of a CSV file"
        raise DataError(path, "there is no such file", fix, 11) from error
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise DataError(path, what, "give a CSV file", 11) from error
    except (UnicodeDecodeError, csv.Error) as error:
        what, fix = f"is not a CSV file in UTF-8 ({error})", "save it as CSV, UTF-8"
        if isinstance(error, UnicodeDecodeError):
            theirs = "UTF-16" if error.object[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "CP1252"
            files = f"{quoted(str(path))} > {quoted(str(path.with_suffix('.utf8.csv')))}"
            fix += f"; if it is in {theirs}, type iconv -f {theirs} -t UTF-8 {files}"
        raise DataError(path, what, fix, 12) from error


def _keys(path: Path, header: list[str], how: Manifest, first: list[str]) -> list[str]:
    """What each column is: path, label, split, or nothing that is read. The ``first`` line after
    the header tells whether each class has a column."""
    where = f"{path}:1"
    _refuse_one_column(where, header)
    _refuse_no_group(where, header, how.group)
    typed = _typed(header)
    if sum(cell in ("0", "1") for cell in first) > 1:
        typed = f"{_a_column_a_class(header)} and task=multilabel; else {typed}"
    decided = how.columns is None and "decision" in header
    if how.columns is None and not decided:
        _refuse_unknown(where, header, how.group, typed)
    expected = _DECIDED if decided else _KEYS
    needed = (*_KEYS[:2], *expected[3:])
    names = how.columns or [key for key in expected if key in header or key in needed]
    for name in names:
        if header.count(name) != 1:
            what = f"there is no single column '{name}' among {', '.join(header[:8]) or 'none'}"
            raise DataError(where, what, typed, 13)
    if len(names) == 1:
        raise DataError(where, f"'{names[0]}' is one column, and no class", typed, 13)
    known = dict(zip(names, names if decided else _KEYS, strict=False))
    return [known.get(name, "") for name in header]


def _refuse_no_group(where: str, header: list[str], group: str | None) -> None:
    if group and header.count(group) != 1:
        what = f"there is no single column '{group}' to group by"
        free = [name for name in header if name not in _KEYS]
        fix = closest(group, free) if free else "add that column, or drop data.group"
        raise DataError(where, what, fix, 52)


def _refuse_one_column(where: str, header: list[str]) -> None:
    for name, sign in _SIGNS.items():
        if len(header) == 1 and sign in header[0]:
            what = f"there is one column, '{header[0]}'"
            raise DataError(where, what, f"type data.separator={name}", 75)


def _refuse_unknown(where: str, header: list[str], group: str | None, typed: str) -> None:
    unknown = [name for name in header if name not in (*_KEYS, group)]
    if unknown:
        free = [key for key in _KEYS if key not in header]
        hint = closest(unknown[0], free) if free else ""
        typo = hint.startswith("did you mean")
        what = f"unknown column '{unknown[0]}'" + (f" ({hint})" if typo else "")
        fix = _HEADER if typo else typed
        if group is None and set(_KEYS[:2]) <= set(header):
            fix += f"; {as_group(unknown[0])}"
        raise DataError(where, what, fix, 13)


def _typed(header: list[str]) -> str:
    """What to type, so that the columns of ``header`` are known: the likely ones, by name."""
    likely = [next((n for n in header if n.lower() in (key, *_ALIASES[key])), "") for key in _KEYS]
    # What an image is stands behind its path as a rule; a number of the row before both.
    start = header.index(likely[0]) if likely[0] else 0
    rest = [name for name in header[start:] + header[:start] if name and name not in likely]
    names = [name or (rest.pop(0) if rest else "") for name in likely[:2]] + likely[2:]
    twice = any(name and header.count(name) > 1 for name in names)
    values = any(Path(name).suffix.lower() in SUFFIXES for name in header)
    if twice or values or not all(names[:2]) or any(set(name) & HARD for name in names):
        return _HEADER  # a line of values, or names that are hard to type
    columns = quoted(f"data.columns=[{','.join(name for name in names if name)}]")
    return f"type {columns}" + (", or those that you mean" if "" in likely[:2] else "")


def _a_column_a_class(header: list[str]) -> str:
    """What to do with a ``header`` of one column a class beside the images'."""
    named = [name for name in header if name.lower() in ("path", *_ALIASES["path"])]
    (name,) = (named or header or [""])[:1]
    hard = not name or header.count(name) > 1 or set(name) & HARD
    typed = f"type {quoted(f'data.columns=[{name}]')}"
    fix = "call the one of the paths 'path'" if hard else typed
    return f"if each class has a column, with 1 and 0 in it, {fix}"


def _facts(where: str, keys: list[str], cells: list[str]) -> dict[str, str]:
    """The cells of a line by what they are."""
    if len(cells) != len(keys):
        what = f"{len(cells)} cells; the header has {len(keys)}"
        raise DataError(where, what, 'put names that hold a separator into "quotes"', 14)
    return dict(zip(keys, cells, strict=True))


def _decision(where: str, facts: dict[str, str], one: bool) -> str:
    """What was decided about an image; what it is to be labelled with is put in its place. It has
    to be ``one`` class, or may be several labels, or none."""
    decision = facts.get("decision", "accept").lower()
    if decision not in _DECISIONS:
        what = f"there is no decision '{decision}'"
        raise DataError(where, what, closest(decision, _DECISIONS), 56)
    if decision == "relabel":
        if one and not facts["suggested"]:
            what = "is to be relabelled, and 'suggested' names no class"
            raise DataError(where, what, "fill it in, or decide accept or drop", 57)
        facts["label"] = facts["suggested"]
    return decision


def label_list(path: Path, how: Manifest) -> tuple[list[Labelled], list[str], list[str]]:
    """The images that ``path`` lists with their labels, its columns that are classes, and what it
    says was decided. Raises DataError for what cannot be read, and a path that is there twice."""
    columns, remarks = list[str](), list[str]()
    if path.suffix.lower() == ".json":
        images = [one if how.group else replace(one, group="") for one in in_json(path)]
        if how.group not in (None, "group"):
            what = f"an entry of a JSON list has its group in 'group', and not in '{how.group}'"
            raise DataError(path, what, "type data.group=group", 52)
    else:
        images, columns, remarks = _in_lines(path, how)
    if how.group and (without := next((one for one in images if not one.group), None)):
        raise _no_group(without.where, how.group)
    _refuse_none_or_twice(path, ((image.where, image.path) for image in images))
    return images, columns, remarks


def _in_lines(path: Path, how: Manifest) -> tuple[list[Labelled], list[str], list[str]]:
    """What :func:`label_list` finds in a CSV file."""
    lines = _lines(path, _SIGNS.get(how.separator, ","))
    _, header = next(lines, (1, []))
    keys, columns = _label_keys(path, header, how)
    at = header.index(how.group) if how.group else None
    # A column a class may be called so.
    judged = "decision" in keys and "decision" not in columns
    images, decided = list[Labelled](), Counter[str]()
    for line, cells in lines:
        where = f"{path}:{line}"
        facts = _facts(where, keys, cells)
        decision = _decision(where, facts, one=False) if judged else "accept"
        decided[decision] += 1
        if decision != "drop":
            image = _labelled(where, facts, how, columns)
            images.append(image if at is None else replace(image, group=cells[at]))
    return images, columns, _of_decisions(path, decided) if judged else []


def _label_keys(path: Path, header: list[str], how: Manifest) -> tuple[list[str], list[str]]:
    """What each column is, and those that are classes: all but path and split of a header without
    label."""
    if len(how.columns or ()) > 1 or (how.columns is None and "label" in header):
        return _keys(path, header, how, []), []
    where = f"{path}:1"
    _refuse_one_column(where, header)
    (named,) = how.columns or ("path",)
    if header.count(named) != 1:
        fix = f"{_a_column_a_class(header)}; if one column lists the labels, {_typed(header)}"
        raise DataError(where, f"there is no single column '{named}'", fix, 13)
    _refuse_no_group(where, header, how.group)
    header = ["path" if name == named else name for name in header]
    classes = [name for name in header if name not in ("path", "split", how.group)]
    odd = [name for i, name in enumerate(classes) if not name or name in classes[:i]]
    if odd or len(header) != len(classes) + 1 + ("split" in header) + bool(how.group):
        what = f"the column '{odd[0] if odd else 'split'}' is there twice, or has no name"
        raise DataError(where, what, "give every column a name of its own", 13)
    return header, classes


def _labelled(where: str, facts: dict[str, str], how: Manifest, columns: list[str]) -> Labelled:
    """A line as an image with labels, those of the ``columns`` if there are some."""
    path, split = facts["path"], facts.get("split", "")
    if not path:
        raise DataError(where, "the path is empty", "fill it in or remove the line", 14)
    if not columns and "label" in facts:
        return in_cell(where, path, split, facts["label"], how.between_labels)
    names = [(name, facts[name]) for name in facts if name not in ("path", "split", how.group)]
    return in_columns(where, path, split, names, grouped=how.group is not None)
