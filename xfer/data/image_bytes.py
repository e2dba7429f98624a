"""Where the bytes of an image are, a file or a part of one, and how they are read."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from xfer.core.files import handle_of

MAX_BYTES = 1 << 30
"""Bytes of one image."""


class PartOfFile(Protocol):
    """An image that is a part of a file: a member of a shard, a cell of a table, a row of an array.

    The text of one names the file and the part, and is another for every part.
    """

    @property
    def file(self) -> Path:
        """The file that it is in."""
        ...

    @property
    def name(self) -> str:
        """What it is called below the folder of that file, or in that file."""
        ...

    def read(self) -> tuple[bytes, str]:
        """Its bytes, and its stamp when they were read, empty where the file was written to
        meanwhile. Raises OSError and ValueError."""
        ...

    def stamp(self) -> str:
        """What an edit of the file would change, as it is now. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in the tar file ``file``: ``size`` bytes from the byte ``start`` on, called
    ``name`` there. ``sha256`` is that of the bytes that were packed, empty where nothing says."""

    file: Path
    name: str
    start: int
    size: int
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"

    def read(self) -> tuple[bytes, str]:
        """See :meth:`PartOfFile.read`."""
        return read_span(self.file, self.start, self.size)

    def stamp(self) -> str:
        """See :meth:`PartOfFile.stamp`."""
        return span_stamp(self.file.stat(), self.start, self.size)


@dataclass(frozen=True, slots=True)
class RowOfTable:
    """Row ``row``, from 0, of the table in ``file``."""

    file: Path
    row: int

    def __str__(self) -> str:
        return f"{self.file}#{self.row}"

    @property
    def name(self) -> str:
        """See :attr:`PartOfFile.name`."""
        return f"{self.file.name}#{self.row}"


@dataclass(frozen=True, slots=True)
class FileSpan(RowOfTable):
    """An image in a row of a table whose file has it as it is, uncompressed: ``size`` bytes from
    the byte ``start`` on."""

    start: int
    size: int

    def read(self) -> tuple[bytes, str]:
        """See :meth:`PartOfFile.read`."""
        return read_span(self.file, self.start, self.size)

    def stamp(self) -> str:
        """See :meth:`PartOfFile.stamp`."""
        return span_stamp(self.file.stat(), self.start, self.size)


@dataclass(frozen=True, slots=True)
class NullCell(RowOfTable):
    """A row of a table that has no image."""

    def read(self) -> tuple[bytes, str]:
        """Raise ValueError: there is nothing to read."""
        raise ValueError("its cell is null")

    def stamp(self) -> str:
        """See :meth:`PartOfFile.stamp`."""
        return stamp_of(self.file.stat())


ImagePlace = Path | PartOfFile
"""A file of its own, or a part of one."""


def read_file(place: ImagePlace) -> tuple[bytes, str]:
    """The bytes of one image, and its stamp when all of it was read.

    Raises OSError, and ValueError for what is no regular file and for more than ``MAX_BYTES``.
    """
    if not isinstance(place, Path):
        return place.read()
    # Opening a pipe would wait for a writer, for ever.
    if not place.is_file() and place.exists():
        raise ValueError("it is not a regular file")
    with place.open("rb") as stream:
        facts = os.fstat(stream.fileno())
        if facts.st_size > MAX_BYTES:
            raise ValueError(f"{facts.st_size} bytes; more than {MAX_BYTES}")
        data = stream.read()
        stamp = stamp_of(os.fstat(stream.fileno()))
    # A file that was written to meanwhile has no stamp that a scan could have seen.
    return data, stamp if stamp == stamp_of(facts) else ""


def read_span(file: Path, start: int, size: int) -> tuple[bytes, str]:
    """``size`` bytes of ``file`` from the byte ``start`` on, as :meth:`PartOfFile.read`."""
    handle = handle_of(file)
    try:
        before = os.fstat(handle)
        data = os.pread(handle, size, start)
        after = os.fstat(handle)
    finally:
        os.close(handle)
    if len(data) != size:
        raise ValueError("its file ends before it does")
    stamp = span_stamp(after, start, size)
    return data, stamp if stamp == span_stamp(before, start, size) else ""


def stamp_now(place: ImagePlace) -> str:
    """What an edit of the image's file would change, as it is now. Raises OSError."""
    return stamp_of(place.stat()) if isinstance(place, Path) else place.stamp()


def span_stamp(facts: os.stat_result, start: int, size: int) -> str:
    """The stamp of a part of a file."""
    return f"{stamp_of(facts)}-{start}-{size}"


def stamp_of(facts: os.stat_result) -> str:
    """Size and times of a file: while they are the same, so is its content."""
    return f"{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"


def stamp_key(place: ImagePlace, stamp: str) -> int:
    """64 bits of an image's place and stamp: another number once either is another."""
    text = f"{place}\0{stamp}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
