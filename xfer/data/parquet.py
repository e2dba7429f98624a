"""Images in the rows of parquet files: bytes, paths, or what Hugging Face writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import MaxLen, MinLen

from xfer.core.errors import DataError, plural
from xfer.core.types import Dataset
from xfer.data.arrow_columns import (
    Columns,
    columns_of,
    labels_in,
    lists_in,
    refuse_others,
    require,
)
from xfer.data.folder import SYNONYMS
from xfer.data.image_bytes import ImagePlace, NullCell
from xfer.data.image_table import Listing, TableRow, dataset_of, labelled_of, listing_of
from xfer.data.options import Loading, place
from xfer.data.parquet_cells import HELD, GroupCell, places_in, reading
from xfer.data.split import unread_split

SUFFIX = ".parquet"
_WORD = re.compile(rf"({'|'.join(SYNONYMS)})(?=[-_.]|\Z)")


@dataclass(frozen=True)
class Parquet(Loading):
    """A parquet file, or a folder of them, with a row for every image.

    ``columns`` are those of the image, of its class and, if there is one, of its split: bytes of
    an image file, the struct of ``bytes`` and ``path`` that Hugging Face writes, or paths, absolute
    or relative to the folder. Without a column of splits, folders and names such as
    ``validation-00000.parquet`` say which split a file is; without those it is split as images
    in folders are. ``group`` is the name of one column more.
    """

    groups: ClassVar[str] = "COLUMN"

    root: Annotated[str, MinLen(1)]
    """a parquet file, or a folder of them; the names of files and folders may say the split, as
    ``train-00000.parquet`` does"""
    columns: Annotated[tuple[str, ...], MinLen(2), MaxLen(3)] | None = None
    """the columns of the image, of its class and, if there is one, of its split; ``null`` is
    ``image,label``, and ``split`` where there is such a column. With ``task=multilabel`` the second
    has lists of labels, and is ``labels`` where there is such a column"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        return dataset_of(self.listed(), self, place(self.root), training)

    def labelled(self, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """The same where an image may have several labels: the column of labels has lists, empty
        ones for none and null where nobody has looked. See
        :class:`xfer.core.protocols.ReadsLabels`."""
        return labelled_of(self.listed(True), self, place(self.root), training, known)

    def listed(self, several: bool | None = False) -> Listing:
        """All images, before they are divided, without labels and splits where ``several`` is
        ``None``. Raises DataError naming the file."""
        require("pyarrow", "parquet")
        root = place(self.root)
        files, base = _files(root)
        splits = _splits(root, files, base) if several is not None else [""] * len(files)
        first: tuple[Path, Columns] | None = None
        cells: list[TableRow] = []
        for path, split in zip(files, splits, strict=True):
            columns = _columns(path, self, first, several)
            first = first or (path, columns)
            cells += _cells(path, columns, base, "" if columns.split else split)
        listing = listing_of(cells, root, base, self.group, several)
        if several is None:
            return listing
        remarks = [*listing.remarks, *_packed(listing.places.values())]
        names = first[1].names if first else ()
        return listing._replace(remarks=[*remarks, *unread_split(names, self.columns)])


def _files(root: Path) -> tuple[list[Path], Path]:
    """The parquet files by name, and the folder that paths start at."""
    if root.is_file():
        return [root], root.parent
    found = sorted(
        path
        for path in root.rglob(f"*{SUFFIX}")
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not found:
        what = "holds no parquet files" if root.is_dir() else "there is no such file or folder"
        fix = "give a *.parquet file or a folder of them, or type data=folder for images in folders"
        raise DataError(root, what, fix, 34)
    return found, root


def _splits(root: Path, files: Sequence[Path], base: Path) -> list[str]:
    """What split the name of every file says; empty for all where none says one."""
    words = [_word(path.relative_to(base)) for path in files]
    if root.is_file() or not any(words):
        return [""] * len(files)
    if "" in words:
        path = files[words.index("")]
        named = files[next(i for i, word in enumerate(words) if word)]
        what = f"its name says no split, and that of {named.relative_to(base)} does"
        fix = "let its name begin with train, val or test, or put it into a folder of that name"
        raise DataError(path, what, fix, 39)
    return words


def _word(path: Path) -> str:
    for folder in path.parent.parts:
        if meant := SYNONYMS.get(folder.lower()):
            return meant
    found = _WORD.match(path.name.lower())
    return SYNONYMS[found[1]] if found else ""


def _columns(
    path: Path, how: Parquet, first: tuple[Path, Columns] | None, several: bool | None
) -> Columns:
    """The columns of a file. Raises DataError where they are not those of the first file."""
    with reading(path) as file:
        schema = file.schema_arrow
    if first is None:
        return columns_of(schema, how.columns, how.group, path, several)
    expected, names = first[1], schema.names
    asked = [name for name in expected[:3] if name]
    if lost := [name for name in (*asked, how.group) if name and name not in names]:
        fix = "write all of them with one schema, or give one of them"
        raise DataError(path, f"has no column '{lost[0]}', unlike {first[0].name}", fix, 28)
    found = columns_of(schema, asked, how.group, path, several)
    refuse_others(found, expected, path, first[0].name)
    return expected


def _cells(path: Path, columns: Columns, base: Path, split: str) -> Iterator[TableRow]:
    """The rows of a file."""
    table = _small(path, columns)
    places: Sequence[ImagePlace | None] = (
        places_in(path, columns.bytes_path)
        if columns.bytes_path
        else [None] * len(table[columns.image])
    )
    count = len(places)
    paths = table.get(columns.image, [None] * count)
    words = lists_in if columns.kinds[1:2] == ("list",) else labels_in
    values = table[columns.label] if columns.label else [None] * count
    labels = words(values, columns.classes, columns.label, path)
    splits = table[columns.split] if columns.split else [split] * count
    groups = table[columns.group] if columns.group else [None] * count
    name = path.relative_to(base).as_posix()
    rows = zip(places, paths, labels, splits, groups, strict=True)
    for row, (where, text, label, part, group) in enumerate(rows):
        if where is None and not text:
            where = NullCell(path, row)
        elif isinstance(where, NullCell) and text:
            where = None  # the file that the path names
        texts = ("" if word is None else str(word) for word in (text, label, part, group))
        yield TableRow(f"{name}#{row}", where, *texts)


def _small(path: Path, columns: Columns) -> dict[str, list[Any]]:
    """The columns without the bytes, as lists; of a struct its paths."""
    with reading(path) as file:
        table = file.read(columns=columns.others, use_threads=False)
    lists = {name: table.column(name).to_pylist() for name in table.column_names}
    if columns.kinds[0] == "struct":
        cells = lists[columns.image]
        lists[columns.image] = [cell and cell["path"] for cell in cells]
    return lists


def _packed(places: Iterable[ImagePlace]) -> list[str]:
    """A remark on images that are read a row group at a time."""
    packed = [place for place in places if isinstance(place, GroupCell)]
    if not packed:
        return []
    files = len({place.file for place in packed})
    line = (
        f"{plural(len(packed), 'image')} in {plural(files, 'file')}, compressed or encoded: one "
        f"is read with its row group, of which a process holds {HELD >> 20} MiB, or one group if it"
        " is larger; epochs that train step by step read faster from xfer pack's shards"
    )
    return [line]
