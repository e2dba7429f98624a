"""What scans have seen, in columns: in memory while a run is planned, and in a file for the next.

The file is a zip archive of plain columns, uncompressed, whose checksums say when it is damaged. A
row is known by 64 bits of the image's place and stamp. Long columns lie in a temporary file that
has no name, so that the system can take their memory back: they are read through once or twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from annotated_types import Ge

from xfer.core.errors import OutputError
from xfer.core.files import atomic_write, open_to_read, parsed
from xfer.core.long_array import zeros
from xfer.core.read_back import checked
from xfer.data.bit_depth import Extent

if TYPE_CHECKING:
    from xfer.data.image import Scanned, Size

    Column = npt.NDArray[Any]

_VERSION = 7
_FORMS = {
    "keys": ("<u8", ()),
    "digests": ("u1", (32,)),
    "looks": ("u1", (32,)),
    "seen": ("u1", ()),
    "sizes": ("<u4", (2,)),
}
_BLOCK = 1 << 10  # rows that are copied at a time
_MOST_FACTS = 1 << 28  # bytes


class _CacheFacts(NamedTuple):
    version: int
    rows: Annotated[int, Ge(0)]
    deep: list[tuple[Annotated[int, Ge(0)], str, int | float, int | float]]


@dataclass(eq=False)
class ScanColumns:
    """What is known of n images: ``keys`` uint64 (n,) of place and stamp, ``digests`` uint8 (n, 32)
    the sha256, ``looks`` uint8 (n, 32) where ``seen`` uint8 (n,) says that there is one, ``sizes``
    uint32 (n, 2), and what the pixels of ``deep`` ones reach, by position."""

    keys: Column
    digests: Column
    looks: Column
    seen: Column
    sizes: Column
    deep: dict[int, Extent] = field(default_factory=dict)

    @classmethod
    def empty(cls, keys: Column) -> ScanColumns:
        """Columns for images of these keys, of which nothing is known yet."""
        columns = {name: _column(name, len(keys)) for name in list(_FORMS)[1:]}
        return cls(keys=keys, **columns, deep={})

    def __len__(self) -> int:
        return len(self.keys)

    def digest(self, at: int) -> str:
        """The sha256 of an image in hex; empty for one that could not be read."""
        data = self.digests[at].tobytes()
        return data.hex() if any(data) else ""

    def look(self, at: int) -> str:
        """The look of an image in hex, empty for none."""
        return self.looks[at].tobytes().hex() if self.seen[at] else ""

    def size(self, at: int) -> Size:
        """Width and height in pixels."""
        width, height = self.sizes[at].tolist()
        return width, height

    def scanned(self, at: int) -> Scanned:
        """The key of an image and its sha256."""
        return int(self.keys[at]), self.digest(at)

    def put(self, at: int, digest: str, look: str, reach: Extent | None, size: Size) -> None:
        """Note what was read of the image at a position."""
        self.digests[at] = np.frombuffer(bytes.fromhex(digest), np.uint8)
        if look:
            self.looks[at], self.seen[at] = np.frombuffer(bytes.fromhex(look), np.uint8), 1
        if reach:
            self.deep[at] = reach
        self.sizes[at] = size


class Known:
    """The rows of a cache ``file``; none where there is no file that can be read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with _opened(file) as archive:
                self.columns = _read(archive)
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
            # A cache that cannot be read is made again.
            self.columns = ScanColumns.empty(np.empty(0, np.uint64))
        self._others = np.ones(len(self.columns), bool)  # the rows that nobody has asked for

    def of(self, keys: Column) -> tuple[ScanColumns, npt.NDArray[np.int32]]:
        """The columns of images with these keys, and the positions of those that are not known."""
        known = self.columns
        if np.array_equal(known.keys, keys):
            return known, np.empty(0, np.int32)
        columns, order = ScanColumns.empty(keys), np.argsort(known.keys)
        hit = np.zeros(len(keys), bool)
        for part in _blocks(len(keys)):
            at = _places(known.keys, order, keys[part])
            here = np.flatnonzero(at >= 0)
            hit[part][here] = True
            self._others[at[here]] = False
            for name in list(_FORMS)[1:]:
                getattr(columns, name)[part][here] = getattr(known, name)[at[here]]
            if known.deep:
                pairs = zip((here + part.start).tolist(), at[here].tolist(), strict=True)
                columns.deep |= {i: known.deep[j] for i, j in pairs if j in known.deep}
        return columns, np.flatnonzero(~hit).astype(np.int32)

    def write(
        self,
        columns: ScanColumns,
        good: Column,
        names: Iterable[str],
        is_there: Callable[[str], bool],
    ) -> None:
        """Write the rows of ``columns`` at the positions ``good``, which are called ``names``, and
        those of images that :meth:`of` was not asked for and that are still there. A folder that
        cannot be written costs the next run its scan, nothing else."""
        known = self.columns
        left: list[int] = []
        with contextlib.suppress(OSError, EOFError, zipfile.BadZipFile):
            others = np.flatnonzero(self._others)
            left += [i for i, name in self._names(others) if is_there(name)]
        rest = np.array(left, np.int64)
        deep = [[i, *columns.deep[at]] for i, at in _deep(good, columns)]
        deep += [[len(good) + i, *known.deep[at]] for i, at in _deep(rest, known)]
        facts = [_VERSION, len(good) + len(rest), deep]

        def fill(part: Path) -> None:
            with zipfile.ZipFile(part, "w") as archive:
                archive.writestr("facts.json", json.dumps(facts))
                for name in _FORMS:
                    with archive.open(name, "w", force_zip64=True) as stream:
                        _copy(getattr(columns, name), good, stream)
                        _copy(getattr(known, name), rest, stream)
                with archive.open("names", "w", force_zip64=True) as stream:
                    for name in names:
                        stream.write(name.encode("utf-8", "surrogateescape") + b"\0")
                    for _, name in self._names(rest):
                        stream.write(name.encode("utf-8", "surrogateescape") + b"\0")

        with contextlib.suppress(OutputError):
            atomic_write(self.file, fill)

    def _names(self, positions: Column) -> Iterator[tuple[int, str]]:
        """The names of the rows at some positions, which are in order."""
        if not len(positions):
            return
        wanted, rest, at = iter(map(int, positions)), b"", 0
        following = next(wanted, None)
        with _opened(self.file) as archive, archive.open("names") as stream:
            while following is not None and (data := stream.read(1 << 20)):
                *whole, rest = (rest + data).split(b"\0")
                for name in whole:
                    if at == following:
                        yield at, name.decode("utf-8", "surrogateescape")
                        following = next(wanted, None)
                    at += 1


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    with open_to_read(file) as stream, zipfile.ZipFile(stream) as archive:
        yield archive


