"""Who runs the jobs of a sweep: slots of this machine, batches of a launcher, a cluster's queue."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from xfer.config.verbs import override
from xfer.core.errors import SweepError, first_few, printable
from xfer.core.files import read_text
from xfer.core.log import log, open_log
from xfer.core.run_folder import LOCK, is_live
from xfer.core.signals import Stopped, noted
from xfer.sweep.executors.pool import Pool, Task
from xfer.sweep.executors.slots import JobSlot
from xfer.sweep.ledger import Ledger
from xfer.sweep.scheduler import Scheduler
from xfer.sweep.space import Job

_START_S, _LOOK_S = 60.0, 0.2
"""For jobs to begin whose launcher failed, and between two looks at them."""


@dataclass
class SlotRunner:
    """Jobs in processes of their own; ``shared`` are the words that all their commands have."""

    slots: Sequence[JobSlot]
    persistent: bool
    shared: Sequence[str]

    @property
    def threads(self) -> int:
        """Threads of a job, the most that a slot gives."""
        return max(slot.threads for slot in self.slots)

    def run(self, scheduler: Scheduler) -> None:
        """A job begins whenever a slot is free. Raises Stopped when a signal came."""
        table, jobs, pool = LiveTable(), dict[int, Job](), Pool(self.slots, self.persistent)
        if len(self.slots) > 1 and (timed := [o.metric for o in scheduler.objectives if o.is_time]):
            log.warning(
                f"{', '.join(timed)}: measured while other jobs run; hydra.launcher.slots=1 "
                "measures it alone"
            )

        def take() -> Task | None:
            table.clear()
            if (job := scheduler.take(wait=False)) is None:
                return None
            jobs[job.number], folder = job, scheduler.ledger(job.number)
            last = (override("run.dir", str(folder)), "checkpoint.resume=auto")
            return Task(job.number, (*self.shared, *job.overrides, *last), folder)

        def ended(task: Task, code: int) -> bool:
            table.clear()
            scheduler.stopping = scheduler.stopping or bool(pool.asked)
            return scheduler.ended(jobs[task.number], code)

        def tick(tasks: dict[int, Task]) -> None:
            scheduler.beat()
            table.draw({at: (jobs[task.number], task.folder) for at, task in tasks.items()})

        pool.run(take, ended, lambda: scheduler.later, tick)


@dataclass
class LiveTable:
    """The jobs at work, redrawn in place each second: slot, number, epoch, seconds and overrides.
    Nothing is drawn where the output is no terminal."""

    shown: bool = field(default_factory=lambda: sys.stdout.isatty())
    _lines: int = 0
    _next: float = 0.0
    _began: dict[int, float] = field(default_factory=dict)

    def draw(self, jobs: Mapping[int, tuple[Job, Path]]) -> None:
        """``jobs``: by slot, with their folders."""
        now = time.monotonic()
        if not self.shown or (self._lines and now < self._next):
            return
        self.clear()
        width = shutil.get_terminal_size().columns - 1
        for slot, (job, folder) in sorted(jobs.items()):
            try:
                epochs = max(len(read_text(folder / "metrics.csv").splitlines()) - 1, 0)
            except (OSError, ValueError):
                epochs = 0  # no epoch has ended
            state = f"epoch {epochs}, {now - self._began.setdefault(job.number, now):.0f} s"
            text = f"  slot {slot}  job {job.number}  {state}  {' '.join(job.overrides)}"
            print(printable(text)[:width])
        self._lines, self._next = len(jobs), now + 1
        sys.stdout.flush()

    def clear(self) -> None:
        """Take the lines away, so that others can be written."""
        if self._lines:
            print(f"\x1b[{self._lines}A\x1b[J", end="")
            self._lines = 0


@dataclass
class BatchRunner:
    """``size`` jobs at once through a launcher that returns when all of them have ended: it gives
    an exit code and what was said for each."""

    launch: Callable[[Sequence[tuple[Job, Path]]], Sequence[tuple[int, str]]]
    size: int
    threads: int | None = None

    def run(self, scheduler: Scheduler) -> None:
        """Batch after batch until nothing is left, or a failure ends the sweep. Raises SweepError
        where the launcher fails and no job has begun."""
        while batch := self._batch(scheduler):
            folders = [scheduler.ledger(job.number) for job in batch]
            claims = {folder: _claims(folder) for folder in folders}
            try:
                outcomes = self.launch(list(zip(batch, folders, strict=True)))
            except Exception as error:  # of any library; of several jobs it names the first
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                said = f"{type(error).__name__}: {' '.join(lines[:2])}"[:400]
                log.warning(f"the launcher failed; waiting for its jobs: {said}")
                _wait(claims, said)
                outcomes = [_outcome(scheduler, job.number, said) for job in batch]
            # A job in this process has taken the log for itself.
            open_log(scheduler.ledger.folder)
            stops = []
            for job, (code, line) in zip(batch, outcomes, strict=True):
                scheduler.ledger.note(job.number, line)
                stops.append(scheduler.ended(job, code))
            if any(stops):
                return

    def _batch(self, scheduler: Scheduler) -> list[Job]:
        batch: list[Job] = []
        while len(batch) < self.size and (job := scheduler.take(wait=not batch)):
            batch.append(job)
        return batch


def _claims(folder: Path) -> int:
    """Grows when a process takes the run folder."""
    path = folder / LOCK
    return path.stat().st_size if path.exists() else 0


def _wait(before: Mapping[Path, int], said: str) -> None:
    """Wait for the jobs that outlive their launcher. Raises SweepError where none begins within the
    time in which processes start."""
    until, begun = time.monotonic() + _START_S, set[Path]()
    while len(begun) < len(before) and time.monotonic() < until:
        begun = {folder for folder, size in before.items() if _claims(folder) > size}
        time.sleep(_LOOK_S)
    if not begun:
        fix = "see what it says, or choose another, such as hydra/launcher=slots"
        raise SweepError("hydra/launcher", f"no job has begun: {said}", fix, 28)
    # A folder that nobody has taken yet is not asked: no job may ever begin in it.
    while any(is_live(folder) for folder in begun):
        time.sleep(_LOOK_S)


def _outcome(scheduler: Scheduler, number: int, said: str) -> tuple[int, str]:
    """The exit code of a job by its own status; what is ``said`` counts where it has left none."""
    state = scheduler.ledger.state(number)
    line = "" if state in ("finished", "failed", "interrupted") else said
    return (0 if state == "finished" else scheduler.ledger.code(number) or 1), line


class Queue(Protocol):
    """A cluster that runs what it was given, whether or not somebody waits for it."""

    @property
    def names(self) -> Mapping[int, str]:
        """The cluster's names of the jobs that it has, by their numbers."""

    def submit(self, jobs: Sequence[tuple[Job, Path]]) -> None:
        """Hand over jobs with their folders."""

    def rejoin(self, number: int, folder: Path) -> bool:
        """Whether the cluster has a job that an earlier call handed over."""

    def ended(self) -> Sequence[tuple[int, int, str]]:
        """Number, exit code and last words of the jobs that have ended since; looks for them for
        about a second."""

    def cancel(self) -> None:
        """Ask every job to end."""


