"""A sweep from its first job to its exit code: what is missing is run, what failed is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from xfer.core.log import close_log, log, open_log, say
from xfer.core.settings import Sweep
from xfer.sweep.ledger import Head, Ledger, find, hold
from xfer.sweep.objective import Objective, values
from xfer.sweep.requirements import (
    Asked,
    Compose,
    Configure,
    check,
    flow_text,
    marks,
    remarks,
    wanted,
)
from xfer.sweep.space import Job, grid
from xfer.sweep.study import JOURNAL, PRUNED, Study

if TYPE_CHECKING:
    from xfer.config.specs import Specs

_PAUSE = 0.2
"""Seconds between two looks at a folder that another process works in."""


class Runner(Protocol):
    """Who runs jobs."""

    @property
    def threads(self) -> int | None:
        """Threads of each job, where that is known."""

    def run(self, conductor: Conductor) -> None:
        """Run what ``conductor.take`` gives, and hand every exit code to ``conductor.ended``."""


def conduct(asked: Asked, compose: Compose, runner: Callable[[Specs], Runner]) -> int:
    """Run the sweep, or go on with it; its exit code is that of the first job that failed.

    Raises XferError before the first job for what is wrong with the sweep, Stopped when a signal
    ended it.
    """
    first = check(asked, compose)
    options = first.sweep
    searches = options.sampler != "grid"
    jobs = [] if searches else grid(asked.space)
    goals, ours = wanted(first), marks(first, asked.space)
    auto = first.checkpoint.resume == "auto"
    named = options.dir or (str(asked.folder) if asked.named else None)
    folder = find(named, auto, asked.folder.parent, *ours) or asked.folder
    able = runner(first)
    study = None
    if searches:
        place = options.storage or str(folder.resolve() / JOURNAL)
        study = Study(options, asked.space, goals, place, options.study or first.experiment)
    baseline = asked.read(options.baseline)
    told = remarks(asked.space, baseline, study)
    if not first.stages:
        from xfer.sweep.sweep_plan import outlook

        outlook(asked.space, jobs, options, compose, Ledger(folder).finished())
        for remark in told:
            log.warning(remark)
        return 0
    if study and options.storage:
        study.open(ours[0], folder)  # before there is a folder, since it may be refused
    total = options.n_trials if options.n_trials else len(jobs)
    texts = tuple(f"{key}={flow_text(value)}" for key, value in baseline.items())
    head = Head(first.experiment, asked.command, goals, texts, total, able.threads, ours[0])
    with hold(folder):
        open_log(folder)
        try:
            for remark in told:
                log.warning(remark)
            ledger = Ledger(folder, first.stages)
            if study and not options.storage:
                study.open(ours[0], folder)
            ledger.open(head)
            conductor = Conductor(ledger, options, goals, jobs, total, study)
            return _run(conductor, able, lambda overrides: compose(overrides).config)
        finally:
            close_log()


def _run(conductor: Conductor, runner: Runner, configure: Configure) -> int:
    conductor.recall()
    try:
        runner.run(conductor)
    except SystemExit:
        log.info(f"stopped; with sweep.dir={conductor.ledger.folder} the same command goes on")
        raise
    return conductor.close(configure)


@dataclass
class Conductor:
    """Decides which job comes next, and keeps the ledger and the study true."""

    ledger: Ledger
    options: Sweep
    objectives: Sequence[Objective]
    jobs: Sequence[Job]
    total: int
    study: Study | None
    failed: dict[int, tuple[int, str]] = field(default_factory=dict)
    stopping: bool = False
    _known: dict[int, Job] = field(default_factory=dict)
    _waiting: list[Job] = field(default_factory=list)
    _attempts: dict[int, int] = field(default_factory=dict)
    _began: dict[int, float] = field(default_factory=dict)
    _told: set[int] = field(default_factory=set)

    def recall(self) -> None:
        """What an earlier call of the same command left: finished jobs count, others wait."""
        begun = list(self.ledger.jobs())
        for job in begun:
            self.ledger.check(job.number)
        if self.study:
            begun = [*map(self.study.adopt, begun), *self.study.begun()]
        known = {job.number: job for job in [*begun, *self.jobs]}
        self._known = dict(sorted(known.items()))
        for number, job in self._known.items():
            if self.ledger.state(number) == "finished":
                self._tell(job, values(self.ledger(number), self.objectives))
            else:
                self._waiting.append(job)
        done = len(self._known) - len(self._waiting)
        if done:
            log.info(f"{done} of {self.total} jobs are finished already")
        log.info(f"sweep of {self.total} jobs in {self.ledger.folder}")

    def rejoin(self, held: Callable[[int], bool]) -> list[Job]:
        """Jobs that an earlier call began and that are ``held`` by who runs them still. They are
        not taken again."""
        found = [job for job in self._waiting if held(job.number)]
        self._waiting = [job for job in self._waiting if job not in found]
        self._began.update((job.number, time.perf_counter()) for job in found)
        return found

    @property
    def later(self) -> bool:
        """Whether jobs are left to begin though :meth:`take` gave none."""
        return bool(self._waiting)

    def take(self, wait: bool = True) -> Job | None:
        """The next job, its folder ready; ``None`` when nothing is left to begin. Jobs that an
        earlier call's processes are still at come last; ``None`` for them without ``wait``."""
        while (job := self._next()) is None and self._waiting and wait:
            time.sleep(_PAUSE)
        if job is None:
            return None
        self.ledger.prepare(job)
        self._began[job.number] = time.perf_counter()
        log.info(f"job {job.number}: {' '.join(job.overrides)}")
        return job

    def _next(self) -> Job | None:
        for job in self._waiting:
            if not self.ledger.is_busy(job.number):
                self._waiting.remove(job)
                return job
            if job.number not in self._told:
                self._told.add(job.number)
                log.info(f"waiting for a process that works in {self.ledger(job.number)}")
        if self.study and len(self._known) < self.total:
            number = max(self._known, default=-1) + 1
            job = self._known[number] = self.study.ask(number)
            return job
        return None

    def ended(self, job: Job, code: int) -> bool:
        """Note the end of a job, which left with ``code``; whether the sweep must stop because of
        it."""
        line = self.ledger.settle(job.number, code)
        # A cluster may not know with which code a job left; its status does.
        code = (self.ledger.code(job.number) or code or 1) if line else 0
        seconds = time.perf_counter() - self._began[job.number]
        if code == 0:
            self.failed.pop(job.number, None)
            found = values(self.ledger(job.number), self.objectives)
            self._say(job, found, seconds)
            self._tell(job, found)
            return False
        if self.stopping and self.ledger.state(job.number) == "interrupted":
            log.info(f"job {job.number} has stopped, its state is saved")
            return False
        self._attempts[job.number] = self._attempts.get(job.number, 0) + 1
        again = not self.stopping and self._attempts[job.number] <= self.options.retries
        told = f"job {job.number}, exit {code}: {line}" + ("; once more" if again else "")
        log.warning(told)
        if again:
            self._waiting.append(job)
            return False
        self.failed[job.number] = code, line
        if self.ledger.state(job.number) == "failed":
            self._tell(job, None)
        self.stopping = self.stopping or self.options.fail_fast
        return self.options.fail_fast

    def _tell(self, job: Job, found: list[float] | None) -> None:
        if self.study:
            pruned = (self.ledger(job.number) / PRUNED).exists()
            self.study.tell(job, found, pruned)

    def _say(self, job: Job, found: list[float] | None, seconds: float) -> None:
        if found is None:
            metrics = ", ".join(o.metric for o in self.objectives)
            log.warning(f"job {job.number} finished, but left no {metrics}")
            return
        pairs = zip(self.objectives, found, strict=True)
        shown = ", ".join(f"{o.metric} {value:.6g}" for o, value in pairs) or "finished"
        pruned = "  pruned" if (self.ledger(job.number) / PRUNED).exists() else ""
        log.info(f"job {job.number}: {shown} after {seconds:.1f} s{pruned}")

    def close(self, configure: Configure | None = None) -> int:
        """Tell how it went and write the leaderboard, which has ``configure`` say what overrides
        make; the exit code of the sweep."""
        from xfer.sweep.leaderboard import write

        states = [self.ledger.state(number) for number in self._known]
        done = states.count("finished")
        log.info(f"{done} of {self.total} jobs finished, {len(self.failed)} failed")
        for number, (code, line) in sorted(self.failed.items()):
            say(f"job {number}, exit {code}: {line}", error=True)
        if done and self.objectives:
            log.info(f"leaderboard: {write(self.ledger.folder, configure)}")
        if done < self.total:
            folder = self.ledger.folder
            log.info(f"with sweep.dir={folder} the same command runs what is missing or failed")
        if self.failed:
            return self.failed[min(self.failed)][0]
        # Whatever the reason is, a sweep that is not whole must not pass for one that is.
        return 1 if done < self.total else 0
