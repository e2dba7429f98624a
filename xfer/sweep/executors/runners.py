"""Who runs the jobs of a sweep: slots of this machine as they become free, or batches."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xfer.core.errors import SweepError
from xfer.core.log import log, open_log
from xfer.core.run_folder import is_live
from xfer.sweep.executors.pool import Pool, Task
from xfer.sweep.executors.slots import Slot
from xfer.sweep.executors.status_table import Table
from xfer.sweep.ledger import Ledger
from xfer.sweep.scheduler import Conductor
from xfer.sweep.space import Job

_START_S, _LOOK_S = 60.0, 0.2
"""For jobs to begin whose launcher failed, and between two looks at them."""


@dataclass
class SlotRunner:
    """Jobs in processes of their own; ``shared`` are the words that all their commands have."""

    slots: Sequence[Slot]
    persistent: bool
    shared: Sequence[str]

    @property
    def threads(self) -> int:
        """Threads of a job, the most that a slot gives."""
        return max(slot.threads for slot in self.slots)

    def run(self, conductor: Conductor) -> None:
        """A job begins whenever a slot is free. Raises Stopped when a signal came."""
        table, jobs = Table(), dict[int, Job]()
        if len(self.slots) > 1 and (timed := [o.metric for o in conductor.objectives if o.is_time]):
            log.warning(
                f"{', '.join(timed)}: taken while other jobs compute; hydra.launcher.slots=1 "
                "takes it alone"
            )
        pool = Pool(self.slots, self.persistent, table.shown)

        def take() -> Task | None:
            table.clear()
            job = conductor.take(wait=False)
            if job is None:
                return None
            jobs[job.number] = job
            folder = conductor.ledger(job.number)
            own = [f"run.dir={quoted(str(folder))}", "checkpoint.resume=auto"]
            return Task(job.number, (*self.shared, *job.overrides, *own), folder)

        def ended(task: Task, code: int) -> int | None:
            table.clear()
            conductor.stopping = conductor.stopping or pool.asked is not None
            return signal.SIGTERM if conductor.ended(jobs[task.number], code) else None

        def tick(tasks: dict[int, Task]) -> None:
            table.draw(
                {
                    at: (task.number, " ".join(jobs[task.number].overrides), task.folder)
                    for at, task in tasks.items()
                }
            )

        pool.tick = tick
        pool.later = lambda: conductor.later
        pool.run(take, ended)


Launch = Callable[[Sequence[tuple[Job, Path]]], Sequence[tuple[int, str]]]
"""Runs jobs in their folders and blocks; an exit code and what was told for each."""


@dataclass
class BatchRunner:
    """``size`` jobs at once through a launcher that returns when all of them have ended."""

    launch: Launch
    size: int
    threads: int | None = None

    def run(self, conductor: Conductor) -> None:
        """Batch after batch until nothing is left, or a failure ends the sweep. Raises SweepError
        where the launcher fails and no job has begun."""
        while batch := self._batch(conductor):
            folders = [conductor.ledger(job.number) for job in batch]
            sizes = {folder: _claims(folder) for folder in folders}
            try:
                outcomes = self.launch(list(zip(batch, folders, strict=True)))
            except Exception as error:  # of any library; of several jobs it tells of the first
                said = _said(error)
                log.warning(f"the launcher failed, its jobs are waited for: {said}")
                _wait(sizes, said)
                outcomes = [_found(conductor.ledger, job.number, said) for job in batch]
            # A job in this process has taken the log for itself.
            open_log(conductor.ledger.folder)
            stops = []
            for job, (code, line) in zip(batch, outcomes, strict=True):
                conductor.ledger.note(job.number, line)
                stops.append(conductor.ended(job, code))
            if any(stops):
                return

    def _batch(self, conductor: Conductor) -> list[Job]:
        found: list[Job] = []
        while len(found) < self.size and (job := conductor.take(wait=not found)):
            found.append(job)
        return found


def _claims(folder: Path) -> int:
    """Grows when a process takes the run folder."""
    path = folder / ".lock"
    return path.stat().st_size if path.exists() else 0


def _wait(before: Mapping[Path, int], said: str) -> None:
    """Until the jobs that outlive their launcher have ended. Raises SweepError where none begins
    within the time in which processes start."""
    until, begun = time.monotonic() + _START_S, set[Path]()
    while len(begun) < len(before) and time.monotonic() < until:
        begun = {folder for folder, size in before.items() if _claims(folder) > size}
        time.sleep(_LOOK_S)
    if not begun:
        fix = "see what it says, or choose another, such as hydra/launcher=slots"
        raise SweepError("hydra/launcher", f"no job has begun: {said}", fix, 28)
    # A folder that nobody has taken yet is not asked: to ask is to hold it for a moment.
    while any(is_live(folder) for folder in begun):
        time.sleep(_LOOK_S)


def _found(ledger: Ledger, number: int, said: str) -> tuple[int, str]:
    """The exit code of a job by its own status, and what is told where it has left none."""
    state = ledger.state(number)
    if state == "finished":
        return 0, ""
    told = state in ("failed", "interrupted")
    return ledger.code(number) or 1, "" if told else said


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:400]


def quoted(text: str) -> str:
    """``text`` as one value of an override."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"
