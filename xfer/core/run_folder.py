"""Names of the files in a run folder, and the lock that one process at a time holds on it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from xfer.core.errors import OutputError, SafetyError
from xfer.core.files import handle_of
from xfer.core.locks import Lock

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
JOB, OUTPUT, QUEUED = "job.json", "output.log", "queued.json"
FOLDS = "folds"
"""The folder of a cross-validation's jobs, each a whole run."""
BESIDE = (JOB, OUTPUT, QUEUED, FOLDS)
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
    return "its state is saved" if kept else "before it had a state to save"


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that holds ``checkpoint``; ``None`` for a file that lies elsewhere."""
    folder = checkpoint.parent.parent
    return folder if checkpoint.parent == checkpoints(folder) else None


_REMOVE = "remove it, or give another folder"


def lock(folder: Path) -> Lock:
    """Hold the run folder until the returned lock is closed or the process ends.

    Raises OutputError when another process holds it.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    handle = handle_of(folder / ".lock", flags, follow=False)
    try:
        held = Lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        what = "another process is using this folder"
        raise OutputError(folder, what, "choose another run.dir", 3) from error
    os.write(handle, f"{os.getpid()}\n".encode())
    return held


def is_live(folder: Path) -> bool:
    """Whether a process holds the run folder."""
    try:
        with os.fdopen(handle_of(folder / ".lock", follow=False)) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise SafetyError(folder / ".lock", what, "remove it", 33) from error
    return False


def refuse_odd(folder: Path) -> None:
    """Raise SafetyError for what no run puts into its folder: a link that leads out of it, a pipe,
    a device. What is written there would be written elsewhere, or wait for ever."""
    inside = folder.resolve()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                if not path.resolve().is_relative_to(inside):
                    raise SafetyError(path, "is a link that leads out of the folder", _REMOVE, 31)
            elif not (path.is_dir() or path.is_file()):
                raise SafetyError(path, "is a pipe, a socket or a device", _REMOVE, 32)


def entries(folder: Path) -> Iterator[Path]:
    """The files of a run folder that a finished run vouches for."""
    passing = {"status.json", "run.log", ".lock", *BESIDE}
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in passing)
    return (p for p in files if p.relative_to(folder).parts[0] != FOLDS)
