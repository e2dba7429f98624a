"""Files that are read only where they are plain files, and written whole or not at all.

A named pipe in a file's place would wait for ever, a device might never end, and a link in the
place of a file that is written to would lead out of the folder.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from xfer.core.errors import HomeError, OutputError

# No more than --help needs, which reads its pages through here.
if TYPE_CHECKING:
    from xfer.core.types import Plain

LARGEST = 1 << 28
"""Bytes of a text file, unless its reader says otherwise."""
_DEEPEST = 100
"""How deep lists and objects may be nested: what xfer writes has a dozen levels."""

# Here, because every module that reads a file imports this one first: it holds for every
# torch.load in this process, also those inside libraries.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


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
    return "it is a symbolic link" if path.is_symlink() else "it is not a regular file"


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
        value = json.loads(text, parse_constant=_refuse)
        if r"\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a character (a lone surrogate)") from error
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(value):
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    return value


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not valid JSON")


def _is_deep(value: Any) -> bool:
    """Whether lists and objects in ``value`` lie too deep in each other."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        inside = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for held in inside for child in held if isinstance(child, dict | list)]
    return bool(level)


def cache_dir() -> Path:
    """Where xfer keeps what can be made again: ``$XFER_CACHE``, else ``~/.cache/xfer``.

    Raises HomeError for a user without a home, as a number that a container was given.
    """
    try:
        return Path(os.environ.get("XFER_CACHE") or Path.home() / ".cache" / "xfer")
    except RuntimeError as error:
        what = "is not set, and nothing else says where this user's home is"
        raise HomeError("HOME", what, "type export HOME=DIR, where you may write", 0) from error


def path_problem(text: str) -> str:
    """Why no file can have this name, or nothing; that there is no such file is no reason."""
    try:
        os.lstat(Path(text).expanduser())
    except RuntimeError:
        return "names a home folder that does not exist"
    except ValueError:
        return "contains a character that file names cannot have"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "is longer than a path can be"
    return ""


def file_sha256(path: Path) -> str:
    """The sha256 of a regular file's bytes, in hex. Raises OSError for anything else."""
    import hashlib

    with open_to_read(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_of(path: Path) -> list[Path]:
    """``path`` itself where it is no folder, else every file below it, sorted."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def tree_sha256(path: Path) -> str:
    """The sha256 of a file; of a folder that of what ``sha256sum`` prints of its files, a line
    each, sorted by their paths in it. Raises OSError for anything else."""
    import hashlib

    if not path.is_dir():
        return file_sha256(path)
    lines = [f"{file_sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in files_of(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the target folder, then rename it to ``path``.

    The bytes and the folder entry are synced before this returns, so a kill at any moment
    leaves the old file or the new one. Raises OutputError when the folder cannot be written.
    """
    import tempfile

    part: Path | None = None
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{path.name}."
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=".part", dir=path.parent)
            os.close(handle)
            part = Path(name)
            write(part)
            mask = os.umask(0)  # it cannot be read without being set
            os.umask(mask)
            set_mode(part, 0o666 & ~mask)
            sync_folder(part)
            part.replace(path)
            sync_folder(path.parent)
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def atomic_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary folder beside ``path``, then rename it to ``path``.

    What is in it is synced before it has its name. A folder of that name is replaced: a kill at
    any moment leaves the old one, the new one or, between two renames, none. Raises OutputError
    when the folder cannot be written.
    """
    import tempfile

    part = old = None
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = f".{path.name}."
            part = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
            write(part)
            mask = os.umask(0)  # it cannot be read without being set
            os.umask(mask)
            set_mode(part, 0o777 & ~mask)
            for entry in (*part.rglob("*"), part):
                sync_folder(entry)  # a file as well
            if os.path.lexists(path):
                old = Path(f"{part}.old.part")
                path.replace(old)
            part.replace(path)
            sync_folder(path.parent)
    finally:
        for left in (part, old):
            if left is not None:
                remove(left)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing where there is neither."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def set_mode(path: Path, mode: int) -> None:
    """Set the permissions of one's own file or folder, where its file system has any: FAT, network
    shares of Windows and buckets give all files the same and refuse others."""
    with suppress(PermissionError):
        path.chmod(mode)


def sync_folder(path: Path) -> None:
    """Have what a folder lists written to the disk. Network shares and buckets sync files alone,
    and refuse folders."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    # surrogateescape: a file name that is no UTF-8 must not stop the report about it.
    atomic_write(path, lambda part: part.write_bytes(text.encode("utf-8", "surrogateescape")))


def write_json(path: Path, facts: object) -> None:
    """Write ``facts`` as indented JSON, atomically. NaN is refused: it is no JSON."""
    write_text(path, json.dumps(facts, indent=2, allow_nan=False, ensure_ascii=True) + "\n")


def write_rows(path: Path, rows: Sequence[Plain]) -> None:
    """Write ``rows`` as CSV, atomically; the first has every column, and ``None`` is left empty."""
    import csv

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def yaml_text(facts: Plain) -> str:
    """``facts`` as YAML, in their own order."""
    import yaml

    return str(yaml.safe_dump(facts, sort_keys=False))


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about an output into one line that names ``path``."""
    try:
        yield
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise OutputError(path, what, "free space or choose run.dir=DIR") from error
