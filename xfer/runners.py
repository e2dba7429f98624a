"""Who runs the jobs of a sweep: slots of this machine as they become free, or batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xfer.conduct import Conductor
from xfer.log import log, open_log
from xfer.sweep.pool import Pool, Task
from xfer.sweep.slots import Slot
from xfer.sweep.space import Job
from xfer.sweep.table import Table


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
        """Batch after batch until nothing is left, or a failure ends the sweep."""
        while batch := self._batch(conductor):
            folders = [conductor.ledger(job.number) for job in batch]
            outcomes = self.launch(list(zip(batch, folders, strict=True)))
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
        while len(found) < self.size and (job := conductor.take()):
            found.append(job)
        return found


def quoted(text: str) -> str:
    """``text`` as one value of an override."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"
