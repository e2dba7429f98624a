"""Images in parquet files, read at random: at their offset where the file has them as they are,
else with their row group, of which a process holds a bounded number of bytes.

The library ``datasets`` writes images uncompressed and plainly encoded, one after another; where
pyarrow's answer stands so in the file, the place is noted, and an image is read by one call without
pyarrow. The places are cached by path, size, mtime and ctime.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xfer.core.errors import DataError, OutputError, printable
from xfer.core.files import cache_dir, open_to_read, read_json, write_text
from xfer.core.read_back import checked
from xfer.data.image_bytes import (
    FileSpan,
    ImagePlace,
    NullCell,
    RowOfTable,
    span_stamp,
    stamp_of,
)

HELD = 1 << 27
"""Bytes of row groups that a process holds, and one row group at least."""
_OPEN = 16  # files that a process has open
_AT_ONCE = 64  # images, where all of a file are looked at in turn
_CACHE_VERSION = 1
_LARGEST_CACHE = 1 << 30
_NULL, _PACKED = -1, -2  # in place of an offset


class _CachedSpans(NamedTuple):
    version: int
    stamp: str
    spans: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class GroupCell(RowOfTable):
    """An image in a row of a parquet file, read with the row group ``group``, in which it is number
    ``at``; ``column`` is that of the bytes."""

    column: str
    group: int
    at: int

    def read(self) -> tuple[bytes, str]:
        """See :meth:`xfer.data.image_bytes.PartOfFile.read`."""
        facts = self.file.stat()
        values = _HELD.values(self.file, stamp_of(facts), self.group, self.column)
        if self.at >= len(values):
            raise ValueError("its file has fewer rows by now")
        data = values[self.at].as_py()
        if data is None:
            raise ValueError("its cell is null")
        return data, span_stamp(facts, self.group, self.at)

    def stamp(self) -> str:
        """See :meth:`xfer.data.image_bytes.PartOfFile.stamp`."""
        return span_stamp(self.file.stat(), self.group, self.at)


class _RowGroups:
    """Files that are open and row groups that were read last; one thread reads at a time."""

    def __init__(self) -> None:
        self._process = -1
        self._begin()

    def _begin(self) -> None:
        """Forget what another process has opened: its lock may be held for ever here."""
        self._process, self._lock = os.getpid(), threading.Lock()
        self._files: OrderedDict[tuple[Path, str], Any] = OrderedDict()
        self._read: OrderedDict[tuple[Path, str, int, str], Any] = OrderedDict()

    def values(self, file: Path, stamp: str, group: int, column: str) -> Any:
        """The bytes of a row group as an Arrow array. Raises OSError and ValueError."""
        if self._process != os.getpid():
            self._begin()
        key = (file, stamp, group, column)
        with self._lock:
            if key not in self._read:
                self._read[key] = read_bytes_of(self._opened(file, stamp), group, column)
                while len(self._read) > 1 and sum(a.nbytes for a in self._read.values()) > HELD:
                    self._read.popitem(last=False)
            self._read.move_to_end(key)
            return self._read[key]

    def _opened(self, file: Path, stamp: str) -> Any:
        key = (file, stamp)
        if key not in self._files:
            self._files[key] = _opened(file)
            while len(self._files) > _OPEN:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(key)
        return self._files[key]


_HELD = _RowGroups()


def _opened(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``. Raises OSError for what is no plain file, and what pyarrow
    raises, which is an OSError or a ValueError."""
    from pyarrow import parquet

    open_to_read(path).close()
    # With a buffer a column is read a part at a time; without, a row group of it at once.
    return parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile`` that is closed at the end. Raises DataError for a file that
    is no parquet file, or a damaged one."""
    try:
        with _opened(path) as file:
            yield file
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or printable(error)[:200] or type(error).__name__
        what = f"cannot be read as a parquet file ({reason})"
        raise DataError(path, what, "copy or write it again", 34) from error


def read_bytes_of(file: Any, group: int, column: str) -> Any:
    """The column of bytes of a row group, as an Arrow array in chunks."""
    import pyarrow as arrow

    # Threads of its own would not be there any more in a worker process.
    whole = file.read_row_group(group, columns=[column], use_threads=False).column(0)
    if arrow.types.is_struct(whole.type):
        # flatten() knows that the bytes of a null struct are null; field() does not.
        inner = [chunk.flatten()[0] for chunk in whole.chunks]
        return arrow.chunked_array(inner, type=whole.type.field(0).type)
    return whole


def _values(file: Any, group: int, column: str) -> Iterator[Any]:
    """The bytes of a row group in turn, a few at a time: it may be the whole file."""
    some = {"row_groups": [group], "columns": [column], "use_threads": False}
    for batch in file.iter_batches(batch_size=_AT_ONCE, **some):
        values = batch.column(0)
        yield from values.flatten()[0] if hasattr(values, "field") else values


def places_in(path: Path, column: str) -> list[ImagePlace]:
    """Where the image of every row is. Raises DataError for what cannot be read."""
    places: list[ImagePlace] = []
    with reading(path) as file:
        spans = _spans(path, column, file)
        for group in range(file.metadata.num_row_groups):
            for at in range(file.metadata.row_group(group).num_rows):
                row = len(places)
                start, size = spans[row]
                if start == _NULL:
                    places.append(NullCell(path, row))
                elif start == _PACKED:
                    places.append(GroupCell(path, row, column, group, at))
                else:
                    places.append(FileSpan(path, row, start, size))
    return places


def _spans(path: Path, column: str, file: Any) -> list[tuple[int, int]]:
    """Offset and bytes of the image in every row, from the cache where the file is the same."""
    stamp = stamp_of(path.stat())
    name = hashlib.sha256(f"{path.resolve()}\0{column}".encode(errors="surrogateescape"))
    cache = cache_dir() / "parquet" / f"{name.hexdigest()[:24]}.json"
    try:
        known = checked(_CachedSpans, read_json(cache, _LARGEST_CACHE))
        if (known.version, known.stamp) == (_CACHE_VERSION, stamp):
            return known.spans  # type: ignore[no-any-return]
    except (OSError, ValueError):
        pass  # a cache that cannot be read is made again
    with (
        open_to_read(path) as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw,
    ):
        groups = range(file.metadata.num_row_groups)
        spans = [span for group in groups for span in _in_group(file, group, column, raw)]
    if stamp == stamp_of(path.stat()):
        try:
            write_text(cache, json.dumps([_CACHE_VERSION, stamp, spans]))
        except OutputError:
            return spans  # a read-only home costs the next run its look, nothing else
    return spans


def _in_group(file: Any, group: int, column: str, raw: mmap.mmap) -> list[tuple[int, int]]:
    """Offset and bytes of every image of a row group; ``_PACKED`` for all where one is not in the
    file as it is."""
    facts = file.metadata.row_group(group)
    packed = [(_PACKED, 0)] * facts.num_rows
    chunks = [facts.column(i) for i in range(facts.num_columns)]
    chunk = next(one for one in chunks if one.path_in_schema == column)
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
        counted = chunk.statistics is not None and chunk.statistics.has_null_count
        if counted and chunk.statistics.null_count == 0:
            return packed
        valid = (value.is_valid for value in _values(file, group, column))
        return [(_PACKED if there else _NULL, 0) for there in valid]
    at = chunk.data_page_offset
    end = at + chunk.total_compressed_size
    spans = []
    for value in _values(file, group, column):
        if not value.is_valid:
            spans.append((_NULL, 0))
            continue
        data = value.as_py()
        # Before each are the four bytes of its length, before some a page's header as well.
        start = at + 4 if raw[at + 4 : at + 4 + len(data)] == data else raw.find(data, at, end)
        if start < 0:
            return packed
        spans.append((start, len(data)))
        at = start + len(data)
    return spans
