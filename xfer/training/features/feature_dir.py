"""A folder of entries that several processes read, fill and empty at the same time.

An entry is named by a digest of 64 hex digits: ``<digest>.npy`` and its manifest
``<digest>.json``, which is written last; ``<digest>.lock`` decides who may write. Files of
other names are left alone.
"""

from __future__ import annotations

import errno
import fcntl
import io
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xfer.core.errors import OutputError
from xfer.core.files import handle_of
from xfer.core.locks import Lock, waits
from xfer.core.log import log

_OURS = re.compile(r"\.?([0-9a-f]{64})\.(npy|json|lock|\S+\.part)")
_GB = 1e9
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class EntryFiles:
    """The files of one digest in ``folder``."""

    folder: Path
    digest: str

    @property
    def array(self) -> Path:
        """The numbers."""
        return self.folder / f"{self.digest}.npy"

    @property
    def manifest(self) -> Path:
        """What the numbers are; its time says when they were last used."""
        return self.folder / f"{self.digest}.json"

    @property
    def lock(self) -> Path:
        """Held shared by who reads, alone by who writes or removes."""
        return self.folder / f"{self.digest}.lock"

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Array and manifest as they are now; ``None`` for one that is not there."""
        stamps: list[tuple[int, int, int] | None] = [None, None]
        for i, path in enumerate((self.array, self.manifest)):
            with suppress(OSError):
                facts = path.lstat()
                stamps[i] = facts.st_ino, facts.st_size, facts.st_mtime_ns
        return tuple(stamps)

    def clear(self) -> None:
        """Remove everything but the lock, which the caller must hold alone."""
        parts = self.folder.glob(f".{self.digest}.*.part")
        for path in (self.manifest, self.array, *parts):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Content:
    """What is there of one digest: ``size`` bytes, read last at ``used`` (ns; 0 when unknown)."""

    entry: EntryFiles
    size: int
    used: int
    whole: bool


def _contents(folder: Path) -> list[_Content]:
    """Every digest of which there is a file, the least recently used first."""
    by_digest: dict[str, dict[str, os.stat_result]] = {}
    with suppress(OSError), os.scandir(folder) as files:
        for file in files:
            if named := _OURS.fullmatch(file.name):
                with suppress(FileNotFoundError):
                    facts = file.stat(follow_symlinks=False)
                    by_digest.setdefault(named[1], {})[named[2]] = facts
    contents = []
    for digest, kinds in by_digest.items():
        size = sum(facts.st_size for facts in kinds.values())
        used = kinds["json"].st_mtime_ns if "json" in kinds else 0
        whole = {"npy", "json"} <= set(kinds)
        contents.append(_Content(EntryFiles(folder, digest), size, used, whole))
    return sorted(contents, key=lambda content: (content.used, content.entry.digest))


def make_room(folder: Path, limit: float, keep: EntryFiles) -> None:
    """Remove what killed processes left, then the least recently used entries over ``limit`` bytes.

    ``keep`` and entries whose lock is held stay, so more than ``limit`` may remain.
    """
    contents = [c for c in _contents(folder) if c.whole or c.entry == keep or not _discard(c)]
    total = sum(content.size for content in contents)
    for content in contents:
        if total > limit and content.whole and content.entry != keep and _discard(content):
            total -= content.size
            log.info("%s was used least recently: removed", content.entry.array)


def _discard(content: _Content) -> bool:
    """Remove it unless somebody works on it, or has since it was listed."""
    try:
        with locked(content.entry, fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            if not held or content not in _contents(content.entry.folder):
                return False
            content.entry.clear()
            return True
    except (OSError, OutputError):
        return False  # in use, or in a folder that may only be read


def check_room(entry: EntryFiles, size: int, max_gb: float) -> None:
    """Make room for ``size`` bytes. Raises OutputError when limit or disk have too little."""
    need = size / _GB
    takes = f"the features take {need:.3g} GB"
    if need > max_gb:
        what = f"{takes}, more than features.max_gb={max_gb:g}"
        fix = f"features.max_gb={math.ceil(need)}, or features=never"
        raise OutputError(entry.folder, what, fix, 10)
    with storage_errors(entry.array):
        make_room(entry.folder, (max_gb - need) * _GB, keep=entry)
        free = shutil.disk_usage(entry.folder).free / _GB
    if need > free:
        raise OutputError(entry.folder, f"{takes}, and {free:.3g} GB are free", _FIX, 11)


_FIX = "free space, choose features.dir=DIR, or features=never"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line with the remedies of this folder."""
    try:
        yield
    except (OSError, OutputError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or str(cause)
        raise OutputError(path, f"cannot be written ({reason})", _FIX, 12) from error


@contextmanager
def locked(
    entry: EntryFiles, how: int, waiting: Callable[[str], None] | None = None
) -> Iterator[bool]:
    """Hold the entry's lock as ``how`` (of ``fcntl``) says; ``waiting`` is called with the process
    that one waits for.

    A folder that may only be read is read without, and so is one that cannot be locked: it is not
    held then. Raises OutputError when it cannot be held.
    """
    with storage_errors(entry.lock):
        lock = _lock(entry, how, waiting or waits(f"works on {entry.array}"))
    held = lock is not None and lock.held
    try:
        yield held
    finally:
        if lock is not None:
            if held and how & fcntl.LOCK_EX and not os.path.lexists(entry.manifest):
                with suppress(OSError):
                    entry.lock.unlink()
            lock.close()


def _lock(entry: EntryFiles, how: int, waiting: Callable[[str], None]) -> Lock | None:
    while (handle := _opened(entry.lock, how)) is not None:
        with ExitStack() as stack:
            lock = stack.enter_context(Lock(handle, how, waiting))
            # Whoever had it before may have removed the file: then others lock a new one.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), entry.lock.lstat()):
                    stack.pop_all()
                    return lock
    return None


def _opened(lock: Path, how: int) -> int | None:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return handle_of(lock, os.O_RDWR | os.O_CREAT, follow=False)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        # Another user's lock, or a folder that may only be read.
        with suppress(OSError):
            return handle_of(lock, follow=False)
        if how == fcntl.LOCK_SH:
            return None
        raise


@contextmanager
def temporary_part(entry: EntryFiles) -> Iterator[tuple[Path, Callable[[memoryview], None]]]:
    """A temporary file of the entry, and what appends to it; gone at the end, if still there."""
    with storage_errors(entry.array):
        handle, name = tempfile.mkstemp(".part", f".{entry.digest}.", entry.folder)

    def append(piece: memoryview) -> None:
        with storage_errors(entry.array):
            while piece:
                piece = piece[os.write(handle, piece) :]

    try:
        yield Path(name), append
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def open_plain(path: Path) -> io.FileIO:
    """A plain file, unbuffered; never a link, a folder or a pipe. Raises OSError."""
    return os.fdopen(handle_of(path, follow=False), "rb", buffering=0)