def _read(archive: zipfile.ZipFile) -> ScanColumns:
    """The columns of an archive. Raises ValueError for one that is of another form."""
    if archive.getinfo("facts.json").file_size > _MOST_FACTS:
        raise ValueError("more than a cache says")
    facts = checked(_CacheFacts, parsed(archive.read("facts.json").decode()))
    if facts.version != _VERSION:
        raise ValueError("another version")
    columns: dict[str, Column] = {}
    for name in _FORMS:
        info, (form, shape) = archive.getinfo(name), _FORMS[name]
        size = facts.rows * math.prod(shape) * np.dtype(form).itemsize
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != size:
            raise ValueError("another length")
        column = _column(name, facts.rows)
        with archive.open(info) as stream:
            for part in _blocks(facts.rows):
                data = stream.read(column[part].nbytes)
                column[part] = np.frombuffer(data, column.dtype).reshape(column[part].shape)
            stream.read(1)  # at its end, the checksum is compared
        columns[name] = column
    deep = {at: Extent(*reach) for at, *reach in facts.deep}
    if any(at >= facts.rows for at in deep):
        raise ValueError("a row that is not there")
    return ScanColumns(**columns, deep=deep)


def _column(name: str, count: int) -> Column:
    form, shape = _FORMS[name]
    return zeros((count, *shape), form)


def keys_of(keys: Iterable[int], count: int) -> Column:
    """The ``count`` keys of images as the column that :class:`ScanColumns` has."""
    column, remaining = _column("keys", count), iter(keys)
    for part in _blocks(count):
        size = part.stop - part.start
        column[part] = np.fromiter(islice(remaining, size), np.uint64, size)
    return column


def positions_but(count: int, without: Collection[int]) -> npt.NDArray[np.int32]:
    """The positions 0 to ``count`` - 1 but for some."""
    positions = np.arange(count, dtype=np.int32)
    return np.delete(positions, sorted(without)) if without else positions


def _blocks(count: int) -> Iterator[slice]:
    return (slice(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK))


def _places(known: Column, order: Column, keys: Column) -> Column:
    """The positions of ``keys`` in ``known``, which ``order`` sorts; -1 where one is not there."""
    if not len(known):
        return np.full(len(keys), -1)
    found = np.minimum(np.searchsorted(known, keys, sorter=order), len(known) - 1)
    return np.where(known[order[found]] == keys, order[found], -1)


def _deep(positions: Column, columns: ScanColumns) -> list[tuple[int, int]]:
    if not columns.deep:
        return []
    return [(i, at) for i, at in enumerate(positions.tolist()) if at in columns.deep]


def _copy(column: Column, positions: Sequence[int] | Column, stream: IO[bytes]) -> None:
    for part in _blocks(len(positions)):
        stream.write(np.ascontiguousarray(column[positions[part]]).tobytes())
