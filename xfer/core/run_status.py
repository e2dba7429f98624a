"""What a run folder says of its run: lock, log, ``status.json``, and ``error.log`` of a failure."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import Signals

from xfer.core.checksum import checksum_holds
from xfer.core.custom_parts import custom_part_error
from xfer.core.errors import OutOfMemory, OutputError, XferError, limit_reached, printable
from xfer.core.files import (
    file_sha256,
    files_of,
    output_errors,
    read_json,
    write_json,
    write_text,
)
from xfer.core.log import log, open_log
from xfer.core.run_folder import (
    BEST,
    LAST,
    checkpoints,
    entries,
    lock,
    refuse_odd,
    remove_leftovers,
)
from xfer.core.signals import Stopped, stop


@dataclass(frozen=True)
class Status:
    """``status.json``. ``state``: running, finished, failed or interrupted; ``code``: the number
    of the error; ``files``: sha256 by path of every file of a finished run, and of the sound
    checkpoints of any other."""

    state: str
    code: int | None = None
    exit: int | None = None
    message: str | None = None
    remedy: str | None = None
    last_good_checkpoint: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Into the run folder, atomically."""
        write_json(folder / "status.json", asdict(self))


@contextmanager
def recorded(folder: Path, resumes: bool = False) -> Iterator[None]:
    """Log, lock and status of the run in ``folder``; a failure leaves ``error.log``.

    Raises OutputError where another process works in it or, unless the run ``resumes``, has.
    """
    with output_errors(folder):
        refuse_odd(folder)
        held = lock(folder)
        if not resumes and (folder / "status.json").exists():
            held.close()
            what = "another process was quicker and has used this folder"
            raise OutputError(folder, what, "choose another run.dir", 4)
        remove_leftovers(folder)
        open_log(folder)
        if resumes and _killed(folder):
            log.info(_WITHOUT_A_WORD)
        Status("running").write(folder)
    try:
        yield
        files = {str(p.relative_to(folder)): file_sha256(p) for p in entries(folder)}
        stop.waits = True  # what is finished cannot be stopped any more
        Status("finished", 0, 0, last_good_checkpoint=_last_good(folder), files=files).write(folder)
    except BaseException as error:
        # Who stops a whole sweep reaches a job twice: how it ends must still be written.
        stop.waits = True
        reported = as_xfer(error)
        try:
            # The status first: it is what a scheduler reads.
            _failure(reported, folder).write(folder)
            write_text(folder / "error.log", "".join(traceback.format_exception(error)))
        except OutputError as full:
            # A full disk is often the very error that is reported.
            log.warning(f"status.json or error.log is not written: {full.what}")
        if reported is error or not isinstance(error, Exception):
            raise
        raise reported from error
    finally:
        held.close()


_WITHOUT_A_WORD = (
    "the process before this one could not say how it ended: it was killed (SIGKILL), as a system "
    "does where memory runs out, the machine went down, or its disk was full"
)


def _killed(folder: Path) -> bool:
    """Whether the last process in ``folder``, whose lock is held here, wrote no end."""
    try:
        facts = read_json(folder / "status.json")
    except (OSError, ValueError):  # there is none, or a power cut left half of it
        return False
    return isinstance(facts, dict) and facts.get("state") == "running"


@contextmanager
def amended(folder: Path) -> Iterator[list[Path]]:
    """Hold the folder of a run that has ended while files are added to it or written anew. Those
    that are put into the list, or lie in a folder there, are vouched for afterwards, where the run
    has finished.

    Raises OutputError where another process works in it.
    """
    changed: list[Path] = []
    with output_errors(folder):
        refuse_odd(folder)
        held = lock(folder)
    try:
        yield changed
    finally:
        with output_errors(folder):
            status = folder / "status.json"
            facts = read_json(status) if status.exists() else {}
            if changed and facts.get("state") == "finished":
                paths = [file for path in changed for file in files_of(path)]
                new = {p.relative_to(folder).as_posix(): file_sha256(p) for p in paths}
                write_json(status, facts | {"files": dict(sorted((facts["files"] | new).items()))})
        held.close()


def _last_good(folder: Path) -> str | None:
    """The newest checkpoint whose bytes are those that were written."""
    for name in (LAST, BEST):
        path = checkpoints(folder) / name
        if path.is_file() and checksum_holds(path):
            return path.relative_to(folder).as_posix()
    return None


def _failure(error: BaseException, folder: Path) -> Status:
    last = _last_good(folder)
    good = (last, {last: file_sha256(folder / last)} if last else {})
    if isinstance(error, XferError):
        what = f"{error.where}: {error.what}"
        return Status("failed", error.number, error.exit, what, error.fix, *good)
    if isinstance(error, Stopped):
        what, fix = f"stopped by {Signals(error.number).name}", "run again with checkpoint.resume="
        return Status("interrupted", None, error.exit, what, f"{fix}{printable(folder)}", *good)
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    state = "failed" if isinstance(error, Exception) else "interrupted"
    return Status(state, None, code, printable(repr(error)), "see error.log", *good)


def as_xfer(error: BaseException) -> BaseException:
    """The error to report: out of memory, whichever device ran out; a data worker that was killed;
    a stop, where that made the work fail; a mistake in a custom part; else ``error`` itself."""
    from xfer.core.memory import ran_out

    if stop.explains(error):
        return Stopped(stop.asked or 0)
    if ran_out(error):
        what = str(error).split(". ")[0] or "no memory left"
        return OutOfMemory("data.eval_batch_size", what, "lower it, and data.decoded_gb", 3)
    if isinstance(error, RuntimeError) and "killed by signal: Killed" in str(error):
        what = "the system killed a data worker"
        return OutOfMemory("data.workers", what, "lower it, and data.decoded_gb", 4)
    return custom_part_error(error) or limit_reached(error) or error
