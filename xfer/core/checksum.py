"""A checksum inside a torch zip file, so that a flipped bit is noticed wherever the file goes.

zip's own checksums are not looked at by torch: tensors with a flipped bit load without a word.
The sha256 of the file is its zip comment, which every reader of zip files skips.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

_MARK = b"xfer-sha256:"
_LENGTH = len(_MARK) + 64
_ENDING = struct.pack("<H", _LENGTH)


def seal(path: Path) -> None:
    """Append the sha256 of a zip file without a comment, as its comment."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with path.open("r+b") as stream:
        # A zip file without a comment ends with the comment's length, zero.
        stream.seek(-2, 2)
        if stream.read() != b"\0\0":
            raise ValueError(f"{path} is no zip file without a comment")
        stream.seek(-2, 2)
        stream.write(_ENDING + _MARK + digest.encode())


def seal_bytes(tail: bytes) -> int:
    """How many of the last bytes of a file are a seal."""
    return _LENGTH if tail[-_LENGTH - 2 :].startswith(_ENDING + _MARK) else 0


def sealed(path: Path) -> bool | None:
    """Whether a file's bytes are those that were sealed; ``None`` when it has no seal."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size < _LENGTH + 2:
            return None
        stream.seek(-_LENGTH, 2)
        tail = stream.read()
        if not tail.startswith(_MARK):
            return None
        stream.seek(0)
        digest, left = hashlib.sha256(), size - _LENGTH - 2
        while left and (chunk := stream.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
        length = stream.read(2)
    digest.update(b"\0\0")
    whole = not left and length == _ENDING
    return whole and digest.hexdigest().encode() == tail[len(_MARK) :]
