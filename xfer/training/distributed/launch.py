"""The other processes of a run on several devices: started, watched, and none outlives it.

A run is led by rank 0, which plans, writes every file and does all stages. The others take part in
the fit alone. xfer starts them itself, as ``python -m xfer.training.distributed.rank FOLDER
NUMBER``; where Slurm has started one task a device, tasks other than the first wait until the first
says which folder it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xfer.core import errors
from xfer.core.errors import OutOfMemory, XferError
from xfer.core.files import cache_dir, read_json, write_json
from xfer.core.slurm_env import slurm_task
from xfer.core.types import Plain

_GRACE = 20.0
"""Seconds in which a rank that is asked to end, or has lost the others, must have ended."""
_ARRIVAL = 900.0
"""Seconds until the first task of Slurm's must have come this far."""
_STALE = 7 * 24 * 3600.0


class Others:
    """What rank 0 knows of the other ranks of a fit in ``folder``."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, port: int) -> None:
        """Say where to meet, and start them unless Slurm has."""
        meeting = _meeting_file(self.folder)
        for file in meeting.parent.glob("*.json"):  # of a fit that was killed
            file.unlink()
        write_json(meeting, {"port": port, "ranks": self.ranks})
        if slurm_task():
            write_json(_rendezvous(), {"folder": str(self.folder.resolve())})
            return
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-P", "-m", "xfer.training.distributed.rank", str(self.folder)]
        for number in range(1, self.ranks):
            # The pipe closes when this process ends, however it ends; a rank ends with it.
            process = subprocess.Popen(
                [*command, str(number)], stdin=subprocess.PIPE, env=environment
            )
            self.processes.append(process)

    def failure(self) -> XferError | None:
        """What another rank failed of, if one did: it may be about to say so."""
        deadline = time.monotonic() + _GRACE
        while (failure := self.failed()) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return failure

    def failed(self) -> XferError | None:
        """What another rank has failed of by now."""
        codes = {number: p.poll() for number, p in enumerate(self.processes, 1)}
        # The words of one that had a reason go before the exit code of one that lost the others.
        for number in range(1, self.ranks):
            path = _error_file(self.folder, number)
            if path.is_file():
                facts = read_json(path)
                error: XferError = getattr(errors, facts.pop("kind"))(**facts)
                return error
        # A killed one, below 0, before those that lost it.
        code, number = min(((code, n) for n, code in codes.items() if code), default=(0, 0))
        if code == -9:
            fix = "lower data.batch_size, data.workers or data.decoded_gb"
            return OutOfMemory("trainer.devices", f"the system killed rank {number}", fix, 6)
        what = f"rank {number} ended with exit code {code}"
        return XferError("trainer.devices", what, "see what it printed", 11) if code else None

    def wait(self) -> None:
        """Until every rank has ended its fit. Raises XferError where one failed at the very end."""
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        if failed := self.failed():
            raise failed

    def end(self) -> None:
        """End every rank, at once."""
        for process in self.processes:
            process.kill()
            process.communicate()
        # One killed while it wrote its error has left half a file; that must not hide its error.
        shutil.rmtree(_meeting_file(self.folder).parent, ignore_errors=True)


def meeting(folder: Path) -> tuple[int, int]:
    """Port and number of ranks of the fit in ``folder``, for a rank other than 0."""
    facts = read_json(_meeting_file(folder))
    return int(facts["port"]), int(facts["ranks"])


def report_error(folder: Path, number: int, error: XferError) -> None:
    """Leave for rank 0 what rank ``number`` failed of."""
    facts = {"where": error.where, "what": error.what, "fix": error.fix}
    kind, case = type(error).__name__, error.number - error.base
    path = _error_file(folder, number)
    if path.parent.is_dir():
        write_json(path, {"kind": kind, **facts, "number": case})


def _meeting_file(folder: Path) -> Path:
    return folder / ".ranks" / "meeting.json"


def _error_file(folder: Path, number: int) -> Path:
    return folder / ".ranks" / f"error{number}.json"


_runs = 0


def next_run() -> None:
    """What follows is about another run than before; every task of a Slurm step counts alike."""
    global _runs
    _runs += 1


def _rendezvous() -> Path:
    """Where tasks of one Slurm step find each other: the same for each of them, and no others'."""
    parts = ("JOB_ID", "STEP_ID", "RESTART_COUNT")
    name = "_".join([*(os.environ.get(f"SLURM_{part}", "0") for part in parts), str(_runs)])
    return cache_dir() / "ranks" / f"{name}.json"


@contextmanager
def leading() -> Iterator[None]:
    """Within, the tasks that Slurm started beside this one wait for word; afterwards, for none."""
    task = slurm_task()
    if task is None:
        yield
        return
    path = _rendezvous()
    write_json(path, {"leader": os.getpid()})
    for old in path.parent.glob("*.json"):
        if old.stat().st_mtime < time.time() - _STALE:
            old.unlink(missing_ok=True)
    try:
        yield
    finally:
        write_json(path, {"over": True})


def called() -> Path | None:
    """The folder of the fit that this task of Slurm is to take part in; ``None`` when rank 0 has
    ended without one."""
    path, leader = _rendezvous(), 0
    deadline = time.monotonic() + _ARRIVAL
    while True:
        facts: Plain = read_json(path) if path.exists() else {}
        if "folder" in facts:
            return Path(facts["folder"])
        leader = facts.get("leader", leader)
        gone = not _is_alive(leader) if leader else time.monotonic() > deadline
        if "over" in facts or gone:
            return None
        time.sleep(0.2)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
