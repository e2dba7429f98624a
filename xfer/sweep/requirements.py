"""A sweep as it was asked for: what is wrong with it, and what its jobs are compared by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.config.choose import refuse_choice
from xfer.core.errors import Attempts, SweepError, raise_all
from xfer.core.types import Plain
from xfer.core.world import refuse_launched
from xfer.plan.multilabel_task import watched
from xfer.plan.resume import fingerprint
from xfer.sweep.ledger import mark
from xfer.sweep.objective import Objective, objectives
from xfer.sweep.soup.soup_stage import refuse_soup_in_a_sweep
from xfer.sweep.space import Interval, Parameter, is_finite, probes

if TYPE_CHECKING:
    from xfer.config.specs import Specs

Compose = Callable[[Sequence[str]], "Specs"]
Configure = Callable[[Sequence[str]], Plain]
_SUPPOSED = ("fit", "evaluate", "export", "benchmark"), ("evaluate",)
"""Stages that a plan, which has none, takes the jobs to have: all that log, or no training."""


@dataclass(frozen=True)
class SweepRequest:
    """A sweep as asked for: what varies, and the overrides that all jobs share. ``folder`` is
    where a new one goes; where the user ``named`` it, a sweep in it is resumed. ``read`` gives the
    plain values of overrides by key."""

    space: tuple[Parameter, ...]
    fixed: tuple[str, ...]
    command: str
    folder: Path
    read: Configure
    named: bool = False


def check(request: SweepRequest, compose: Compose) -> Specs:
    """The specs of a job, once every value that may come up has been seen to build."""
    refuse_launched("command line", "-m is a whole sweep", "start it without srun or torchrun")
    typed = [text.lstrip("+").partition("=") for text in request.fixed]
    refuse_choice(any(key == "choose" and option != "none" for key, _, option in typed))
    if not request.space:
        what = "nothing varies: the search space is empty"
        fix = "type values, e.g. optim.lr=0.1,0.01, or for one job 'seed=choice(0)', or drop -m"
        raise SweepError("sweep.params", what, fix, 13)
    for p in request.space:
        size = p.high > p.low if isinstance(p, Interval) else len(p.texts)
        if not size or (isinstance(p, Interval) and p.log and p.low <= 0):
            what = "has no value" if not size else "starts at 0 or below, which has no logarithm"
            raise SweepError(p.key, what, "correct its range", 14)
        if not is_finite(p):
            what = "inf and nan are no values by which jobs can be told apart"
            raise SweepError(p.key, what, "type finite numbers", 27)
    attempt = Attempts()
    tried = [attempt(compose, texts) for texts in probes(request.space)]
    # What is wrong with every job is reported once.
    raise_all(list({str(error): error for error in attempt.errors}.values()))
    built = [specs for specs in tried if specs is not None]
    for specs in built:
        refuse_one_run(specs.checkpoint.resume)
        refuse_choice(specs.choose.chooses)
        refuse_soup_in_a_sweep(specs.stages)
    return built[0]


def refuse_one_run(resume: str | None) -> None:
    """Raise SweepError where the ``resume`` of several jobs names a folder."""
    if resume not in (None, "auto"):
        what = "names one run, and a sweep has several"
        fix = "type checkpoint.resume=auto, or sweep.dir=FOLDER of the sweep"
        raise SweepError("checkpoint.resume", what, fix, 22)


def marks(first: Specs, space: Sequence[Parameter]) -> list[str]:
    """The mark of this sweep, or of a plan those of the sweeps that it may be of."""
    options, plain = first.sweep, fingerprint(first.config)
    stagings = [first.stages] if first.stages else _SUPPOSED[: 1 if options.objectives else 2]
    search = {"sampler": options.sampler, "seed": options.seed}
    goals = [repr(_objectives(first, stages)) for stages in stagings]
    return [mark(plain, space, {**search, "objectives": goal}) for goal in goals]


def wanted(first: Specs) -> tuple[Objective, ...]:
    """What jobs like that of ``first`` are compared by. Raises SweepError for what is never
    logged."""
    from xfer.evaluation.multilabel_metrics import metric_of

    goals = _objectives(first, first.stages or _SUPPOSED[0])
    pairs = [(goal.metric, metric_of(goal.metric)) for goal in goals]
    if limited := [(key, metric) for key, metric in pairs if metric and metric.is_limited]:
        from xfer.plan.make import make_plan

        # Whether these are defined depends on the data, which is looked at for their sake.
        classes = len(make_plan(first).card.classes)
        for key, metric in limited:
            if not metric.has(classes):
                what = f"'{key}' is never logged with {classes} classes"
                fix = f"take {key.removesuffix(metric.name)}acc"
                raise SweepError("sweep.objectives", what, fix, 23)
    return goals


def _objectives(first: Specs, stages: Sequence[str]) -> tuple[Objective, ...]:
    # A job that trains has nothing to measure but what it exports.
    exports = "export" in stages or "fit" not in stages
    files = [writer.file for writer in first.export.writers] if exports else []
    searches, pair = first.sweep.sampler != "grid", watched(first)
    rows = [metric.name for metric in first.task.rows(first.metrics)]
    return objectives(first.sweep.objectives, pair, stages, searches, files, rows)


def flow_text(value: Any) -> str:
    """``value`` as one line of YAML, which reads it back as it is."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
