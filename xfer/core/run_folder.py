"""Names of the files in a run folder, and the lock that one process at a time holds on it."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from xfer.core.errors import OutputError, SafetyError
from xfer.core.files import handle_of, remove
from xfer.core.locks import Lock

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
LOCK = ".lock"
JOB, OUTPUT, QUEUED = "job.json", "output.log", "queued.json"
FOLDS = "folds"
"""The folder of a cross-validation's jobs, each a whole run."""
BESIDE = (LOCK, JOB, OUTPUT, QUEUED, FOLDS)
"""What is in a run folder before and beside the run: what a sweep writes of a job, and folds."""


def checkpoints(folder: Path) -> Path:
    """Where a run folder holds its checkpoints."""
    return folder / "checkpoints"


def best_checkpoint(path: Path) -> Path:
    """The best checkpoint of a run folder; any other path is that of a checkpoint itself."""
    return checkpoints(path) / BEST if path.is_dir() else path


def what_is_kept(folder: Path) -> str:
    """What a run that was stopped has left to go on from, in words."""
    kept = (checkpoints(folder) / LAST).is_file()
    return "its state is saved" if kept else "before it had a state to save beside what is cached"


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that holds ``checkpoint``; ``None`` for a file that lies elsewhere."""
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent == checkpoints(folder) else None


_REMOVE = "remove it, or give another folder"


def lock(folder: Path, works: bool = True) -> Lock:
    """Hold the run folder until the returned lock is closed or the process ends; who ``works``
    there notes its number, and when it began.

    Raises OutputError when another process holds it, and not one that only asks.
    """

    def refuse(_: str) -> None:
        what = "another process is using this folder"
        raise OutputError(folder, what, "choose another run.dir", 3)

    handle = handle_of(folder / LOCK, os.O_WRONLY | os.O_CREAT | os.O_APPEND, follow=False)
    held = Lock(handle, waiting=refuse)
    if not held.held and _noted_at_work(folder):
        held.close()
        refuse("")
    if works:
        os.write(handle, f"{os.getpid()} {_began(os.getpid())}\n".encode())
    return held


def is_live(folder: Path) -> bool:
    """Whether a process holds the run folder. To ask is to share it for a moment."""
    try:
        with Lock(handle_of(folder / LOCK, follow=False), fcntl.LOCK_SH | fcntl.LOCK_NB) as lock:
            return not lock.held and _noted_at_work(folder)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise SafetyError(folder / LOCK, what, "remove it", 33) from error


def _noted_at_work(folder: Path) -> bool:
    """Whether the last process that noted its number here is another one of this machine, and goes
    on: all that is known where nothing can be locked."""
    noted = re.search(
        r"^(\d{1,9}) (\d{1,19})\n\Z", (folder / LOCK).read_text("utf-8", "replace"), re.M
    )
    if noted is None or int(noted[1]) == os.getpid():
        return False
    return _began(int(noted[1])) == noted[2]


def _began(process: int) -> str:
    """When a process began, in ticks since this machine did, which tells it from a later one of its
    number; nothing where it is gone, or the system does not say."""
    try:
        text = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    facts = text.rpartition(")")[2].split()  # the name before it may be anything
    return "" if facts[0] in "ZX" else facts[19]


def refuse_odd(folder: Path) -> None:
    """Raise SafetyError for what no run puts into its folder: a link that leads out of it, a pipe,
    a device. What is written there would be written elsewhere, or wait for ever."""
    inside = folder.resolve()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            try:
                mode = path.lstat().st_mode  # one look: another process, with a fold, renames files
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(mode):
                if not path.resolve().is_relative_to(inside):
                    raise SafetyError(path, "is a link that leads out of the folder", _REMOVE, 31)
            elif not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise SafetyError(path, "is a pipe, a socket or a device", _REMOVE, 32)


def entries(folder: Path) -> Iterator[Path]:
    """The files of a run folder that a finished run vouches for."""
    passing = {"status.json", "run.log", *BESIDE}
    return (p for p in _own(folder) if p.is_file() and p.name not in passing)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written; in a fold the fold's own process does, since
    one in a queue may be writing there now. The caller holds the folder."""
    for path in _own(folder):
        if path.name.startswith(".") and path.suffix == ".part":
            remove(path)


def _own(folder: Path) -> list[Path]:
    """All that is in a run folder, sorted, without its folds, which are runs themselves, and what
    others write beside it, half written or whole."""
    found = []
    beside = tuple(f".{name}." for name in BESIDE)
    for place, folders, files in os.walk(folder):
        if place == str(folder):
            folders[:] = [name for name in folders if name != FOLDS]
            files = [name for name in files if not name.startswith(beside)]
        found += [Path(place, name) for name in (*folders, *files)]
    return sorted(found)
