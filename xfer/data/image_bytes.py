"""Where the bytes of an image are, a file or a part of a tar file, and how they are read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from xfer.core.files import handle_of

MAX_BYTES = 1 << 30
"""Bytes of one image."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in the tar file ``shard``: ``size`` bytes from the byte ``start`` on, called
    ``name`` there. ``sha256`` is that of the bytes that were packed, empty where nothing says."""

    shard: Path
    name: str
    start: int
    size: int
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


ImagePlace = Path | TarMember
"""A file of its own, or a member of a shard."""


def read_file(place: ImagePlace) -> tuple[bytes, str]:
    """The bytes of one image, and its stamp when all of it was read.

    Raises OSError, and ValueError for what is no regular file and for more than ``MAX_BYTES``.
    """
    if isinstance(place, TarMember):
        return _read_member(place)
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


def _read_member(place: TarMember) -> tuple[bytes, str]:
    handle = handle_of(place.shard)
    try:
        before = os.fstat(handle)
        data = os.pread(handle, place.size, place.start)
        after = os.fstat(handle)
    finally:
        os.close(handle)
    if len(data) != place.size:
        raise ValueError("its shard ends before it does")
    stamp = _member_stamp(place, after)
    return data, stamp if stamp == _member_stamp(place, before) else ""


def stamp_now(place: ImagePlace) -> str:
    """What an edit of the image's file would change, as it is now. Raises OSError."""
    if isinstance(place, TarMember):
        return _member_stamp(place, place.shard.stat())
    return stamp_of(place.stat())


def stamp_of(facts: os.stat_result) -> str:
    """Size and times of a file: while they are the same, so is its content."""
    return f"{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"


def _member_stamp(place: TarMember, facts: os.stat_result) -> str:
    return f"{stamp_of(facts)}-{place.start}-{place.size}"
