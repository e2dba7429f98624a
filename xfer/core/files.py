"""Opening files that somebody else may have put there: regular ones alone, bounded in size.

A named pipe in a file's place would wait for ever, a device might never end, and a link in the
place of a file that is written to would lead out of the folder.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

LARGEST = 1 << 28
"""Bytes of a text file, unless its reader says otherwise."""
_DEEPEST = 100
"""How deep lists and objects may lie in each other: what xfer writes has a dozen levels."""


def handle_of(path: Path, flags: int = os.O_RDONLY, follow: bool = True) -> int:
    """Open a regular file and return its handle; ``follow`` also where a link leads to it.

    Raises OSError for anything else: a folder, a pipe, a device, a link that is not followed.
    """
    # Without O_NONBLOCK, opening a pipe would wait for who holds its other end.
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise OSError(error.errno, _is_instead(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, _is_instead(path))
    return handle


def _is_instead(path: Path) -> str:
    return "it is a symbolic link" if path.is_symlink() else "it is no plain file"


def open_to_read(path: Path) -> io.BufferedReader:
    """Open a regular file to read its bytes. Raises OSError for anything else."""
    return os.fdopen(handle_of(path), "rb")


def open_to_append(path: Path) -> IO[str]:
    """Open a regular file to append UTF-8, made where there is none; never through a link.

    Raises OSError for anything else in its place.
    """
    handle = handle_of(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, follow=False)
    return os.fdopen(handle, "a", encoding="utf-8", errors="backslashreplace")


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Read a regular file of at most ``most`` bytes. Raises OSError for any other."""
    with open_to_read(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return data


def read_text(path: Path, most: int = LARGEST) -> str:
    """Read a regular UTF-8 file of at most ``most`` bytes. Raises OSError or ValueError."""
    return read_bytes(path, most).decode()


def read_json(path: Path, most: int = LARGEST) -> Any:
    """Read what a regular JSON file holds. Raises OSError, or ValueError as :func:`parsed`."""
    return parsed(read_text(path, most))


def parsed(text: str) -> Any:
    """Parse JSON that somebody else may have written.

    Raises ValueError for what is no JSON, NaN and Infinity, and text that cannot be written as
    UTF-8 again. The names of files that are no UTF-8 are let through, as Python escapes them.
    """
    try:
        found = json.loads(text, parse_constant=_refuse)
        if r"\ud" in text.lower():
            json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a character (a lone surrogate)") from error
    if _is_deep(text, found):
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    return found


def _is_deep(text: str, found: Any) -> bool:
    """Whether lists and objects in ``found`` lie too deep in each other."""
    if text.count("[") + text.count("{") <= _DEEPEST:
        return False
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(_DEEPEST):
        inside = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for held in inside for child in held if isinstance(child, dict | list)]
    return bool(level)


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON")
