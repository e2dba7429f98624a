"""Data sets of Hugging Face's library ``datasets``: saved to disk, in its cache, or from its hub.

The library opens them and says what their features are. Images are then read from its Arrow files,
which it maps into memory, at the offsets of their bytes: nothing of it is needed in the processes
that decode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from annotated_types import MaxLen, MinLen

from xfer.core.errors import DataError, printable
from xfer.core.log import hush_hub_client, log
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
from xfer.data.image_bytes import FileSpan, ImagePlace, NullCell, read_file
from xfer.data.image_table import Listing, TableRow, dataset_of, labelled_of, listing_of
from xfer.data.options import Loading, place
from xfer.data.split import unread_split

_SAVED = ("dataset_dict.json", "dataset_info.json")


@dataclass(frozen=True)
class HuggingFace(Loading):
    """A data set that ``save_to_disk`` wrote into ``root``, or that ``load_dataset`` knows by
    ``name``: from its cache, or from the hub where there is one.

    ``columns`` are those of the image, of its class and, if there is one, of its split; the names
    of a ``ClassLabel`` are the classes. ``validation`` is ``val``; where there is none it is split
    off ``train``. No code of a data set is run.
    """

    groups: ClassVar[str] = "COLUMN"

    root: Annotated[str, MinLen(1)] | None = None
    """the folder that ``save_to_disk`` wrote; or give ``data.name``"""
    name: Annotated[str, MinLen(1)] | None = None
    """what ``load_dataset`` takes: the name of a data set in the cache or on the hub"""
    config: Annotated[str, MinLen(1)] | None = None
    """which configuration of ``data.name``, where it has several"""
    revision: Annotated[str, MinLen(1)] | None = None
    """which commit, branch or tag of ``data.name``"""
    columns: Annotated[tuple[str, ...], MinLen(2), MaxLen(3)] | None = None
    """the columns of the image, of its class and, if there is one, of its split; ``null`` is
    ``image,label``, and ``split`` where there is such a column. With ``task=multilabel`` the second
    has lists of labels, and is ``labels`` where there is such a column"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        return dataset_of(self.listed(), self, self._where(), training)

    def labelled(self, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """The same where an image may have several labels: the column of labels has lists, empty
        ones for none and null where nobody has looked. See
        :class:`xfer.core.protocols.ReadsLabels`."""
        return labelled_of(self.listed(True), self, self._where(), training, known)

    def _where(self) -> Path:
        return place(self.root) if self.root else Path(str(self.name))

    def listed(self, several: bool | None = False) -> Listing:
        """All images, before they are divided, without labels and splits where ``several`` is
        ``None``. Raises DataError naming folder or name."""
        require("datasets", "hf")
        parts, remarks = self._parts(several is not None)
        cells: list[TableRow] = []
        expected: Columns | None = None
        for key, (split, table) in parts.items():
            where = f"{self._where()}: {key}"
            schema = table.features.arrow_schema
            columns = columns_of(schema, self.columns, self.group, where, several)
            expected = expected or columns
            refuse_others(columns, expected, where, next(iter(parts)))
            cells += _cells(key, table, columns, "" if columns.split else split)
        base = place(self.root) if self.root else Path.cwd()
        listing = listing_of(cells, self._where(), base, self.group, several)
        remarks += unread_split(expected.names if expected else (), self.columns)
        return listing._replace(remarks=[*remarks, *listing.remarks])

    def _parts(self, divided: bool) -> tuple[dict[str, tuple[str, Any]], list[str]]:
        """The parts by their names, each with what split that is here; and remarks. All of them,
        of no split, where they are not ``divided``."""
        loaded, remarks = self._loaded()
        if not isinstance(loaded, dict):
            return {"data": ("", loaded)}, remarks
        if not divided:
            return {key: ("", part) for key, part in loaded.items()}, remarks
        known = {
            key: (SYNONYMS[key.lower()], part)
            for key, part in loaded.items()
            if key.lower() in SYNONYMS
        }
        if not known and len(loaded) == 1:
            return {key: ("", part) for key, part in loaded.items()}, remarks
        if not known or len({split for split, _ in known.values()}) < len(known):
            what = f"its parts are {', '.join(map(repr, loaded))}"
            raise DataError(self._where(), what, "call them train, val and test", 39)
        others = [key for key in loaded if key not in known]
        return known, remarks + [f"left out (no name of a split): '{key}'" for key in others]

    def _loaded(self) -> tuple[Any, list[str]]:
        """What the library opens, a data set or several by their names; and remarks."""
        import datasets

        if (self.root is None) == (self.name is None):
            what = "and data.name are both given" if self.root else "or data.name must be given"
            fix = "type data.root=DIR for what save_to_disk wrote, or data.name=NAME"
            raise DataError("data.root", what, fix, 36)
        if self.root is None:
            return self._named(str(self.name))
        root = place(self.root)
        if not any((root / name).is_file() for name in _SAVED):
            what = "holds no data set that save_to_disk wrote"
            fix = "give such a folder, or type data=folder or data=parquet for other files"
            raise DataError(root, what, fix, 36)
        try:
            return datasets.load_from_disk(str(root)), []
        except Exception as error:
            raise _not_opened(root, error, "write it again with save_to_disk") from error

    def _named(self, name: str) -> tuple[Any, list[str]]:
        """What ``load_dataset`` opens by ``name``, at one commit where it is of a hub.

        Where the hub refuses or does not answer, the library takes what its cache has, of whatever
        commit: the hub is asked here first, and what was taken is held against the answer. A commit
        that is in the cache is taken without a request.
        """
        import datasets

        hush_hub_client()
        local, commit, why = Path(name).exists(), None, ""
        if not local:
            if (cached := _cached(name, self.config, self.revision)) is not None:
                return cached, []
            commit, why = _asked(name, self.revision)
        wanted, offline = commit or self.revision, datasets.config.HF_HUB_OFFLINE
        try:
            # The library would ask six times more.
            datasets.config.HF_HUB_OFFLINE = offline or bool(why)
            loaded = datasets.load_dataset(name, self.config, revision=wanted)
        except Exception as error:  # the library raises what its own libraries raise
            fix = "check the name, or save_to_disk it where there is a network, for data.root=DIR"
            raise _not_opened(name, f"{why}; {error}" if why else error, fix) from error
        finally:
            datasets.config.HF_HUB_OFFLINE = offline
        if local:
            return loaded, []
        parts = loaded.values() if isinstance(loaded, dict) else [loaded]
        files = [file["filename"] for part in parts for file in part.cache_files]
        if not files:
            what = "is held in memory by datasets, which does not say of what commit"
            raise DataError(name, what, "unset HF_DATASETS_IN_MEMORY_MAX_SIZE", 36)
        taken = Path(files[0]).parent.name
        if wanted and taken != wanted:
            refused = f"the hub does not answer ({why})" if why else "the hub does not give it"
            what = f"the cache has commit {taken}, not '{wanted}', and {refused}"
            raise DataError(name, what, f"connect and log in, or type data.revision={taken}", 36)
        if why:
            said = "the hub does not answer (%s): %s is taken from the cache as of commit %s"
            log.warning(said, why, name, taken)
        again = f"{name} is as of commit {taken}: data.revision={taken} takes it again"
        return loaded, [again] * (taken != self.revision)


def _cached(name: str, config: str | None, commit: str | None) -> Any:
    """What the library's cache has of a commit; ``None`` for nothing, or where none is given."""
    from datasets.packaged_modules.cache.cache import Cache

    if not re.fullmatch("[0-9a-f]{40}", commit or ""):
        return None
    last = name.rpartition("/")[2]
    try:
        kept = Cache(repo_id=name, dataset_name=last, config_name=config, hash=commit)
        return kept.as_dataset()
    except Exception:  # nothing of it there, or not whole: it is fetched
        return None


def _asked(name: str, revision: str | None) -> tuple[str | None, str]:
    """The commit that ``revision`` is on the hub, or why nobody says. Raises DataError where the
    hub refuses."""
    import datasets
    from huggingface_hub import HfApi, errors

    if datasets.config.HF_HUB_OFFLINE:
        return None, "offline mode is on"
    try:
        return HfApi().dataset_info(name, revision=revision).sha, ""
    except errors.RevisionNotFoundError as error:
        what = f"there is no revision '{revision}'"
        raise DataError(name, what, "give another data.revision", 36) from error
    except Exception as error:  # of the hub, or of the network
        status = getattr(getattr(error, "response", None), "status_code", 500)
        if status in (401, 403, 404):
            what = f"there is no such data set, or not for you (HTTP {status})"
            fix = "check the name, or set HF_TOKEN to a token that may read it"
            raise DataError(name, what, fix, 36) from error
        return None, _in_a_line(error)[:100]


def _not_opened(where: object, error: object, fix: str) -> DataError:
    return DataError(where, f"cannot be opened by datasets ({_in_a_line(error)[:200]})", fix, 36)


def _in_a_line(error: object) -> str:
    """What went wrong, without the queries of addresses, which may be signed."""
    said = re.sub(r"[?][^\s']*", "", " ".join(str(error).split()))
    return printable(said) or type(error).__name__


def _cells(key: str, table: Any, columns: Columns, split: str) -> Iterator[TableRow]:
    """The rows of one part, from the files that the library has mapped."""
    files = [Path(entry["filename"]) for entry in table.cache_files]
    try:
        rows = [row for file in files for row in _rows(file, columns)]
    except (OSError, ValueError, KeyError) as error:
        what = f"'{key}' cannot be read ({printable(error)[:200]})"
        raise DataError(files[0].parent, what, "write it again with save_to_disk", 37) from error
    _compare(key, table, columns, rows)
    values = [row.label for row in rows]
    words = lists_in if columns.kinds[1:2] == ("list",) else labels_in
    labels = words(values, columns.classes, columns.label, f"{key} of data")
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        where = None if isinstance(row.place, NullCell) and row.path else row.place
        yield TableRow(f"{key}#{number}", where, row.path, label, row.split or split, row.group)


class _ArrowRow(NamedTuple):
    """A row as its file has it."""

    place: ImagePlace
    path: str
    label: Any
    split: str
    group: str


def _rows(file: Path, columns: Columns) -> Iterator[_ArrowRow]:
    """The rows of an Arrow file in their order."""
    import pyarrow as arrow

    number = 0
    with arrow.memory_map(str(file)) as source:
        begin, size = source.read_buffer(1).address, source.size()
        source.seek(0)
        for batch in arrow.ipc.open_stream(source):
            data, paths = _split(batch.column(columns.image), columns)
            places = _places(file, number, data, (begin, size))
            small = [
                batch.column(name).to_pylist() if name else [None] * batch.num_rows
                for name in (columns.label, columns.split, columns.group)
            ]
            for at, path, label, *words in zip(places, paths, *small, strict=False):
                split, group = ("" if word is None else str(word) for word in words)
                yield _ArrowRow(at, path or "", label, split, group)
            number += batch.num_rows


def _split(images: Any, columns: Columns) -> tuple[Any, list[str | None]]:
    """The bytes, ``None`` where there are only paths, and the paths of a column of images."""
    if columns.kinds[0] == "struct":
        names = [images.type.field(i).name for i in range(images.type.num_fields)]
        inner = dict(zip(names, images.flatten(), strict=True))
        return inner["bytes"], inner["path"].to_pylist()
    if columns.kinds[0] == "bytes":
        return images, [None] * len(images)
    return None, images.to_pylist()


def _places(file: Path, first: int, data: Any, mapped: tuple[int, int]) -> Iterator[ImagePlace]:
    """Where in the file the bytes of rows from ``first`` on are; the file is ``mapped`` at an
    address, in so many bytes. Without end where ``data`` is ``None``: no row has any."""
    import numpy as np

    if data is None:
        yield from (NullCell(file, row) for row in count(first))
    begin, size = mapped
    _, offsets, values = data.buffers()
    width = np.int64 if str(data.type).startswith("large_") else np.int32
    ends = np.frombuffer(offsets, width)[data.offset : data.offset + len(data) + 1].tolist()
    # An array without a value has no bytes of its own.
    at = values.address - begin if values is not None and ends[-1] > ends[0] else 0
    if not 0 <= at <= at + ends[-1] <= size:
        raise ValueError("its columns are compressed")
    for i, there in enumerate(data.is_valid().to_pylist()):
        start, end = ends[i : i + 2]
        row = first + i
        yield FileSpan(file, row, at + start, end - start) if there else NullCell(file, row)


def _compare(key: str, table: Any, columns: Columns, rows: Sequence[_ArrowRow]) -> None:
    """Raise DataError where the files have other rows than the library says that they have."""
    same = len(rows) == len(table)
    for at in sorted({0, len(rows) // 2, len(rows) - 1}) if same and rows else ():
        cell = table.with_format("arrow")[at : at + 1]
        image = cell.column(columns.image)[0].as_py()
        data = image["bytes"] if isinstance(image, dict) else image
        if isinstance(data, bytes):
            same &= (
                not isinstance(rows[at].place, NullCell) and read_file(rows[at].place)[0] == data
            )
        if columns.label:
            same &= rows[at].label == cell.column(columns.label)[0].as_py()
    if not same:
        what = f"the files of '{key}' have other rows than the data set, or in another order"
        raise DataError(key, what, "save_to_disk it, and give that folder to data.root", 37)
