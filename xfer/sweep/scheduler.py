"""A sweep from its first job to its exit code: what is missing runs, what failed is reported."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from xfer.config.sweep_spec import SweepSpec
from xfer.config.verbs import override, quoted
from xfer.core.errors import XferError, plural, printable
from xfer.core.log import close_log, log, open_log, say
from xfer.core.run_folder import what_is_kept
from xfer.sweep.ledger import Ledger, SweepFacts, find, hold
from xfer.sweep.objective import Objective, values
from xfer.sweep.requirements import (
    Compose,
    Configure,
    SweepRequest,
    check,
    flow_text,
    marks,
    wanted,
)
from xfer.sweep.space import Job, grid, unmatched
from xfer.sweep.study import JOURNAL, PRUNED, Study

if TYPE_CHECKING:
    from xfer.config.specs import Specs

_PAUSE = 0.2
"""Seconds between two looks at a folder that another process works in."""


_BEAT_S = 60
"""Seconds until the page of a sweep at work is written again though no job has ended."""
_PAGES = 20
"""How many times as long as its page took to write a sweep at work leaves it as it is."""


class Runner(Protocol):
    """Who runs jobs."""

    @property
    def threads(self) -> int | None:
        """Threads of each job, where that is known."""

    def run(self, scheduler: Scheduler) -> None:
        """Run what ``scheduler.take`` gives, and hand every exit code to ``scheduler.ended``."""


def run_sweep(request: SweepRequest, compose: Compose, runner_of: Callable[[Specs], Runner]) -> int:
    """Run the sweep, or resume it; its exit code is that of the first job that failed, else of the
    first that was stopped and can be resumed (143, or 130).

    Raises XferError before the first job for what is wrong with the sweep, Stopped when a signal
    ended it.
    """
    first = check(request, compose)
    options = first.sweep
    searches = options.sampler != "grid"
    jobs = [] if searches else grid(request.space)
    goals, ours = wanted(first), marks(first, request.space)
    auto = first.checkpoint.resume == "auto"
    named = options.dir or (str(request.folder) if request.named else None)
    folder = find(named, auto, request.folder.parent, *ours) or request.folder
    runner = runner_of(first)
    study = None
    if searches:
        place = options.storage or str(folder.resolve() / JOURNAL)
        study = Study(options, request.space, goals, place, options.study or first.experiment)
    baseline = request.read(options.baseline)
    reason = unmatched(request.space, baseline) if baseline else ""
    remarks = [f"sweep.baseline marks no job: {reason}"] if reason else []
    remarks += study.remarks() if study else []
    if not first.stages:
        from xfer.sweep.sweep_plan import show_plan

        show_plan(request.space, jobs, options, compose, Ledger(folder).finished())
        for remark in remarks:
            log.warning(remark)
        return 0
    if study and options.storage:
        study.open(ours[0], folder)  # before there is a folder, since it may be refused
    total = options.n_trials or len(jobs)
    texts = tuple(f"{key}={flow_text(value)}" for key, value in baseline.items())
    facts = SweepFacts(
        first.experiment, request.command, goals, texts, total, runner.threads, ours[0]
    )
    with hold(folder):
        find(str(folder), False, folder.parent, *ours)  # another may have begun here meanwhile
        open_log(folder)
        try:
            for remark in remarks:
                log.warning(remark)
            ledger = Ledger(folder, first.stages)
            if study and not options.storage:
                study.open(ours[0], folder)
            ledger.open(facts)
            scheduler = Scheduler(ledger, options, goals, jobs, total, study)
            return _run(scheduler, runner, lambda overrides: compose(overrides).config)
        finally:
            close_log()


def _named(folder: Path) -> str:
    return printable(quoted(override("sweep.dir", str(folder))))


def _run(scheduler: Scheduler, runner: Runner, configure: Configure) -> int:
    scheduler.recall()
    scheduler.show()
    try:
        runner.run(scheduler)
    except SystemExit:
        scheduler.show(at_work=False)
        folder = scheduler.ledger.folder
        log.info(f"stopped; with {_named(folder)} the same command resumes the sweep")
        raise
    return scheduler.close(configure)


@dataclass
class Scheduler:
    """Decides which job comes next, and keeps the ledger and the study true."""

    ledger: Ledger
    options: SweepSpec
    objectives: Sequence[Objective]
    jobs: Sequence[Job]
    total: int
    study: Study | None
    unsuccessful: dict[int, tuple[int, str]] = field(default_factory=dict)
    stopping: bool = False
    _known: dict[int, Job] = field(default_factory=dict)
    _waiting: list[Job] = field(default_factory=list)
    _attempts: Counter[int] = field(default_factory=Counter)
    _began: dict[int, float] = field(default_factory=dict)
    _next_page: float = 0.0
    _next_beat: float = 0.0

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
                self._inform(job, values(self.ledger(number), self.objectives))
            else:
                self._waiting.append(job)
        if done := len(self._known) - len(self._waiting):
            log.info(f"{done} of {plural(self.total, 'job')} finished already")
        log.info(f"sweep of {self.total} job{'s' * (self.total != 1)} in {self.ledger.folder}")

    def rejoin(self, held: Callable[[int], bool]) -> list[Job]:
        """Jobs that an earlier call began and that are ``held`` by who runs them still. They are
        not taken again."""
        joined = [job for job in self._waiting if held(job.number)]
        self._waiting = [job for job in self._waiting if job not in joined]
        self._began.update((job.number, time.perf_counter()) for job in joined)
        return joined

    @property
    def later(self) -> bool:
        """Whether jobs are left to begin though :meth:`take` gave none."""
        return bool(self._waiting)

    def take(self, wait: bool = True) -> Job | None:
        """The next job, its folder ready; ``None`` when nothing is left to begin. Jobs that an
        earlier call's processes still work on come last; ``None`` for them without ``wait``."""
        while (job := self._next()) is None and self._waiting and wait:
            time.sleep(_PAUSE)
        if job is None:
            return None
        self._began[job.number] = time.perf_counter()
        log.info(f"job {job.number}: {' '.join(job.overrides)}")
        return job

    def _next(self) -> Job | None:
        if job := self.ledger.take(self._waiting):
            return job
        if self.study and len(self._known) < self.total:
            number = max(self._known, default=-1) + 1
            job = self._known[number] = self.study.ask(number)
            self.ledger.prepare(job)
            return job
        return None

    def show(self, at_work: bool = True) -> None:
        """Write the leaderboard of a sweep that is at work, or that was stopped; not while the
        pages before it took more than a twentieth of the time. The sweep is none the worse for a
        page that cannot be written."""
        from xfer.sweep.leaderboard import write_live

        began = time.perf_counter()
        if not self.objectives or (at_work and began < self._next_page):
            return
        within = {"within": 5 * _BEAT_S} if self._next_beat else {}
        try:
            write_live(self.ledger.folder, at_work, **within)
        except XferError as error:
            log.warning(f"the leaderboard is not up to date: {error}")
        now = time.perf_counter()
        self._next_page = now + _PAGES * (now - began)
        self._next_beat = self._next_beat and now + _BEAT_S

    def beat(self) -> None:
        """Called several times a second while jobs are at work: a page of a long job is written
        once a minute, so that one that is not written any more is known to be of a sweep that was
        killed."""
        if time.perf_counter() >= self._next_beat:
            self._next_beat = time.perf_counter() + _BEAT_S
            self.show()

    def ended(self, job: Job, code: int) -> bool:
        """Note the end of a job, which left with ``code``; whether the sweep must stop because of
        it."""
        stop = self._noted(job, code)
        self.show()
        return stop

    def _noted(self, job: Job, code: int) -> bool:
        line = self.ledger.settle(job.number, code)
        if not line:
            self._finished(job)
            return False
        # A cluster may not know with which code a job left; its status does.
        code = self.ledger.code(job.number) or code or 1
        if self.stopping and self.ledger.state(job.number) == "interrupted":
            log.info(f"job {job.number} has stopped, {what_is_kept(self.ledger(job.number))}")
            return False
        self._attempts[job.number] += 1
        again = not self.stopping and self._attempts[job.number] <= self.options.retries
        log.warning(f"job {job.number}, exit {code}: {line}" + "; trying again" * again)
        if again:
            self._waiting.append(job)
            return False
        self.unsuccessful[job.number] = code, line
        if self.ledger.state(job.number) == "failed":
            self._inform(job, None)
        self.stopping = self.stopping or self.options.fail_fast
        return self.options.fail_fast

    def _finished(self, job: Job) -> None:
        seconds = time.perf_counter() - self._began[job.number]
        self.unsuccessful.pop(job.number, None)
        folder = self.ledger(job.number)
        results = values(folder, self.objectives)
        if results is None:
            metrics = ", ".join(o.metric for o in self.objectives)
            log.warning(f"job {job.number} finished, but left no {metrics}")
        else:
            pairs = zip(self.objectives, results, strict=True)
            shown = ", ".join(f"{o.metric} {value:.6g}" for o, value in pairs) or "finished"
            pruned = "  pruned" * (folder / PRUNED).exists()
            log.info(f"job {job.number}: {shown} after {seconds:.1f} s{pruned}")
        self._inform(job, results)

    def _inform(self, job: Job, results: list[float] | None) -> None:
        if self.study:
            self.study.tell(job, results, (self.ledger(job.number) / PRUNED).exists())

    def close(self, configure: Configure | None = None) -> int:
        """Say how it went and write the leaderboard, which has ``configure`` say what overrides
        make; the exit code of the sweep."""
        from xfer.sweep.leaderboard import write

        folder = self.ledger.folder
        states = {number: self.ledger.state(number) for number in self._known}
        counts = Counter(states.values())
        done, left = counts["finished"], counts["interrupted"] + counts["running"]
        unfinished = f", {left} unfinished" if left else ""
        ended = f"{done} of {plural(self.total, 'job')} finished"
        log.info(f"{ended}, {counts['failed']} failed{unfinished}")
        for number, (code, line) in sorted(self.unsuccessful.items()):
            say(f"job {number}, exit {code}: {line}", error=True)
        if done and self.objectives:
            log.info(f"leaderboard: {write(folder, configure)}")
        if done < self.total:
            log.info(f"with {_named(folder)} the same command runs what has not finished")
        if self.unsuccessful:
            # A job that was stopped has nothing to say about what is wrong.
            first = min(self.unsuccessful, key=lambda number: (states[number] != "failed", number))
            return self.unsuccessful[first][0]
        # Whatever the reason is, a sweep that is not whole must not pass for one that is.
        return int(done < self.total)
