"""The folds of a cross-validation that is trained step by step: each a job, then one table.

The jobs are below ``folds/`` in the run folder, in a ledger as a sweep has one, and run where the
launcher says: in slots of this machine, or in the queue of a cluster. A run that was killed and is
resumed begins none again that has ended, and waits for those that are in the queue. Then comes the
final model, on all training images, in this process. It has no validation images to choose an epoch
by, so it is trained as the folds were, up to the epoch that was best in them on average.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xfer.config.provenance import override_key
from xfer.config.verbs import override, quoted, repeatable
from xfer.core.errors import FoldError, ResumeError, XferError, printable
from xfer.core.files import read_json
from xfer.core.log import log
from xfer.core.run_folder import FOLDS, QUEUED, what_is_kept
from xfer.core.signals import Stopped
from xfer.core.types import Plain
from xfer.evaluation.out_of_fold import TABLE, in_words, title_of
from xfer.evaluation.predict import LOGITS
from xfer.plan.resume import fingerprint
from xfer.sweep.executors.pool import Pool, Task
from xfer.sweep.executors.runners import QueueRunner
from xfer.sweep.executors.slots import JobSlot, divide
from xfer.sweep.ledger import Ledger, hold
from xfer.sweep.pruning import pruner
from xfer.sweep.slurm import handed_over, name_of, queued
from xfer.sweep.space import Job

if TYPE_CHECKING:
    from xfer.config.specs import Specs
    from xfer.evaluation.task import Pooled
    from xfer.plan.plan import Plan
    from xfer.training.callbacks.timeline import Prunes

    Folds = npt.NDArray[np.int64]

_STAGES = ("fit", "evaluate")
_SAYS_WHY = range(2, 11)
"""Exit codes of a job that has said what is wrong, with the others as well most likely. One that
was stopped, killed or lost says nothing of them."""


def check_launcher(plan: Plan) -> None:
    """Raise XferError where the launcher could never run the folds of ``plan`` as jobs."""
    specs, launcher = plan.specs, plan.specs.launcher
    trains = plan.folded and not specs.optim.solves and (specs.trains or not specs.stages)
    folds = plan.split("train").folds if trains else None
    if folds is not None and launcher and launcher.queue:
        launcher.queue([job.overrides for job in _jobs(specs, folds)])
    elif folds is not None:
        _slots(specs)


def before_fit(plan: Plan, folder: Path) -> tuple[Plan, Prunes | None, Pooled | None]:
    """The plan of the fit that is to come, what ends it early, and what the folds answered.

    Without a cross-validation ``plan`` as it is, and whatever prunes a trial of a sweep. Raises
    XferError as the first job that failed, ResumeError for a fold of another configuration, Stopped
    where a signal has ended this process's waiting, or one of the jobs.
    """
    samples = plan.dataset.splits.get("train") if plan.dataset else None
    if samples is None or samples.folds is None:
        return plan, pruner(folder), None
    ledger = Ledger(folder / FOLDS, _STAGES)
    jobs = _jobs(plan.specs, samples.folds)
    with hold(ledger.folder):
        _run(plan.specs, ledger, jobs)
    results = [read_json(ledger(job.number) / "result.json") for job in jobs]
    best = [result["best"]["epoch"] for result in results]
    epochs = max(1, round(statistics.fmean(best)))
    logits = _pooled(plan, ledger, samples.folds)
    policy, last = plan.specs.checkpoint, plan.specs.trainer.epochs
    chose = policy.start_epoch + policy.interval <= last and policy.monitor.startswith("val_")
    pooled: Pooled = plan.specs.task.pooled(samples, logits, plan.card.classes)
    held_out = replace(pooled, final_epochs=epochs, chose=chose)
    held_out.write(folder / TABLE)
    facts = held_out.facts(plan.specs.metrics)
    log.info(f"{title_of(facts)} {in_words(facts)}")
    log.info(
        f"the final model: all {len(samples):,} training images, {epochs} of {last} epochs, the "
        f"mean of those that were best in the folds ({', '.join(map(str, sorted(best)))})"
    )
    plans = [read_json(ledger(job.number) / "plan.json") for job in jobs]
    # The thresholds are those of the final model, which has no image of its own to choose them by.
    every = np.concatenate([samples.labels] * len(logits))
    said = plan.specs.task.card(logits.reshape(len(every), -1), every, "cv")
    plan = replace(plan, card=replace(plan.card, task=said))
    final = _final(plan, epochs, [_starts(ledger(job.number)) for job in jobs], plans)
    return final, lambda history: history.rows[-1]["epoch"] >= epochs, held_out


def _jobs(specs: Specs, folds: Folds) -> list[Job]:
    """A job a fold and repeat, by number."""
    typed = [text for text in repeatable(specs.overrides) if override_key(text) != "stages"]
    stages = override("stages", list(_STAGES))
    return [
        Job(number, (*typed, override("data.fold", number), stages), {"data.fold": number})
        for number in range(sum(len(np.unique(row)) for row in folds))
    ]


@dataclass
class FoldTurns:
    """The folds of a run as jobs: which of those that are ``waiting`` comes next, and what became
    of each. See :class:`xfer.sweep.executors.runners.Turns`."""

    ledger: Ledger
    jobs: Sequence[Job]
    failed: list[int] = field(default_factory=list)
    waiting: list[Job] = field(init=False)
    _done: int = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = [job for job in self.jobs if not self._has_finished(job)]
        self._done = len(self.jobs) - len(self.waiting)
        if self._done:
            log.info(f"{self._done} of {len(self.jobs)} folds finished already")

    def _has_finished(self, job: Job) -> bool:
        return self.ledger.state(job.number) == "finished"

    @property
    def later(self) -> bool:
        """Whether folds are left to begin."""
        return bool(self.waiting)

    def rejoin(self, held: Callable[[int], bool]) -> list[Job]:
        """The folds that an earlier process handed over and that are ``held`` by a queue still."""
        joined = [job for job in self.waiting if held(job.number)]
        self.waiting = [job for job in self.waiting if job not in joined]
        return joined

    def take(self, wait: bool = False) -> Job | None:
        """The next fold that no process works on, its folder ready; ``None`` without one."""
        return self.ledger.take(self.waiting)

    def ended(self, job: Job, code: int) -> bool:
        """Note the end of a fold; whether the others are to stop because of it."""
        line, folder = self.ledger.settle(job.number, code), self.ledger(job.number)
        if not line:
            self._done += 1
            said = f"{self._done} of {len(self.jobs)}: {_said(folder)}"
            log.info(f"fold {job.number} has finished, {said}")
            return False
        if self.ledger.state(job.number) == "interrupted":
            log.info(f"fold {job.number} has stopped, {what_is_kept(folder)}")
            return False
        self.failed.append(job.number)
        log.warning(f"fold {job.number}: {line}")
        return self.ledger.code(job.number) in _SAYS_WHY

    def check(self) -> None:
        """Raise XferError as the first fold that failed, Stopped where one was stopped."""
        if self.failed:
            number = self.failed[0]
            status = read_json(self.ledger(number) / "status.json")
            fix = status.get("remedy") or f"see {self.ledger(number) / 'output.log'}"
            error = XferError(f"fold {number}", status.get("message") or "failed", fix)
            error.number, error.exit = status.get("code") or 100, status.get("exit") or 1
            raise error
        codes = [self.ledger.code(job.number) for job in self.jobs if not self._has_finished(job)]
        if codes:
            log.warning(f"{len(codes)} of {len(self.jobs)} folds unfinished")
            raise Stopped(SIGINT if codes[0] == 130 else SIGTERM)


def _run(specs: Specs, ledger: Ledger, jobs: Sequence[Job]) -> None:
    """Run what has not finished of the jobs. Raises ResumeError where one is of another run."""
    for job in jobs:
        _check(specs, ledger, job.number)
    turns, launcher = FoldTurns(ledger, jobs), specs.launcher
    try:
        if turns.later and launcher and launcher.queue:
            queue = launcher.queue([job.overrides for job in jobs])
            QueueRunner(queue, len(jobs), "fold").run(turns)
        elif turns.later:
            _run_in_slots(specs, turns)
        turns.check()
    except Stopped:
        again = printable(quoted(override("checkpoint.resume", str(ledger.folder.parent))))
        log.info(f"stopped; with {again} the same command resumes the folds where they stand")
        raise


def _run_in_slots(specs: Specs, turns: FoldTurns) -> None:
    """As many folds at a time as there are slots. Raises FoldError for one that a queue has."""
    refuse_queued(turns)
    flags = [f"--config-dir={place}" for place in specs.config_dirs]

    def take() -> Task | None:
        if (job := turns.take()) is None:
            return None
        folder = turns.ledger(job.number)
        last = (override("run.dir", str(folder)), "checkpoint.resume=auto")
        return Task(job.number, (*flags, *job.overrides, *last), folder)

    Pool(_slots(specs), persistent=True).run(
        take,
        lambda task, code: turns.ended(turns.jobs[task.number], code),
        lambda: turns.later,
    )


def refuse_queued(turns: FoldTurns) -> None:
    """Raise FoldError where Slurm may have a fold still that would begin here as well."""
    every = [handed_over(turns.ledger(job.number)) for job in turns.waiting]
    given = [facts for facts in every if facts]
    known = queued() if given else {}
    names = [name for facts in given if (name := name_of(facts, known or {}))]
    if known is None:
        said = ", ".join(facts["slurm"] or "one of unknown number" for facts in given)
        what = f"jobs {said} had folds of this run, and squeue gives no answer"
        fix = f"remove {turns.ledger.folder}/*/{QUEUED} once they are cancelled"
    elif names:
        what = f"jobs {', '.join(names)} are in the queue, and have folds of this run"
        fix = f"type scancel {' '.join(names)}"
    if names or known is None:
        fix += ", or wait for them: add hydra/launcher=slurm_cpu, or the launcher that they have"
        raise FoldError(turns.ledger.folder, what, fix, 1)


def _slots(specs: Specs) -> list[JobSlot]:
    """The slots of this machine, as the options of the launcher divide it. Raises SweepError."""
    options, trainer = specs.launcher.options if specs.launcher else {}, specs.trainer
    per_gpu = options.get("jobs_per_gpu", 1)
    return divide(options.get("slots"), per_gpu, trainer.accelerator, trainer.devices)


def _check(specs: Specs, ledger: Ledger, number: int) -> None:
    """Raise ResumeError for a fold that is of another configuration, or has changed since."""
    ledger.check(number)
    place = ledger(number) / "plan.json"
    if not place.exists():
        return
    data = {**specs.config["data"], "fold": number}
    if read_json(place).get("fingerprint") != fingerprint({**specs.config, "data": data}):
        what = "is a fold of another configuration"
        raise ResumeError(ledger(number), what, "give another run.dir", 30)


def _said(folder: Path) -> str:
    result = read_json(folder / "result.json")
    score, best = result["scores"]["val"], result["best"]
    named = f"accuracy {score['acc']:.4f}"
    if "map" in score:
        named = "mAP undefined" if score["map"] is None else f"mAP {score['map']:.4f}"
    return f"{named} on {score['n']:,} images, best epoch {best['epoch']}"


def _pooled(plan: Plan, ledger: Ledger, folds: Folds) -> npt.NDArray[np.float32]:
    """What the fits answered, float32 (repeats, n, classes)."""
    logits = np.empty((*folds.shape, len(plan.card.classes)), np.float32)
    number = 0
    for repeat, row in enumerate(folds):
        for fold in np.unique(row):
            logits[repeat, row == fold] = np.load(ledger(number) / LOGITS, allow_pickle=False)
            number += 1
    return logits


def _starts(folder: Path) -> list[int]:
    """The epoch (from 0) at which each phase of a fold began."""
    phases = read_json(folder / "freeze_proof.json")["phases"]
    return [int(phase["from_epoch"]) - 1 for phase in phases]


def _final(
    plan: Plan, epochs: int, starts: Sequence[Sequence[int]], plans: Sequence[Plain]
) -> Plan:
    """``plan`` without a choice by validation images: its last epoch is number ``epochs`` of as
    many as the folds were planned for, and phases begin when they did in the folds on average."""
    specs = plan.specs
    planned = max(int(facts["steps"]["epochs"]) for facts in plans)
    policy = specs.checkpoint
    policy = replace(policy, monitor="train_loss", mode="min", start_epoch=epochs, interval=1)
    trainer = replace(specs.trainer, max_epochs=planned, patience=0)
    phases = []
    for i, phase in enumerate(plan.phases):
        begun = [some[i] for some in starts if i < len(some)]
        waits = phase.patience is not None
        when = round(statistics.fmean(begun)) if begun else planned
        phases.append(replace(phase, start=when, patience=None) if waits else phase)
    specs = replace(specs, checkpoint=policy, trainer=trainer)
    return replace(plan, specs=specs, phases=tuple(phases), final_epochs=epochs)
