"""The folds of a cross-validation that is trained step by step: each a job, then one table.

The jobs are below ``folds/`` in the run folder, in a ledger as a sweep has one: a run that was
killed and is resumed begins none again that has ended. Then comes the final model, on all training
images. It has no validation images to choose an epoch by, so it is trained as the folds were, up to
the epoch that was best in them on average.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.config.verbs import override, repeatable
from xfer.core.errors import ResumeError, XferError
from xfer.core.files import read_json
from xfer.core.log import log
from xfer.core.run_folder import FOLDS, what_is_kept
from xfer.core.types import Plain
from xfer.evaluation.out_of_fold import TABLE, in_words, title_of
from xfer.evaluation.predict import LOGITS
from xfer.plan.resume import fingerprint
from xfer.sweep.executors.pool import Pool, Task
from xfer.sweep.executors.slots import JobSlot, divide
from xfer.sweep.ledger import Ledger, hold
from xfer.sweep.pruning import pruner
from xfer.sweep.space import Job

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.config.specs import Specs
    from xfer.evaluation.task import Pooled
    from xfer.plan.plan import Plan
    from xfer.training.callbacks.timeline import Prunes

    Folds = npt.NDArray[np.int64]

_STAGES = ("fit", "evaluate")


def before_fit(plan: Plan, folder: Path) -> tuple[Plan, Prunes | None, Pooled | None]:
    """The plan of the fit that is to come, what ends it early, and what the folds answered.

    Without a cross-validation ``plan`` as it is, and whatever prunes a trial of a sweep. Raises
    XferError as the first job that failed, ResumeError for a fold of another configuration.
    """
    samples = plan.dataset.splits.get("train") if plan.dataset else None
    if samples is None or samples.folds is None:
        return plan, pruner(folder), None
    ledger = Ledger(folder / FOLDS, _STAGES)
    jobs = [_job(plan.specs, number) for number in range(_count(samples.folds))]
    with hold(ledger.folder):
        _run(plan, ledger, jobs, _waiting(plan.specs, ledger, jobs))
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
        f"mean of those that were best in the folds ({min(best)} to {max(best)})"
    )
    plans = [read_json(ledger(job.number) / "plan.json") for job in jobs]
    plan = _with_task(plan, samples.labels, logits)
    final = _final(plan, epochs, [_starts(ledger(job.number)) for job in jobs], plans)
    return final, lambda history: history.rows[-1]["epoch"] >= epochs, held_out


def _with_task(plan: Plan, labels: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]) -> Plan:
    """The plan whose card says what the answers of the folds say of the task: its thresholds are
    those of the final model, which has no image of its own to choose them by."""
    every = np.concatenate([labels] * len(logits))
    said = plan.specs.task.card(logits.reshape(len(every), -1), every, "cv")
    return replace(plan, card=replace(plan.card, task=said))


def _count(folds: Folds) -> int:
    return sum(len(np.unique(row)) for row in folds)


def _job(specs: Specs, number: int) -> Job:
    once = repeatable(specs.overrides)
    typed = [text for text in once if not text.lstrip("+").startswith("stages=")]
    mine = (override("data.fold", number), override("stages", list(_STAGES)))
    return Job(number, (*typed, *mine), {"data.fold": number}, None)


def _waiting(specs: Specs, ledger: Ledger, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that have not finished. Raises ResumeError where one is of another run."""
    for job in jobs:
        _check(specs, ledger, job.number)
    waiting = [job for job in jobs if ledger.state(job.number) != "finished"]
    if done := len(jobs) - len(waiting):
        log.info(f"{done} of {len(jobs)} folds are finished already")
    return waiting


def _run(plan: Plan, ledger: Ledger, jobs: Sequence[Job], left: list[Job]) -> None:
    """Run what is ``left`` of the jobs, as many at a time as there are slots; the first failure
    ends the others in good order."""
    flags = [f"--config-dir={place}" for place in plan.specs.config_dirs]
    failed: list[int] = []

    def take() -> Task | None:
        if not left:
            return None
        job = left.pop(0)
        place = ledger.prepare(job)
        last = (override("run.dir", str(place)), "checkpoint.resume=auto")
        return Task(job.number, (*flags, *job.overrides, *last), place)

    def ended(task: Task, code: int) -> bool:
        line = ledger.settle(task.number, code)
        if line and ledger.state(task.number) == "interrupted":
            log.info(f"fold {task.number} has stopped, {what_is_kept(task.folder)}")
            return True
        if line:
            failed.append(task.number)
            log.warning(f"fold {task.number}: {line}")
            return True
        done = [ledger.state(job.number) for job in jobs].count("finished")
        log.info(f"fold {task.number} has finished, {done} of {len(jobs)}: {_said(task.folder)}")
        return False

    if left:
        Pool(_slots(plan.specs), persistent=True).run(take, ended)
    if failed:
        raise _failure(ledger, failed[0])


def _slots(specs: Specs) -> list[JobSlot]:
    """The slots of this machine, as the options of the launcher divide it. Raises SweepError."""
    options, trainer = specs.slots, specs.trainer
    uses_gpu = trainer.accelerator in ("auto", "gpu")
    per_gpu = options.get("jobs_per_gpu", 1)
    return divide(options.get("slots"), per_gpu, uses_gpu, trainer.devices)


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


def _failure(ledger: Ledger, number: int) -> XferError:
    """The error of a job as the run's, with its number and exit code."""
    status = read_json(ledger(number) / "status.json")
    fix = status.get("remedy") or f"see {ledger(number) / 'output.log'}"
    error = XferError(f"fold {number}", status.get("message") or "failed", fix)
    error.number, error.exit = status.get("code") or 100, status.get("exit") or 1
    return error


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
    last = {"monitor": "train_loss", "mode": "min", "start_epoch": epochs, "interval": 1}
    policy = replace(specs.checkpoint, **last)
    trainer = replace(specs.trainer, max_epochs=planned, patience=0)
    phases = []
    for i, phase in enumerate(plan.phases):
        begun = [some[i] for some in starts if i < len(some)]
        waits = phase.patience is not None
        when = round(statistics.fmean(begun)) if begun else planned
        phases.append(replace(phase, start=when, patience=None) if waits else phase)
    return replace(
        plan, specs=replace(specs, checkpoint=policy, trainer=trainer), phases=tuple(phases)
    )
