"""A sweep as it was asked for: what is wrong with it, and what it is looked at for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.core.errors import Attempts, SweepError, raise_all
from xfer.core.types import Plain
from xfer.plan.resume import fingerprint
from xfer.sweep.ledger import mark
from xfer.sweep.objective import Objective, objectives
from xfer.sweep.space import Interval, Parameter, is_finite, probes, unmatched
from xfer.sweep.study import Study

if TYPE_CHECKING:
    from xfer.config.specs import Specs

Compose = Callable[[Sequence[str]], "Specs"]
Configure = Callable[[Sequence[str]], Plain]
_SUPPOSED = ("fit", "evaluate", "export", "benchmark"), ("evaluate",)
"""Stages that a plan, which has none, takes the jobs to have: all that log, or no training."""


@dataclass(frozen=True)
class Asked:
    """A sweep as asked for: what varies, and the overrides that all jobs share. ``folder`` is
    where a new one goes; where the user ``named`` it, a sweep in it goes on. ``read`` gives the
    plain values of overrides by key."""

    space: tuple[Parameter, ...]
    fixed: tuple[str, ...]
    command: str
    folder: Path
    read: Configure
    named: bool = False


def check(asked: Asked, compose: Compose) -> Specs:
    """The specs of a job, once every value that may come up has been seen to build."""
    if not asked.space:
        what = "nothing varies: the search space is empty"
        fix = "type values, e.g. optim.lr=0.1,0.01, or for one job seed=choice(0), or drop -m"
        raise SweepError("sweep.params", what, fix, 13)
    for p in asked.space:
        size = p.high > p.low if isinstance(p, Interval) else len(p.texts)
        if not size or (isinstance(p, Interval) and p.log and p.low <= 0):
            what = "has no value" if not size else "starts at 0 or below, which has no logarithm"
            raise SweepError(p.key, what, "mend its range", 14)
        if not is_finite(p):
            what = "inf and nan are no values that a job can be told apart by"
            raise SweepError(p.key, what, "type finite numbers", 27)
    attempt = Attempts()
    found = [attempt(compose, texts) for texts in probes(asked.space)]
    # What is wrong with every job is told once.
    raise_all(list({str(error): error for error in attempt.errors}.values()))
    for specs in found:
        assert specs is not None
        refuse_one_run(specs.checkpoint.resume)
    assert found[0] is not None
    return found[0]


def refuse_one_run(resume: str | None) -> None:
    """Raise SweepError where the ``resume`` of several jobs names a folder."""
    if resume not in (None, "auto"):
        what = "names one run, and a sweep has several"
        fix = "type checkpoint.resume=auto, or sweep.dir=FOLDER of the sweep"
        raise SweepError("checkpoint.resume", what, fix, 22)


def marks(first: Specs, space: Sequence[Parameter]) -> list[str]:
    """The mark of this sweep, or of a plan those of the sweeps that it may be of."""
    options = first.sweep
    stagings = [first.stages] if first.stages else _SUPPOSED[: 1 if options.objectives else 2]
    found = []
    for stages in stagings:
        facts = repr(_objectives(first, stages))
        search = {"sampler": options.sampler, "seed": options.seed, "objectives": facts}
        found.append(mark(fingerprint(first.config), space, search))
    return found


def remarks(space: Sequence[Parameter], baseline: Plain, study: Study | None) -> list[str]:
    """What is no mistake, and not what one may think either."""
    found = [study.remark()] if study else []
    if baseline and (reason := unmatched(space, baseline)):
        found.append(f"sweep.baseline marks no job: {reason}")
    return list(filter(None, found))


def wanted(first: Specs) -> tuple[Objective, ...]:
    """What jobs like that of ``first`` are compared by. Raises SweepError for what is never
    logged."""
    found = _objectives(first, first.stages or _SUPPOSED[0])
    from xfer.evaluation.metrics import metric_of

    asked = {objective.metric: metric_of(objective.metric) for objective in found}
    limited = {key: metric for key, metric in asked.items() if metric and metric.is_limited}
    if limited:
        from xfer.plan.make import make_plan

        # Whether these are defined depends on the data, which is looked at for their sake.
        classes = len(make_plan(first).card.classes)
        for key, metric in limited.items():
            if not metric.has(classes):
                what = f"'{key}' is never logged with {classes} classes"
                fix = f"take {key.removesuffix(metric.name)}acc"
                raise SweepError("sweep.objectives", what, fix, 23)
    return found


def _objectives(first: Specs, stages: Sequence[str]) -> tuple[Objective, ...]:
    options, kept = first.sweep, first.checkpoint
    # Who trains has nothing to measure but what the same job exports.
    made = "export" in stages or "fit" not in stages
    files = [writer.file for writer in first.export.writers] if made else []
    searches, monitor = options.sampler != "grid", (kept.monitor, kept.mode)
    return objectives(options.objectives, monitor, stages, searches, files)


def flow_text(value: Any) -> str:
    """``value`` as one line of YAML, which reads it back as it is."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").strip()
