"""What a sweep would run and cost, before anything is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from xfer.config.specs import Specs
from xfer.config.sweep_spec import SweepSpec
from xfer.core.errors import plural
from xfer.core.log import log, open_log
from xfer.freeze import ever
from xfer.models.flops import operations
from xfer.plan.make import make_plan
from xfer.plan.plan import Plan
from xfer.sweep.space import Interval, Job, Parameter, probes
from xfer.training.features import AutoFeatures

# What no fact of a plan depends on but the rates.
_FREE = ("optim", "schedule", "loss", "logger", "export", "sweep", "run", "checkpoint", "seed")


def show_plan(
    space: Sequence[Parameter],
    jobs: Sequence[Job],
    options: SweepSpec,
    compose: Callable[[Sequence[str]], Specs],
    done: Collection[int] = (),
) -> None:
    """List the jobs, what those that are not ``done`` would compute and what they would share.
    Raises XferError for what a plan finds."""
    open_log(None)
    total = len(jobs) or options.n_trials or 0
    count = max(0, total - len(done))
    for job in jobs:
        finished = ", finished" * (job.number in done)
        log.info(f"job {job.number}: {' '.join(job.overrides)}{finished}")
    if not jobs:
        log.info(f"{plural(total, 'trial')} of {options.sampler} over")
        for p in space:
            log.info(f"  {p.key}: {_range(p)}")
    if done:
        log.info(f"{len(done)} of {plural(total, 'job')} finished already")
    log.info(plural(count, "job"))
    left = [job.overrides for job in jobs if job.number not in done]
    rows = left if jobs else probes(space) if count else []
    plans: dict[str, Plan] = {}
    planned = []
    for specs in map(compose, rows):
        facts = {key: value for key, value in specs.config.items() if key not in _FREE}
        text = json.dumps(facts, sort_keys=True, default=str)
        plans[text] = plans.get(text) or make_plan(specs)
        planned.append((specs, plans[text]))
    if planned:
        for line in _costs(planned, count / len(planned)):
            log.info(line)
    log.info("stages=[]: nothing was started")


def _range(p: Parameter) -> str:
    if isinstance(p, Interval):
        return f"{p.low:g} to {p.high:g}" + ", log" * p.log
    return ", ".join(p.texts)


class _Passes(NamedTuple):
    """Images that pass a network, and the operations of each; ``None`` where they are unknown."""

    images: float
    ops: float | None


def _costs(planned: Sequence[tuple[Specs, Plan]], times: float) -> list[str]:
    """``times``: jobs for each one that was planned."""
    from xfer.models.network import blueprint

    ops = {}
    for plan in {id(p): p for _, p in planned}.values():
        ops[id(plan)] = operations(blueprint(plan.parts)[1].module, plan.card.input.size)
    alone: list[_Passes] = []
    sets: dict[str, _Passes] = {}
    whole = 0
    for job, plan in planned:
        splits = plan.dataset.splits if plan.dataset else {}
        train, val = (len(splits.get(split, ())) for split in ("train", "val"))
        specs = replace(plan.specs, seed=job.seed)
        backward = 3 if _trains_backbone(plan) else 1
        full = specs.trainer.epochs * (backward * train + val)
        whole += full
        key, size = _shared(specs, plan, train, val)
        if key is None:
            alone.append(_Passes(full * times, ops[id(plan)]))
        else:
            sets[key] = _Passes(size, ops[id(plan)])
    work = [*alone, *sets.values()]
    known = [passes.images * passes.ops for passes in work if passes.ops]
    tera = f", about {sum(known) / 1e12:,.3g} Tflop" if len(known) == len(work) else ""
    reuse = f"without features {whole * times:,.0f}" if sets else "no job shares features"
    lines = [f"whole network: {sum(p.images for p in work):,.0f} image passes{tera}; {reuse}"]
    if sets:
        count = f"{len(sets)} set" + "s" * (len(sets) > 1)
        most = max(passes.images for passes in sets.values())
        lines.append(f"features: {count} of up to {most:,.0f} images, shared by the jobs")
    slow = "how fast this machine is, the first job shows"
    return [*lines, f"a backward pass counts as two; {slow}"]


def _trains_backbone(plan: Plan) -> bool:
    heads = {row.name for row in plan.phases[0].rows if row.head}
    return any(any(rates) for name, rates in ever(plan.phases).items() if name not in heads)


def _shared(specs: Specs, plan: Plan, train: int, val: int) -> tuple[str | None, int]:
    """A name for the features of a job, and the images they take; ``None`` without features."""
    options = specs.features
    if not isinstance(options, AutoFeatures) or _trains_backbone(plan):
        return None, 0
    epochs = specs.trainer.epochs
    count = options.views_of(specs.augment.random, epochs)
    what: list[Any] = [plan.card.backbone, plan.card.source, plan.card.input.to_plain()]
    what += [plan.facts["splits"], specs.facts["augment"], specs.trainer.precision, count]
    if count == epochs and options.batch_size is None:
        what.append(specs.seed)  # views in the order of their epoch
    return json.dumps(what, sort_keys=True, default=str), (count or 1) * train + val
