"""The member list of a zip file, checked before anything is unpacked."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path

from xfer.core.checksum import checksum_length
from xfer.core.errors import SafetyError, WeightsError

MEMBERS = 50_000
FREE = 16 * 1024 * 1024
"""What any file may unpack to, in bytes; larger ones at most to twice their own size."""

BROKEN = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, IndexError),
    *(struct.error, NotImplementedError, ArithmeticError, RuntimeError, MemoryError),
)
"""What zipfile was seen to raise on damaged bytes."""


def allowance(path: Path) -> int:
    """The bytes that the content of ``path`` may take in memory."""
    return max(FREE, 2 * path.stat().st_size)


def peek(path: Path) -> tuple[list[str], bool]:
    """The names in a zip file, and whether its directory is whole and of a usual length.

    Where it is not, there is the name of the first member.
    """
    try:
        if _directory(path)[0] <= MEMBERS:
            with zipfile.ZipFile(path) as archive:
                return archive.namelist(), True
    except BROKEN:
        pass
    with path.open("rb") as stream:
        head = stream.read(30 + 1024)
    length = int.from_bytes(head[26:28], "little")
    return [head[30 : 30 + length].decode("utf-8", "replace")], False


def members(path: Path) -> list[zipfile.ZipInfo]:
    """The members of a zip file.

    Raises WeightsError when it is cut or damaged; SafetyError when it has too many members, two
    of one name, a name that leads out of a folder, or unpacks to more than :func:`allowance`.
    """
    try:
        count, length = _directory(path)
        if count > MEMBERS or length > MEMBERS * 200:
            raise _hostile(path, f"lists {count} members")
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except BROKEN as error:
        raise damaged(path, str(error)) from error
    _check_names(path, [m.filename for m in listed])
    size, unpacked = path.stat().st_size, sum(m.file_size for m in listed)
    if any(m.flag_bits & 1 for m in listed):
        raise WeightsError(path, "is an encrypted zip archive", "unpack it with its password", 94)
    if sum(m.compress_size for m in listed) > size:
        raise _hostile(path, "has members that overlap")
    if unpacked > allowance(path):
        raise _hostile(path, f"unpacks from {size} to {unpacked} bytes")
    return listed


def _directory(path: Path) -> tuple[int, int]:
    """How many members the directory at the end declares, and its length in bytes.

    It must end where the file's end record begins, so that every reader of zip files, those that
    search and those that count from the start, finds the same one.
    """
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - 98 - 98))
        tail = stream.read()
    if comment := checksum_length(tail):
        # The one comment that is allowed is the checksum of xfer's own checkpoints.
        end, tail = end - comment, tail[: -comment - 2] + b"\x00\x00"
    tail = tail[-98:]
    if len(tail) < 22 or tail[-22:-18] != b"PK\x05\x06" or tail[-2:] != b"\x00\x00":
        raise ValueError("its end is missing")
    count, length, offset = struct.unpack("<HII", tail[-12:-2])
    if tail[-42:-38] == b"PK\x06\x07":
        if tail[:4] != b"PK\x06\x06" or struct.unpack("<Q", tail[-34:-26])[0] != end - 98:
            raise ValueError("its directory is missing")
        count, length, offset = struct.unpack("<QQQ", tail[32:56])
        end -= 76
    if offset + length != end - 22:
        raise ValueError("its directory is not at its end")
    return count, length


def _check_names(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise _hostile(path, "has two members of one name")
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0] or not name.isprintable():
            raise _hostile(path, f"has a member '{name[:60]}' that leads out of its folder")


def damaged(path: Path, why: str) -> WeightsError:
    """The error for a file that is cut or has wrong bytes; ``why`` in a few words."""
    lines = [line for part in why.splitlines() if (line := part.strip())] or ["no more is known"]
    what = f"is cut or damaged ({path.stat().st_size} bytes; {lines[0][:160]})"
    return WeightsError(path, what, "fetch it again and compare its size", 2)


def _hostile(path: Path, what: str) -> SafetyError:
    return SafetyError(path, what, "do not use it; fetch it from its publisher", 23)
