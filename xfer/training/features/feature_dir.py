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
from contextlib import contextmanager, suppress
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
class Slot:
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
        return _stamp(self.array), _stamp(self.manifest)

    def clear(self) -> None:
        """Remove everything but the lock, which the caller must hold alone."""
        parts = self.folder.glob(f".{self.digest}.*.part")
        for path in (self.manifest, self.array, *parts):
            path.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = path.lstat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


@dataclass(frozen=True)
class _Content:
    """What is there of one digest: ``size`` bytes, read last at ``used`` (ns; 0 when unknown)."""

    slot: Slot
    size: int
    used: int
    whole: bool


def _contents(folder: Path) -> list[_Content]:
    """Every digest of which there is a file, the least recently used first."""
    found: dict[str, dict[str, os.stat_result]] = {}
    with suppress(OSError), os.scandir(folder) as files:
        for file in files:
            if named := _OURS.fullmatch(file.name):
                with suppress(FileNotFoundError):
                    facts = file.stat(follow_symlinks=False)
                    found.setdefault(named[1], {})[named[2]] = facts
    contents = []
    for digest, kinds in found.items():
        size = sum(facts.st_size for facts in kinds.values())
        used = kinds["json"].st_mtime_ns if "json" in kinds else 0
        contents.append(_Content(Slot(folder, digest), size, used, {"npy", "json"} <= set(kinds)))
    return sorted(contents, key=lambda content: (content.used, content.slot.digest))


def size_of(folder: Path) -> int:
    """Bytes of all entries in ``folder``, unfinished ones included; 0 when none can be listed."""
    return sum(content.size for content in _contents(folder))


def make_room(folder: Path, limit: float, keep: Slot) -> None:
    """Remove what killed processes left, then the least recently used entries over ``limit`` bytes.

    ``keep`` and entries whose lock is held stay, so more than ``limit`` may remain.
    """
    contents = [c for c in _contents(folder) if c.whole or c.slot == keep or not _discard(c)]
    total = sum(content.size for content in contents)
    for content in contents:
        if total > limit and content.whole and content.slot != keep and _discard(content):
            total -= content.size
            log.info("%s was used least recently: removed", content.slot.array)


def _discard(content: _Content) -> bool:
    """Remove it unless somebody works on it, or has since it was listed."""
    try:
        with locked(content.slot, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if content not in _contents(content.slot.folder):
                return False
            content.slot.clear()
            return True
    except (OSError, OutputError):
        return False  # in use, or in a folder that may only be read


def check_room(slot: Slot, size: int, max_gb: float) -> None:
    """Make room for ``size`` bytes. Raises OutputError when limit or disk have too little."""
    need = size / _GB
    if need > max_gb:
        raise OutputError(
            slot.folder,
            f"the features take {need:.3g} GB, more than features.max_gb={max_gb:g}",
            f"features.max_gb={math.ceil(need)}, or features=never",
            10,
        )
    with told(slot.array):
        make_room(slot.folder, (max_gb - need) * _GB, keep=slot)
        free = shutil.disk_usage(slot.folder).free / _GB
    if need > free:
        raise OutputError(
            slot.folder,
            f"the features take {need:.3g} GB, and {free:.3g} GB are free",
            "free space, choose features.dir=DIR, or features=never",
            11,
        )


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line with the remedies of this folder."""
    try:
        yield
    except (OSError, OutputError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or str(cause)
        raise OutputError(
            path,
            f"cannot be written ({reason})",
            "free space, choose features.dir=DIR, or features=never",
            12,
        ) from error


@contextmanager
def locked(slot: Slot, how: int, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the slot's lock as ``how`` (of ``fcntl``) says; ``waiting`` is told for whom one waits.

    A folder that may only be read is read without. Raises OutputError when it cannot be held.
    """
    with told(slot.lock):
        held = _held(slot, how, waiting or waits(f"works on {slot.array}"))
    try:
        yield
    finally:
        if held is not None:
            if how & fcntl.LOCK_EX and not os.path.lexists(slot.manifest):
                with suppress(OSError):
                    slot.lock.unlink()
            held.close()


def _held(slot: Slot, how: int, waiting: Callable[[str], None]) -> Lock | None:
    while (handle := _opened(slot.lock, how)) is not None:
        held = Lock(handle, how, waiting)
        try:
            # Whoever had it before may have removed the file: then others lock a new one.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), slot.lock.lstat()):
                    return held
        except BaseException:
            held.close()
            raise
        held.close()
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
def part_of(slot: Slot) -> Iterator[tuple[Path, Callable[[memoryview], None]]]:
    """A temporary file of the slot, and what appends to it; gone at the end, if still there."""
    with told(slot.array):
        handle, name = tempfile.mkstemp(".part", f".{slot.digest}.", slot.folder)

    def put(piece: memoryview) -> None:
        with told(slot.array):
            while piece:
                piece = piece[os.write(handle, piece) :]

    try:
        yield Path(name), put
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def open_plain(path: Path) -> io.FileIO:
    """A plain file, unbuffered; never a link, a folder or a pipe. Raises OSError."""
    return os.fdopen(handle_of(path, follow=False), "rb", buffering=0)