class Turns(Protocol):
    """Who says which job comes next, and learns what became of it: a :class:`Scheduler`, or the
    folds of a run."""

    @property
    def ledger(self) -> Ledger:
        """The jobs' folders."""

    @property
    def later(self) -> bool:
        """Whether jobs are left to begin though :meth:`take` gave none."""

    def rejoin(self, held: Callable[[int], bool]) -> Sequence[Job]:
        """The jobs that are ``held`` by who runs them still, which are not taken again."""

    def take(self, wait: bool) -> Job | None:
        """The next job, its folder ready; ``None`` where there is none now."""

    def ended(self, job: Job, code: int) -> bool:
        """Note the end of a job; whether the others are to stop because of it."""


@dataclass
class QueueRunner:
    """``size`` jobs in the ``queue`` at a time, called ``noun`` where they are listed. A signal
    ends the waiting and no job: the same command finds those that are queued or at work."""

    queue: Queue
    size: int
    noun: str = "job"
    threads: int | None = None
    _signals: list[int] = field(default_factory=list)

    def run(self, turns: Turns) -> None:
        """Submit and wait until nothing is left. Raises Stopped when a signal came."""
        with noted(self._note):
            held = turns.rejoin(lambda n: self.queue.rejoin(n, turns.ledger(n)))
            if held:
                log.info(f"in the queue already: {self._listed()}")
            try:
                self._work(turns, {job.number: job for job in held})
            finally:
                if self.queue.names:
                    log.info(f"in the queue still: {self._listed()}")

    def _work(self, turns: Turns, flight: dict[int, Job]) -> None:
        stopping = False
        while True:
            if not stopping:
                self._fill(turns, flight)
            if self._signals:
                raise Stopped(self._signals[0])
            if not flight and (stopping or not turns.later):
                return
            for number, code, line in self.queue.ended():
                # Where it has finished, its result for the queue was lost, and no other.
                done = turns.ledger.state(number) == "finished"
                turns.ledger.note(number, "" if done else line)
                if turns.ended(flight.pop(number), 0 if done else code):
                    stopping = True
                    self.queue.cancel()

    def _fill(self, turns: Turns, flight: dict[int, Job]) -> None:
        batch = []
        while not self._signals and len(flight) < self.size:
            if (job := turns.take(wait=False)) is None:
                break
            batch.append((job, turns.ledger(job.number)))
            flight[job.number] = job
        if batch:
            self.queue.submit(batch)

    def _note(self, number: int) -> None:
        if self._signals and number == signal.SIGINT:
            raise Stopped(number)  # a second Ctrl-C does not wait for an answer of the cluster
        self._signals.append(number)

    def _listed(self) -> str:
        names = sorted(self.queue.names.items())
        shown = [f"{self.noun} {number} is {name}" for number, name in names]
        return first_few(shown, 8)
